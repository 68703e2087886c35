"""The Hub: what is checked before training, and one commit with everything after it."""

from __future__ import annotations

import json
import logging
import mmap
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2
import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, ModelCard, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import parse_ratelimit_headers, validate_repo_id
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from blip_recipe.errors import PushError, RecipeError

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

logger = logging.getLogger(__name__)

T = TypeVar("T")

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "recipe.json",
    "samples.png",
    "training_curves.png",
    "all_results.json",
)
"""Patterns of the files that a run makes anew, and that are deleted from a repository when a new run lacks them."""

PUBLISHED_FILES = (*MODEL_FILES, "README.md")
"""Patterns of the files of an output directory that are published; nothing else ever is."""

WAITS_BEFORE = (0.5, 1.0, 2.0)
"""Seconds between attempts before training, when a person is waiting and nothing is lost."""

WAITS_PUSH = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds between attempts to push, unless the Hub names its own (`Retry-After`)."""

LONGEST_WAIT = 300.0
"""Seconds after which we ask again whatever the Hub says: its rate limits are counted in windows of five minutes."""

HUB_ERRORS = (OSError, httpx2.HTTPError, RuntimeError, ValueError)
"""What the client raises: `HfHubHTTPError` is an `OSError`, the transfer library raises `RuntimeError`, an invalid card
or an answer that is no JSON is a `ValueError`."""

WRITER_ROLES = ("admin", "write", "contributor")
LOG_IN = "run `hf auth login` or set HF_TOKEN to a token with write access"


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
        The full `namespace/name`.

    Raises:
        RecipeError: The name is invalid, there is no valid token, it may not write there, or the Hub is out of reach.
    """
    check_repo_id(
        repo_id or default_name, "hub_model_id" if repo_id else "hub_model_id is not given; output_dir's name"
    )
    try:
        me = _with_retries(api.whoami, waits)
        full_name = repo_id or default_name
        if "/" not in full_name:
            full_name = f"{me['name']}/{full_name}"
        existing = _with_retries(lambda: _find_model(full_name, api), waits)
    except LocalTokenNotFoundError as error:
        raise RecipeError(f"{repo_id or default_name} is to be pushed, but there is no Hub token: {LOG_IN}.") from error
    except HUB_ERRORS as error:
        raise RecipeError(_explain(error, api)) from error
    _check_write_access(full_name, me, exists=existing is not None)
    if existing and private and not existing.private:
        raise RecipeError(
            f"{full_name} is to be private, but it exists and is public: make it private in its settings on the Hub, "
            "or choose another name."
        )
    return full_name


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


def published_files(folder: Path) -> dict[str, Path]:
    """The files of an output directory that are published, by name.

    Raises:
        RecipeError: The directory is no finished output directory: it has no weights, or nothing that says of what.
    """
    files = {
        path.name: path for path in sorted(folder.glob("*")) if path.is_file() and _is_in(path.name, PUBLISHED_FILES)
    }
    if not any(name.endswith(".safetensors") for name in files) or not {"config.json", "adapter_config.json"} & set(
        files
    ):
        raise RecipeError(
            f"{folder} holds no finished model: expected model.safetensors and config.json, or "
            "adapter_model.safetensors and adapter_config.json, as a run leaves them in its output_dir."
        )
    if "adapter_config.json" in files:
        _check_base(json.loads(files["adapter_config.json"].read_text(encoding="utf-8")), folder)
    return files


def _check_base(adapter: dict[str, Any], folder: Path) -> None:
    """Refuse an adapter whose base model nobody else can load."""
    base = adapter.get("base_model_name_or_path")
    if not base or Path(base).expanduser().exists() or Path(base).is_absolute():
        raise RecipeError(
            f"{folder} is an adapter of {base!r}, which is not on the Hub, so nobody else could load it: fold it into "
            f"a plain model with `python -m blip_recipe.merge {folder} OUT`, and push OUT."
        )


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None,
    message: str,
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
        api: The client, with the token if it is not the one of the environment.
        waits: Seconds between attempts.

    Raises:
        RecipeError: The directory holds no finished model.
        PushError: The files may not be published, or the Hub did not take them; says how to finish.
    """
    files = published_files(folder)
    try:
        _check_contents(files, api)
        before = _with_retries(lambda: published_revision(repo_id, api), waits)
        revision = _with_retries(lambda: _push_once(files, repo_id, private, message, api), waits)
    except (PushError, *HUB_ERRORS) as error:
        reason = str(error) if isinstance(error, PushError) else _explain(error, api)
        raise PushError(
            f"{folder} was not pushed to {repo_id}. {reason}\nThe model is saved; when that is put right, finish with: "
            f"python -m blip_recipe.push {shlex.quote(str(folder))} --repo_id {repo_id}"
        ) from error
    return PushResult(f"{api.endpoint}/{repo_id}", revision, committed=revision != before)


def published_revision(repo_id: str, api: HfApi) -> str | None:
    """The commit that a model repository's main branch is at; `None` where there is no such repository."""
    info = _find_model(repo_id, api)
    return info.sha if info else None


