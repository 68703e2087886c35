"""What the loopback Hub answers: one function an endpoint, and the table of their addresses."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, urlencode

import yaml

if TYPE_CHECKING:
    from hub_server import Commit, HubServer, Kind, Repository, StoredFile, Token

PREFIXES: dict[Kind, str] = {"model": "", "dataset": "datasets/", "space": "spaces/"}
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pkl", ".parquet", ".arrow", ".tar", ".zip")


def goes_to_lfs(name: str, sample: bytes, size: int) -> bool:
    """Whether a file is kept as an LFS object: by its suffix, its size, or because it is not text."""
    return size > 0 and (name.endswith(LFS_SUFFIXES) or size > 10_000_000 or b"\0" in sample)


@dataclass
class Call:
    """A request on its way through the server."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Message
    body: bytes
    token: Token | None
    parts: dict[str, str] = field(default_factory=dict)


@dataclass
class Answer:
    """What the server says: JSON, or the bytes of a file."""

    content: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """An error answer, with the `X-Error-Code` that clients tell errors apart by."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer = Answer({"error": message}, status, headers)


class Moved(Refusal):
    """The repository has another name now."""

    def __init__(self, location: str) -> None:
        super().__init__(307, "Temporary Redirect")
        self.answer.headers = {"Location": location}


def _repository(hub: HubServer, call: Call, *, write: bool = False) -> Repository:
    """The repository of a call, as far as the token may see or change it."""
    kind = cast("Kind", call.parts["kind"].rstrip("s/") or "model")
    named = call.parts["repo"]
    if now := hub.former_names.get((kind, named)):
        raise Moved(f"{hub.url}{call.path.replace(named, now, 1)}?{urlencode(call.query, doseq=True)}")
    repository = hub.repositories.get((kind, named))
    if repository is None and call.path.startswith("/api/"):
        # As on the real Hub: the API does not mind capitals, the addresses of git do.
        repository = next(
            (each for (of, name), each in hub.repositories.items() if (of, name.lower()) == (kind, named.lower())), None
        )
    if repository is None or not hub.may_read(call.token, repository):
        raise Refusal(404 if call.token else 401, "Repository not found", "RepoNotFound")
    if write and not hub.may_write(call.token, repository.repo_id):
        raise Refusal(403 if call.token else 401, f"You are not allowed to write to {repository.repo_id}")
    return repository


def _commit_of(repository: Repository, revision: str) -> Commit:
    commit = repository.find(revision or "main")
    if commit is None:
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


def whoami(hub: HubServer, call: Call) -> Answer:
    """The user, the organisations with the role there, and what the token may do."""
    token = call.token
    if token is None:
        raise Refusal(401, "Invalid username or password.")
    access: dict[str, Any] = {"displayName": "test", "role": token.role}
    if token.role == "fineGrained":
        kinds = {name: "model" if "/" in name else "org" if name in hub.orgs else "user" for name in token.write_to}
        entities = [{"type": kind, "name": name} for name, kind in kinds.items()]
        permissions = ["repo.content.read", "repo.write"]
        access["fineGrained"] = {"global": [], "scoped": [{"entity": e, "permissions": permissions} for e in entities]}
    roles = {org: members[token.user] for org, members in hub.orgs.items() if token.user in members}
    orgs = [{"type": "org", "name": org, "fullname": org, "roleInOrg": role} for org, role in roles.items()]
    auth = {"type": "access_token", "accessToken": access}
    return Answer({"type": "user", "name": token.user, "fullname": token.user, "orgs": orgs, "auth": auth})


def create_repository(hub: HubServer, call: Call) -> Answer:
    """A new repository; 409 where there is one already."""
    wish = json.loads(call.body)
    if call.token is None:
        raise Refusal(401, "Invalid username or password.")
    kind: Kind = wish.get("type") or "model"
    repo_id = f"{wish.get('organization') or call.token.user}/{wish['name']}"
    if not hub.may_write(call.token, repo_id):
        raise Refusal(403, f"You don't have the rights to create a {kind} under this namespace")
    if kind == "space" and not wish.get("sdk"):
        raise Refusal(400, "A Space needs an sdk")
    url = f"{hub.url}/{PREFIXES[kind]}{repo_id}"
    if (kind, repo_id) in hub.repositories:
        message = f"You already created this {kind} repo"
        return Answer({"error": message, "url": url}, 409, {"X-Error-Message": message})
    hub.create(kind, repo_id, private=bool(wish.get("private")) or wish.get("visibility") == "private")
    return Answer({"url": url, "name": repo_id})


def repository_info(hub: HubServer, call: Call) -> Answer:
    """What is known of a repository at a revision, its card's metadata among it."""
    repository = _repository(hub, call)
    commit = _commit_of(repository, call.parts["revision"])
    card = commit.files.get("README.md")
    block = re.match(r"---\n(.*?\n)---", card.path.read_text(encoding="utf-8"), re.DOTALL) if card else None
    metadata = yaml.safe_load(block[1]) if block else {}
    siblings = [
        {"rfilename": name, "size": file.size, "blobId": file.oid, "lfs": file.describe(name).get("lfs")}
        for name, file in sorted(commit.files.items())
    ]
    info = {
        "_id": hashlib.sha1(repository.repo_id.encode()).hexdigest()[:24],
        "id": repository.repo_id,
        "author": repository.repo_id.split("/")[0],
        "sha": commit.oid,
        "private": repository.private,
        "gated": "auto" if repository.gated else False,
        "disabled": False,
        "lastModified": commit.date,
        "createdAt": commit.date,
        "downloads": 0,
        "likes": 0,
        "tags": metadata.get("tags") or [],
        "cardData": metadata,
        "siblings": siblings,
    }
    if repository.kind == "model":
        info |= {"modelId": repository.repo_id}
        info |= {key: metadata[key] for key in ("pipeline_tag", "library_name") if key in metadata}
    return Answer(info)


