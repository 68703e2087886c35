"""The Hub: what is checked before training, and one commit with everything after it."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    from huggingface_hub.hf_api import ModelInfo

logger = logging.getLogger(__name__)

TAG = re.compile(r"\w([\w.+/-]*\w)?")
"""Names of tags, more narrowly than `git check-ref-format`."""

COMMIT_MESSAGE = "Upload a BLIP fine-tuned with blip_recipe"

WRITER_ROLES = ("admin", "write", "contributor")


@dataclass(frozen=True)
class PushResult:
    """Where a folder was pushed: the repository's URL, the commit it is at, and whether this push made that commit."""

    url: str
    revision: str
    committed: bool


def preflight(
    repo_id: str | None,
    default_name: str,
    private: bool | None,
    api: HfApi,
    waits: Sequence[float] = WAITS_BEFORE,
) -> str:
    """Check, without creating anything, that the result of a run can be pushed.

    Args:
        repo_id: `namespace/name`, or a name alone, which goes to the token's user; default: `default_name`.
        default_name: The repository's name if the recipe gives none (the last part of `output_dir`).
        private: Whether the repository must be private; `None` leaves it as it is, or to the namespace's default.
        api: The client, with the token if it is not the one of the environment.
        waits: Seconds between attempts to reach the Hub.

    Returns:
        The full `namespace/name` as the Hub writes it: renamed repositories by their new name, and in its own capitals,
        because uploads do not find a name in others'.

    Raises:
        RecipeError: The name is invalid, there is no valid token, it may not write there, or the Hub is out of reach.
    """
    check_repo_id(
        repo_id or default_name, "hub_model_id" if repo_id else "hub_model_id is not given; output_dir's name"
    )
    try:
        me = with_retries(api.whoami, waits)
        full_name = _with_namespace(repo_id or default_name, me)
        existing = with_retries(lambda: _find_model(full_name, api), waits)
    except LocalTokenNotFoundError as error:
        raise RecipeError(f"{repo_id or default_name} is to be pushed, but there is no Hub token: {LOG_IN}.") from error
    except HUB_ERRORS as error:
        raise RecipeError(explain(error, api)) from error
    if existing and existing.id != full_name:
        logger.warning("%s is called %s on the Hub, and is pushed there", full_name, existing.id)
        full_name = existing.id
    _check_write_access(full_name, me, exists=existing is not None)
    if existing and private and not existing.private:
        raise RecipeError(
            f"{full_name} is to be private, but it exists and is public: make it private in its settings on the Hub, "
            "or choose another name."
        )
    return full_name


def _with_namespace(repo_id: str, me: dict[str, Any]) -> str:
    """`namespace/name`, with the namespaces that `whoami` tells in their own capitals."""
    namespace, _, name = repo_id.rpartition("/")
    known = {each["name"].lower(): each["name"] for each in (*me.get("orgs", []), me)}
    return f"{known.get(namespace.lower(), namespace) or me['name']}/{name}"


def check_repo_id(repo_id: str, key: str) -> None:
    """Refuse what the Hub takes for no name of a repository.

    Raises:
        RecipeError: It is not `NAME` or `ORG/NAME` of letters, digits, `-`, `_` and `.`.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise RecipeError(
            f"{key} is {repo_id!r}: expected ORG/NAME or NAME, of letters, digits, '-', '_' and '.', at most 96 long."
        ) from error


def check_tag(tag: str | None, key: str) -> None:
    """Refuse what git takes for no name of a tag, before there is anything to tag.

    Raises:
        RecipeError: It is not made of letters, digits, `.`, `_`, `-`, `+` and `/`, beginning with one of the first two.
    """
    if tag is not None and (not TAG.fullmatch(tag) or ".." in tag):
        raise RecipeError(
            f"{key} is {tag!r}: expected a name such as 'v1.0', of letters, digits, '.', '_', '-' and '+'."
        )


def _check_write_access(repo_id: str, me: dict[str, Any], *, exists: bool) -> None:
    """Compare the namespace with what `whoami` tells of user, organisations and token."""
    namespace = repo_id.split("/")[0]
    roles = {org["name"].lower(): org.get("roleInOrg", "write") for org in me.get("orgs", [])}
    roles[me["name"].lower()] = "admin"
    role = roles.get(namespace.lower())
    if role not in WRITER_ROLES:
        standing = f"has the role {role!r} in" if role else "is no member of"
        writable = ", ".join(sorted(name for name, role in roles.items() if role in WRITER_ROLES))
        raise RecipeError(
            f"The repository is to be {repo_id}, but the Hub user {me['name']} {standing} {namespace}: choose a "
            f"namespace you may write to ({writable}), or log in as somebody else (`hf auth login`)."
        )
    token = me.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise RecipeError(f"The Hub token of {me['name']} may only read: {LOG_IN}.")
    if token.get("role") == "fineGrained" and "fineGrained" in token:
        # A scope on one repository lets it be changed, not made.
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
    """Make a repository hold exactly what a run left, in one commit, or in none where it does already.

    The repository is made if needed. Model files of an earlier run that this one lacks (an adapter's, say, now that a
    full model is pushed) are deleted in the same commit; other files are left alone. Connection errors, server errors
    and rate limits are tried again, and so is a commit that somebody else's forestalled; each attempt first compares
    the hashes of what is there, so that a lost reply never makes a second commit.

    Args:
        folder: The output directory.
        repo_id: `namespace/name`.
        private: Whether a repository that is made now is private; `None` is the namespace's default.
        message: The commit message.
        tag: A tag for the commit; one that stands elsewhere is refused before anything is pushed.
        api: The client, with the token if it is not the one of the environment.
        waits: Seconds between attempts.

    Raises:
        RecipeError: The directory holds no finished model.
        PushError: The files may not be published, or the Hub did not take them; says how to finish.
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


