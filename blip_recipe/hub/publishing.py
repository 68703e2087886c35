"""Check access to the Hub before training, and push the results in one commit afterwards."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import (
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from blip_recipe.errors import PushError, RecipeError
from blip_recipe.hub.published_files import MODEL_FILES, PUBLISHED_FILES, check_contents, matches_any, published_files
from blip_recipe.hub.retries import HUB_ERRORS, LOG_IN, WAITS_BEFORE, WAITS_PUSH, explain, with_retries

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import DatasetInfo, ModelInfo, SpaceInfo

    RepositoryInfo = ModelInfo | DatasetInfo | SpaceInfo

logger = logging.getLogger(__name__)

TAG = re.compile(r"\w([\w.+/-]*\w)?")
"""Allowed tag names, stricter than `git check-ref-format`."""

COMMIT_MESSAGE = "Upload a BLIP fine-tuned with blip_recipe"

RepoType = Literal["model", "dataset", "space"]

PATHS: dict[RepoType, str] = {"model": "", "dataset": "datasets/", "space": "spaces/"}
"""What stands before the name of a repository in its URL."""

PUSH_AGAIN = "When the problem is solved, run the same command again to push them."
"""What to do after a failed push of files, unless the caller knows better."""

WRITER_ROLES = ("admin", "write", "contributor")


@dataclass(frozen=True)
class PushResult:
    """The result of a push: the repository's URL, its commit, and whether this push created the commit."""

    url: str
    revision: str
    committed: bool


def preflight(
    repo_id: str | None,
    default_name: str,
    private: bool | None,
    api: HfApi,
    waits: Sequence[float] = WAITS_BEFORE,
    repo_type: RepoType = "model",
) -> str:
    """Check that the result of a run can be pushed, without creating anything.

    Args:
        repo_id: `namespace/name`, or a name in the user's namespace. Default: `default_name`.
        default_name: The repository's name if the recipe gives none (the last part of `output_dir`).
        private: Whether the repository must be private; `None` uses its visibility, or the namespace's default.
        api: The Hub client, with a token unless it is the one of the environment.
        waits: Seconds between attempts to reach the Hub.
        repo_type: `model`, `dataset` or `space`.

    Returns:
        The full `namespace/name` as on the Hub: the new name of a renamed repository, and with the Hub's upper and
        lower case, which uploads need.

    Raises:
        RecipeError: The name is invalid, the token is missing or may not write there, or the Hub cannot be reached.
    """
    check_repo_id(
        repo_id or default_name, "hub_model_id" if repo_id else "hub_model_id is not given; output_dir's name"
    )
    try:
        me = with_retries(api.whoami, waits)
        full_name = _with_namespace(repo_id or default_name, me)
        existing = with_retries(lambda: find_repository(full_name, api, repo_type), waits)
    except LocalTokenNotFoundError as error:
        raise RecipeError(f"{repo_id or default_name} cannot be pushed: no Hub token found, {LOG_IN}.") from error
    except HUB_ERRORS as error:
        raise RecipeError(explain(error, api)) from error
    if existing and existing.id != full_name:
        logger.warning("%s is named %s on the Hub; it will be pushed there", full_name, existing.id)
        full_name = existing.id
    _check_write_access(full_name, me, exists=existing is not None)
    if existing and private and not existing.private:
        raise RecipeError(
            f"{full_name} should be private, but exists and is public: make it private in its settings on the Hub, or "
            "choose another name."
        )
    return full_name


def _with_namespace(repo_id: str, me: dict[str, Any]) -> str:
    """Complete `namespace/name`, with the upper and lower case of the namespaces from `whoami`."""
    namespace, _, name = repo_id.rpartition("/")
    known = {each["name"].lower(): each["name"] for each in (*me.get("orgs", []), me)}
    return f"{known.get(namespace.lower(), namespace) or me['name']}/{name}"