def tree(hub: HubServer, call: Call) -> Answer:
    """The entries of a folder, or of all folders below it."""
    commit = _commit_of(_repository(hub, call), call.parts["revision"])
    root = call.parts["path"].strip("/")
    prefix = f"{root}/" if root else ""
    recursive = call.query.get("recursive", ["false"])[0].lower() == "true"
    inside = {name: file for name, file in sorted(commit.files.items()) if name.startswith(prefix)}
    if root and not inside:
        raise Refusal(404, f"{root} does not exist on this revision", "EntryNotFound")
    entries = [
        *(
            _folder_entry(folder)
            for folder in _folders(inside, prefix)
            if recursive or "/" not in folder[len(prefix) :]
        ),
        *(file.describe(name) for name, file in inside.items() if recursive or "/" not in name[len(prefix) :]),
    ]
    return Answer([entry | {"lastCommit": _last_commit(commit)} for entry in entries])


def _folders(names: Mapping[str, object], prefix: str) -> list[str]:
    """All folders below `prefix` that hold one of the files."""
    parents = {str(parent) for name in names for parent in Path(name).parents}
    return sorted(folder for folder in parents if folder != "." and folder.startswith(prefix))


def _folder_entry(folder: str) -> dict[str, Any]:
    return {"type": "directory", "path": folder, "oid": hashlib.sha1(folder.encode()).hexdigest(), "size": 0}


def _last_commit(commit: Commit) -> dict[str, Any]:
    return {"id": commit.oid, "title": commit.title, "date": commit.date}


def paths_info(hub: HubServer, call: Call) -> Answer:
    """The entries of the paths asked for (form-encoded or JSON), those that exist."""
    commit = _commit_of(_repository(hub, call), call.parts["revision"])
    is_json = "json" in call.headers.get("Content-Type", "")
    paths = json.loads(call.body)["paths"] if is_json else parse_qs(call.body.decode()).get("paths", [])
    folders = _folders(commit.files, "")
    entries = [commit.files[path].describe(path) for path in paths if path in commit.files]
    entries += [_folder_entry(path) for path in paths if path in folders]
    return Answer([entry | {"lastCommit": _last_commit(commit)} for entry in entries])