def _push_once(files: dict[str, Path], repo_id: str, private: bool | None, message: str, api: HfApi) -> str:
    """Compare, and commit the difference if there is one; returns the commit that holds the files."""
    info = _find_model(repo_id, api)
    if info is None:
        api.create_repo(repo_id, private=private, exist_ok=True)
        info = api.model_info(repo_id)
    elif private and not info.private:
        raise PushError("A private repository was asked for, but it exists and is public.")
    tree = api.list_repo_tree(repo_id, revision=info.sha) if info.sha else ()
    there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, path) for name, path in files.items() if not _is_same(path, there.get(name))
    ]
    operations += [CommitOperationDelete(name) for name in there if name not in files and _is_in(name, MODEL_FILES)]
    if not operations and info.sha:
        return info.sha
    logger.info("Pushing %d files to %s", len(operations), repo_id)
    return api.create_commit(repo_id, operations, commit_message=message, parent_commit=info.sha).oid


def _find_model(repo_id: str, api: HfApi) -> ModelInfo | None:
    """What the Hub knows of a model; `None` where it does not exist, or not for this token."""
    try:
        return api.model_info(repo_id)
    except RepositoryNotFoundError:
        return None


def _is_same(path: Path, there: RepoFile | None) -> bool:
    """Whether the Hub's file has the bytes of the local one."""
    if there is None or there.size != path.stat().st_size:
        return False
    if there.lfs is None:
        return git_hash(path.read_bytes()) == there.blob_id
    with path.open("rb") as file:
        return sha_fileobj(file).hex() == there.lfs.sha256


def _is_in(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_contents(files: dict[str, Path], api: HfApi) -> None:
    """Refuse to publish the token, a pickle under another name, or a card that the Hub would refuse."""
    token = api.token if isinstance(api.token, str) else get_token()
    for name, path in files.items():
        if token and _contains(path, token.encode()):
            raise PushError(f"{name} contains the Hub token of this session: remove it, and have the token replaced.")
        if _is_pickle(path):
            raise PushError(f"{name} is not the file its name says, but a pickle or damaged: save the model again.")
    if "README.md" in files:
        try:
            ModelCard.load(files["README.md"])
        except (ValueError, TypeError, yaml.YAMLError) as error:
            raise PushError(f"The metadata of README.md cannot be read: {error}") from error


def _contains(path: Path, secret: bytes) -> bool:
    """Whether the bytes stand anywhere in a file, weights of any size included."""
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(secret) >= 0


def _is_pickle(path: Path) -> bool:
    """Whether a file is a pickle (protocol 2 and later) or the zip archive of `torch.save`, whatever its name."""
    with path.open("rb") as file:
        head = file.read(9)
    if path.suffix == ".safetensors":
        # Eight bytes of length, any of them, then a JSON object.
        return head[8:] != b"{"
    return head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and head[1:2] <= b"\x05")


def _with_retries(call: Callable[[], T], waits: Sequence[float]) -> T:
    """Call until it succeeds, fails for good, or failed once more than there are waits."""
    for wait in waits:
        try:
            return call()
        except HUB_ERRORS as error:
            if not _may_pass(error):
                raise
            seconds = min(LONGEST_WAIT, _asked_wait(error) or wait)
            logger.warning("The Hub did not answer as it should (%s); trying again in %g s", _headline(error), seconds)
            time.sleep(seconds)
    return call()


def _may_pass(error: Exception) -> bool:
    """Whether trying again may help: the network, the server, a rate limit, or a commit that came in between."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 409, 412, 429) or error.response.status_code >= 500
    if isinstance(error, OfflineModeIsEnabled):
        return False
    # A gateway's error page instead of JSON is the network's fault too.
    return isinstance(error, (httpx2.TransportError, ConnectionError, TimeoutError, RuntimeError, JSONDecodeError))


def _asked_wait(error: Exception) -> float | None:
    """The seconds that the Hub asks us to wait: `Retry-After` as a number or a date, or its own `ratelimit` header."""
    if not isinstance(error, HfHubHTTPError):
        return None
    headers = error.response.headers
    if asked := headers.get("Retry-After"):
        return float(asked) if asked.isdecimal() else max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit and limit.remaining == 0 else None


def _explain(error: Exception, api: HfApi) -> str:
    """An error of the client as a sentence that says what to do."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing can be pushed: unset it, or do not push."
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401:
        return f"{api.endpoint} does not accept the Hub token: {LOG_IN}."
    if status == 403:
        return f"{api.endpoint} refuses it ({_headline(error)}): {LOG_IN}, or choose a repository you may write to."
    if isinstance(error, (httpx2.TransportError, ConnectionError, TimeoutError)):
        return f"{api.endpoint} cannot be reached ({_headline(error)}): check the network and HF_ENDPOINT."
    return f"{api.endpoint} answered with an error: {_headline(error)}."


def _headline(error: Exception) -> str:
    """The first line of an error that says something, with the status where the Hub gave one."""
    if isinstance(error, HfHubHTTPError) and error.server_message:
        return f"{error.response.status_code}: {error.server_message.splitlines()[0].rstrip('.')}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__