def check_repo_id(repo_id: str, key: str) -> None:
    """Check that the Hub accepts a repository name.

    Raises:
        RecipeError: It is not `NAME` or `ORG/NAME` of letters, digits, `-`, `_` and `.`.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise RecipeError(
            f"{key} is {repo_id!r}: expected ORG/NAME or NAME of letters, digits, '-', '_' and '.', with at most 96 "
            "characters."
        ) from error


def check_tag(tag: str | None, key: str) -> None:
    """Check a tag name early.

    Raises:
        RecipeError: It has other characters than letters, digits, `.`, `_`, `-`, `+` and `/`, or does not start and
            end with a letter, digit or `_`.
    """
    if tag is not None and (not TAG.fullmatch(tag) or ".." in tag):
        raise RecipeError(
            f"{key} is {tag!r}: expected a name such as 'v1.0' of letters, digits, '.', '_', '-' and '+'."
        )


def _check_write_access(repo_id: str, me: dict[str, Any], *, exists: bool) -> None:
    """Check that the user and token from `whoami` may write to the namespace."""
    namespace = repo_id.split("/")[0]
    roles = {org["name"].lower(): org.get("roleInOrg", "write") for org in me.get("orgs", [])}
    roles[me["name"].lower()] = "admin"
    role = roles.get(namespace.lower())
    if role not in WRITER_ROLES:
        standing = f"has the role {role!r} in" if role else "is not a member of"
        writable = ", ".join(sorted(name for name, role in roles.items() if role in WRITER_ROLES))
        raise RecipeError(
            f"The repository is {repo_id}, but the Hub user {me['name']} {standing} {namespace}: choose a namespace "
            f"you can write to ({writable}), or log in as another user (`hf auth login`)."
        )
    token = me.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise RecipeError(f"The Hub token of {me['name']} has only read access: {LOG_IN}.")
    if token.get("role") == "fineGrained" and "fineGrained" in token:
        # A scope on a repository allows to change it, but not to create it.
        names = {namespace.lower(), repo_id.lower()} if exists else {namespace.lower()}
        scopes = [
            scope["permissions"] for scope in token["fineGrained"]["scoped"] if scope["entity"]["name"].lower() in names
        ]
        if not any("repo.write" in permissions for permissions in scopes):
            raise RecipeError(
                f"The fine-grained Hub token of {me['name']} may not write to {repo_id}: give it write access to the "
                f"repositories of {namespace} in the token's settings, or use another token."
            )


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None,
    message: str = COMMIT_MESSAGE,
    tag: str | None = None,
    api: HfApi,
    waits: Sequence[float] = WAITS_PUSH,
) -> PushResult:
    """Push the output directory of a run in one commit, or in none if the repository has these files already.

    The repository is created if needed. Model files that this run does not have (such as an adapter's, when a full
    model is pushed) are deleted in the same commit. Other files are not touched. Connection errors, server errors, rate
    limits and conflicts with another commit are retried. Each attempt first compares hashes with the Hub, so a lost
    reply never leads to a second commit.

    Args:
        folder: The output directory.
        repo_id: `namespace/name`.
        private: Whether to create the repository as private; `None` uses the namespace's default.
        message: The commit message.
        tag: A tag for the commit. A tag that exists with other files is refused before the push.
        api: The Hub client, with a token unless it is the one of the environment.
        waits: Seconds between attempts.

    Returns:
        The URL of the repository, its commit, and whether this push created it.

    Raises:
        RecipeError: The directory has no finished model.
        PushError: The files may not be published, or the push failed. The message says how to finish.
    """
    files = published_files(folder)
    finish = push_command(folder, repo_id, private=private, tag=tag)
    url = f"{api.endpoint}/{repo_id}"
    try:
        check_contents(files, api)
        before = with_retries(lambda: published_revision(repo_id, api), waits)
        revision = with_retries(lambda: _push_once(files, repo_id, private, message, tag, api), waits)
    except (PushError, *HUB_ERRORS) as error:
        raise push_failed(f"{folder} was not pushed to {repo_id}.", error, finish, api) from error
    try:
        if tag:
            with_retries(lambda: _tag_once(files, repo_id, revision, tag, api), waits)
    except (PushError, *HUB_ERRORS) as error:
        raise push_failed(f"{url} was pushed, but not tagged {tag}.", error, finish, api) from error
    return PushResult(url, revision, committed=revision != before)


def push_dataset(
    files: Mapping[str, Path],
    repo_id: str,
    *,
    private: bool | None,
    stale: Sequence[str],
    tag: str,
    message: str,
    api: HfApi,
    waits: Sequence[float] = WAITS_PUSH,
) -> PushResult:
    """Push the files of a data set in one commit, or in none if the repository has these files already.

    The repository is created if needed. As with `push_folder`, a lost reply never leads to a second commit.

    Args:
        files: The files by their names in the repository.
        repo_id: `namespace/name`.
        private: Whether to create the repository as private; `None` uses the namespace's default.
        stale: Patterns of files that are deleted if they are not in `files`.
        tag: A tag of our cards. A card in the repository without it is somebody else's, and is kept.
        message: The commit message.
        api: The Hub client.
        waits: Seconds between attempts.

    Raises:
        PushError: The files may not be published, or the push failed.
    """

    def choose(info: RepositoryInfo) -> Mapping[str, Path]:
        has_card = any(each.rfilename == "README.md" for each in info.siblings or ())
        is_ours = has_tag(info, tag)
        if has_card and not is_ours:
            logger.warning("%s has a card of its own, which is kept.", info.id)
        return {name: path for name, path in files.items() if name != "README.md" or is_ours or not has_card}

    return push_files(
        files, repo_id, "dataset", private=private, stale=stale, choose=choose, message=message, api=api, waits=waits
    )


def has_tag(info: RepositoryInfo, tag: str) -> bool:
    """Whether the card of a repository has a tag."""
    return tag in ((info.card_data.get("tags") if info.card_data else None) or ())


def push_files(
    files: Mapping[str, Path],
    repo_id: str,
    repo_type: RepoType,
    *,
    private: bool | None,
    stale: Sequence[str] = (),
    choose: Callable[[RepositoryInfo], Mapping[str, Path]] | None = None,
    message: str,
    api: HfApi,
    advice: str = PUSH_AGAIN,
    waits: Sequence[float] = WAITS_PUSH,
) -> PushResult:
    """Push files in one commit, or in none if the repository has these files already.

    The repository is created if needed. As with `push_folder`, a lost reply never leads to a second commit.

    Args:
        files: The files by their names in the repository.
        repo_id: `namespace/name`.
        repo_type: `model`, `dataset` or `space`.
        private: Whether to create the repository as private; `None` uses the namespace's default.
        stale: Patterns of files that are deleted if they are not in `files`.
        choose: Gives the files to push to a repository, if that depends on what is there.
        message: The commit message.
        api: The Hub client.
        advice: What to do after a failed push.
        waits: Seconds between attempts.

    Raises:
        PushError: The files may not be published, or the push failed.
    """

    def push_once() -> str:
        info = _find_or_create(repo_id, private, api, repo_type)
        operations = _difference(choose(info) if choose else files, info.id, info, stale, api, repo_type)
        return _commit(operations, info.id, "main", info, message, api, repo_type)

    try:
        check_contents(files, api)
        before = with_retries(lambda: published_revision(repo_id, api, repo_type), waits)
        revision = with_retries(push_once, waits)
    except (PushError, *HUB_ERRORS) as error:
        raise PushError(
            f"{len(files):,} files were not pushed to {repo_id}. {explain(error, api)}\n{advice}"
        ) from error
    return PushResult(f"{api.endpoint}/{PATHS[repo_type]}{repo_id}", revision, committed=revision != before)


def push_command(folder: Path, repo_id: str, *, private: bool | None = None, tag: str | None = None) -> str:
    """Build the command line that pushes a finished output directory."""
    options = [*(["--private"] if private else []), *(["--tag", tag] if tag else [])]
    return shlex.join(["python", "-m", "blip_recipe.push", str(folder), "--repo_id", repo_id, *options])


def push_failed(what: str, error: Exception, finish: str, api: HfApi) -> PushError:
    """Build the error of a failed push: what failed, why, and the command that finishes the job."""
    return PushError(
        f"{what} {explain(error, api)}\nThe model is saved. When the problem is solved, finish with: {finish}"
    )


def commit_to_branch(
    files: Mapping[str, Path], repo_id: str, branch: str, *, private: bool | None, message: str, api: HfApi
) -> str:
    """Commit `files` to a branch in one commit, and delete its other published files. Returns the commit.

    Repository and branch are created if needed, the branch from `main`. There is one attempt; see `with_retries`.
    """
    repo_id = _find_or_create(repo_id, private, api).id
    try:
        info = api.model_info(repo_id, revision=branch)
    except RevisionNotFoundError:
        api.create_branch(repo_id, branch=branch, exist_ok=True)
        info = api.model_info(repo_id, revision=branch)
    operations = _difference(files, repo_id, info, PUBLISHED_FILES, api)
    return _commit(operations, repo_id, branch, info, message, api)


def published_revision(repo_id: str, api: HfApi, repo_type: RepoType = "model") -> str | None:
    """The commit of a repository's main branch, or `None` if the repository does not exist."""
    info = find_repository(repo_id, api, repo_type)
    return info.sha if info else None