def references(hub: HubServer, call: Call) -> Answer:
    """Branches and tags."""
    repository = _repository(hub, call)

    def listed(kind: str, names: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in names.items()]

    return Answer(
        {"branches": listed("heads", repository.branches), "tags": listed("tags", repository.tags), "converts": []}
    )


def history(hub: HubServer, call: Call) -> Answer:
    """The commits of a revision, newest first."""
    repository = _repository(hub, call)
    _commit_of(repository, call.parts["revision"])
    commits = hub.commits(repository.repo_id, repository.kind, call.parts["revision"])
    return Answer([_last_commit(commit) | {"message": "", "authors": []} for commit in commits])


def change_reference(hub: HubServer, call: Call) -> Answer:
    """Make or delete a branch or a tag."""
    repository = _repository(hub, call, write=True)
    wish = json.loads(call.body or b"{}")
    is_tag = call.parts["reference"] == "tag"
    names = repository.tags if is_tag else repository.branches
    # A tag's own name is in the body, its revision in the path; a branch is the other way round.
    name = wish["tag"] if is_tag and call.method == "POST" else call.parts["name"]
    if call.method == "DELETE":
        if name not in names:
            raise Refusal(404, f"No {call.parts['reference']} {name}", "RevisionNotFound")
        del names[name]
        return Answer({})
    if name in names:
        raise Refusal(409, f"Reference already exists: {name}")
    start = call.parts["name"] if is_tag else wish.get("startingPoint", "main")
    names[name] = _commit_of(repository, start).oid
    return Answer({})


def preupload(hub: HubServer, call: Call) -> Answer:
    """Which files go as LFS objects, and what there is under their names already."""
    repository = _repository(hub, call, write=True)
    commit = _commit_of(repository, call.parts["revision"])
    answers = []
    for file in json.loads(call.body)["files"]:
        is_lfs = goes_to_lfs(file["path"], base64.b64decode(file["sample"]), file["size"])
        there = commit.files.get(file["path"])
        oid = None if there is None else there.sha256 if there.is_lfs else there.oid
        mode = "lfs" if is_lfs else "regular"
        answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return Answer({"files": answers})


def lfs_batch(hub: HubServer, call: Call) -> Answer:
    """Where to put LFS objects; nothing to do for those that are here already."""
    _repository(hub, call, write=True)
    objects = []
    for wanted in json.loads(call.body)["objects"]:
        actions = {"upload": {"href": f"{hub.url}/lfs/{wanted['oid']}"}, "verify": {"href": f"{hub.url}/lfs/verify"}}
        there = (hub.objects / wanted["oid"]).exists()
        objects.append({"oid": wanted["oid"], "size": wanted["size"]} | ({} if there else {"actions": actions}))
    return Answer({"transfer": "basic", "objects": objects})


def lfs_put(hub: HubServer, call: Call) -> Answer:
    """Take an LFS object; the URL is the permission, as with the real Hub's signed ones."""
    if hashlib.sha256(call.body).hexdigest() != call.parts["oid"]:
        raise Refusal(400, "The bytes are not those of the oid")
    hub.store(call.body, is_lfs=True)
    return Answer({})


def lfs_verify(hub: HubServer, call: Call) -> Answer:
    """Whether an LFS object arrived whole."""
    wanted = json.loads(call.body)
    path = hub.objects / wanted["oid"]
    if not path.exists() or path.stat().st_size != wanted["size"]:
        raise Refusal(404, "Object not found")
    return Answer({})