def push_command(folder: Path, repo_id: str, *, private: bool | None = None, tag: str | None = None) -> str:
    """The command line that pushes (again) a finished output directory."""
    options = [*(["--private"] if private else []), *(["--tag", tag] if tag else [])]
    return shlex.join(["python", "-m", "blip_recipe.push", str(folder), "--repo_id", repo_id, *options])


def push_failed(what: str, error: Exception, finish: str, api: HfApi) -> PushError:
    """The one message of a push that failed: what did not happen, why, and the command that finishes the job."""
    return PushError(f"{what} {explain(error, api)}\nThe model is saved; when that is put right, finish with: {finish}")


def commit_to_branch(
    files: Mapping[str, Path], repo_id: str, branch: str, *, private: bool | None, message: str, api: HfApi
) -> str:
    """Make the top of a branch hold `files`, and no other published file, by one commit on it; returns the commit.

    Repository and branch are made where they are missing, the branch from the head of `main`. One attempt: see
    `with_retries`.
    """
    repo_id = _find_or_create(repo_id, private, api).id
    try:
        info = api.model_info(repo_id, revision=branch)
    except RevisionNotFoundError:
        api.create_branch(repo_id, branch=branch, exist_ok=True)
        info = api.model_info(repo_id, revision=branch)
    operations = _difference(files, repo_id, info, PUBLISHED_FILES, api)
    return _commit(operations, repo_id, branch, info, message, api)


def published_revision(repo_id: str, api: HfApi) -> str | None:
    """The commit that a model repository's main branch is at; `None` where there is no such repository."""
    info = _find_model(repo_id, api)
    return info.sha if info else None


def _push_once(
    files: Mapping[str, Path], repo_id: str, private: bool | None, message: str, tag: str | None, api: HfApi
) -> str:
    """Compare, and commit the difference if there is one; returns the commit that holds the files."""
    info = _find_or_create(repo_id, private, api)
    # Uploads, unlike other requests, do not follow a repository that was renamed, or is written in other capitals.
    repo_id = info.id
    if tag:
        _is_tagged(files, repo_id, tag, api)
    operations = _difference(files, repo_id, info, MODEL_FILES, api)
    return _commit(operations, repo_id, "main", info, message, api)


def _tag_once(files: Mapping[str, Path], repo_id: str, revision: str, tag: str, api: HfApi) -> None:
    """Tag a commit, unless the tag is there."""
    if not _is_tagged(files, repo_id, tag, api):
        api.create_tag(repo_id, tag=tag, revision=revision)


def _is_tagged(files: Mapping[str, Path], repo_id: str, tag: str, api: HfApi) -> bool:
    """Whether the tag is there and holds the files.

    Raises:
        PushError: It holds others, or is a branch.
    """
    references = api.list_repo_refs(repo_id)
    if tag in [branch.name for branch in references.branches]:
        raise PushError(f"{tag} is a branch of {repo_id}, and cannot be a tag too: choose another name.")
    if tag not in [each.name for each in references.tags]:
        return False
    tagged = api.model_info(repo_id, revision=tag)
    if _difference(files, repo_id, tagged, MODEL_FILES, api):
        raise PushError(
            f"The tag {tag} stands at commit {tagged.sha}, which holds other files: choose another name for it, or "
            "delete that tag on the Hub."
        )
    return True


def _find_or_create(repo_id: str, private: bool | None, api: HfApi) -> ModelInfo:
    """What the Hub knows of a model, which is made now where there is none.

    Raises:
        PushError: It is to be private, but it is there and public.
    """
    info = _find_model(repo_id, api)
    if info is None:
        api.create_repo(repo_id, private=private, exist_ok=True)
        return api.model_info(repo_id)
    if private and not info.private:
        raise PushError("A private repository was asked for, but it exists and is public.")
    return info


def _find_model(repo_id: str, api: HfApi) -> ModelInfo | None:
    """What the Hub knows of a model; `None` where it does not exist, or not for this token."""
    try:
        return api.model_info(repo_id)
    except RepositoryNotFoundError:
        return None


def _difference(
    files: Mapping[str, Path], repo_id: str, info: ModelInfo, managed: Sequence[str], api: HfApi
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """What makes a revision hold `files`, and nothing else of the patterns in `managed`."""
    tree = api.list_repo_tree(repo_id, recursive=True, revision=info.sha) if info.sha else ()
    there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    added = [CommitOperationAdd(name, path) for name, path in files.items() if not _is_same(path, there.get(name))]
    stale = [CommitOperationDelete(name) for name in there if name not in files and matches_any(name, managed)]
    return [*added, *stale]


def _commit(
    operations: list[CommitOperationAdd | CommitOperationDelete],
    repo_id: str,
    branch: str,
    info: ModelInfo,
    message: str,
    api: HfApi,
) -> str:
    """One commit on top of `info`, or none where there is nothing to do; returns the commit that holds the files."""
    if not operations and info.sha:
        return info.sha
    logger.info("Pushing %d files to %s", len(operations), repo_id)
    commit = api.create_commit(repo_id, operations, commit_message=message, revision=branch, parent_commit=info.sha)
    return commit.oid


def _is_same(path: Path, there: RepoFile | None) -> bool:
    """Whether the Hub's file has the bytes of the local one."""
    if there is None or there.size != path.stat().st_size:
        return False
    if there.lfs is None:
        return git_hash(path.read_bytes()) == there.blob_id
    with path.open("rb") as file:
        return sha_fileobj(file).hex() == there.lfs.sha256