def _push_once(
    files: Mapping[str, Path], repo_id: str, private: bool | None, message: str, tag: str | None, api: HfApi
) -> str:
    """Commit the difference to the Hub, if there is one. Returns the commit that has the files."""
    info = _find_or_create(repo_id, private, api)
    # Unlike other requests, uploads do not follow renamed repositories or names in another upper and lower case.
    repo_id = info.id
    if tag:
        _is_tagged(files, repo_id, tag, api)
    operations = _difference(files, repo_id, info, MODEL_FILES, api)
    return _commit(operations, repo_id, "main", info, message, api)


def _tag_once(files: Mapping[str, Path], repo_id: str, revision: str, tag: str, api: HfApi) -> None:
    """Tag a commit, unless the tag exists."""
    if not _is_tagged(files, repo_id, tag, api):
        api.create_tag(repo_id, tag=tag, revision=revision)


def _is_tagged(files: Mapping[str, Path], repo_id: str, tag: str, api: HfApi) -> bool:
    """Whether the tag exists with these files.

    Raises:
        PushError: The tag has other files, or is the name of a branch.
    """
    references = api.list_repo_refs(repo_id)
    if tag in [branch.name for branch in references.branches]:
        raise PushError(f"{tag} is a branch of {repo_id}, so it cannot be a tag: choose another name.")
    if tag not in [each.name for each in references.tags]:
        return False
    tagged = api.model_info(repo_id, revision=tag)
    if _difference(files, repo_id, tagged, MODEL_FILES, api):
        raise PushError(
            f"The tag {tag} exists at commit {tagged.sha} with other files: choose another name, or delete the tag on "
            "the Hub."
        )
    return True