def make_commit(hub: HubServer, call: Call) -> Answer:
    """One commit from newline-delimited JSON: a header, then files, LFS files and deletions."""
    repository = _repository(hub, call, write=True)
    branch = call.parts["revision"]
    head = _commit_of(repository, branch)
    lines = [json.loads(line) for line in call.body.splitlines() if line]
    header = lines[0]["value"]
    if header.get("parentCommit", head.oid) != head.oid:
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    added: dict[str, StoredFile] = {}
    deleted: set[str] = set()
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "file":
            added[value["path"]] = hub.store(base64.b64decode(value["content"]), is_lfs=False)
        elif line["key"] == "lfsFile":
            if not (hub.objects / value["oid"]).exists():
                raise Refusal(400, f"Your push was rejected: the LFS object of {value['path']} was never uploaded")
            added[value["path"]] = hub.store(hub.objects / value["oid"], is_lfs=True)
        elif line["key"] == "deletedFile" and value["path"] not in head.files:
            raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        else:
            deleted.add(value["path"].rstrip("/"))
    commit = hub.commit(
        repository, branch, header["summary"], added, lambda name: bool({name, *map(str, Path(name).parents)} & deleted)
    )
    url = f"{hub.url}/{PREFIXES[repository.kind]}{repository.repo_id}/commit/{commit.oid}"
    return Answer({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})


def resolve(hub: HubServer, call: Call) -> Answer:
    """The bytes of a file, whole or a range."""
    repository = _repository(hub, call)
    if repository.gated and not hub.may_write(call.token, repository.repo_id):
        raise Refusal(403 if call.token else 401, f"Access to {repository.repo_id} is restricted", "GatedRepo")
    commit = _commit_of(repository, call.parts["revision"])
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    file = commit.files.get(call.parts["path"])
    if file is None:
        refusal = Refusal(404, "Entry not found", "EntryNotFound")
        refusal.answer.headers["X-Repo-Commit"] = commit.oid
        raise refusal
    headers["ETag"] = f'"{file.sha256 if file.is_lfs else file.oid}"'
    if file.is_lfs:
        headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(file.size)}
    data = file.path.read_bytes()
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("Range", ""))
    if wanted is None:
        return Answer(data, headers=headers)
    start = int(wanted[1]) if wanted[1] else max(0, len(data) - int(wanted[2]))
    stop = min(len(data), int(wanted[2]) + 1) if wanted[1] and wanted[2] else len(data)
    if start >= len(data):
        raise Refusal(416, "Requested range not satisfiable")
    return Answer(data[start:stop], 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})


def validate_card(hub: HubServer, call: Call) -> Answer:
    """Whether the metadata of a card is YAML with names and values."""
    block = re.match(r"---\n(.*?\n)---", json.loads(call.body)["content"], re.DOTALL)
    try:
        sound = block is None or isinstance(yaml.safe_load(block[1]), dict)
    except yaml.YAMLError:
        sound = False
    errors = [] if sound else [{"message": "the metadata block is not a YAML mapping"}]
    return Answer({"errors": errors, "warnings": []}, 200 if sound else 400)


API = "/api/(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"
REVISION = "/(?P<revision>[^/]+)"
ROUTES: list[tuple[str, str, Callable[[HubServer, Call], Answer]]] = [
    ("GET", "/api/whoami-v2", whoami),
    ("POST", "/api/repos/create", create_repository),
    ("POST", "/api/validate-yaml", validate_card),
    ("GET", f"{API}(?:/revision{REVISION})?", repository_info),
    ("GET", f"{API}/tree{REVISION}(?:/(?P<path>.*))?", tree),
    ("POST", f"{API}/paths-info{REVISION}", paths_info),
    ("GET", f"{API}/refs", references),
    ("GET", f"{API}/commits{REVISION}", history),
    ("POST DELETE", f"{API}/(?P<reference>branch|tag)/(?P<name>[^/]+)", change_reference),
    ("POST", f"{API}/preupload{REVISION}", preupload),
    ("POST", f"{API}/commit{REVISION}", make_commit),
    ("POST", "/(?P<kind>datasets/|spaces/)?(?P<repo>[^/]+/[^/]+)\\.git/info/lfs/objects/batch", lfs_batch),
    ("POST", "/lfs/verify", lfs_verify),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", lfs_put),
    ("GET HEAD", f"/(?P<kind>datasets/|spaces/)?(?P<repo>[^/]+/[^/]+)/resolve{REVISION}/(?P<path>.+)", resolve),
]