def _find_or_create(repo_id: str, private: bool | None, api: HfApi, repo_type: RepoType = "model") -> RepositoryInfo:
    """Get a repository, and create it if needed.

    Raises:
        PushError: It should be private, but exists and is public.
    """
    info = find_repository(repo_id, api, repo_type)
    if info is None:
        sdk = "gradio" if repo_type == "space" else None
        api.create_repo(repo_id, private=private, exist_ok=True, repo_type=repo_type, space_sdk=sdk)
        return cast("RepositoryInfo", api.repo_info(repo_id, repo_type=repo_type))
    if private and not info.private:
        raise PushError("The repository should be private, but exists and is public.")
    return info


def find_repository(repo_id: str, api: HfApi, repo_type: RepoType = "model") -> RepositoryInfo | None:
    """Get a repository, or `None` if it does not exist or the token cannot see it."""
    try:
        return cast("RepositoryInfo", api.repo_info(repo_id, repo_type=repo_type))
    except RepositoryNotFoundError:
        return None


def _difference(
    files: Mapping[str, Path],
    repo_id: str,
    info: RepositoryInfo,
    managed: Sequence[str],
    api: HfApi,
    repo_type: RepoType = "model",
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """The operations that add changed `files` to a revision, and delete other files that match `managed`."""
    tree = api.list_repo_tree(repo_id, recursive=True, revision=info.sha, repo_type=repo_type) if info.sha else ()
    there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    added = [CommitOperationAdd(name, path) for name, path in files.items() if not _is_same(path, there.get(name))]
    stale = [CommitOperationDelete(name) for name in there if name not in files and matches_any(name, managed)]
    return [*added, *stale]


def _commit(
    operations: list[CommitOperationAdd | CommitOperationDelete],
    repo_id: str,
    branch: str,
    info: RepositoryInfo,
    message: str,
    api: HfApi,
    repo_type: RepoType = "model",
) -> str:
    """Commit `operations` on top of `info`, if there are any. Returns the commit that has the files."""
    if not operations and info.sha:
        return info.sha
    logger.info("Pushing %d files to %s", len(operations), repo_id)
    commit = api.create_commit(
        repo_id, operations, commit_message=message, revision=branch, parent_commit=info.sha, repo_type=repo_type
    )
    return commit.oid


def _is_same(path: Path, there: RepoFile | None) -> bool:
    """Whether the Hub's file equals the local one, by size and hash."""
    if there is None or there.size != path.stat().st_size:
        return False
    if there.lfs is None:
        return git_hash(path.read_bytes()) == there.blob_id
    with path.open("rb") as file:
        return sha_fileobj(file).hex() == there.lfs.sha256
