"""A small Hub on loopback that the real clients drive: repositories, commits, LFS, tokens, and faults on demand.

`huggingface_hub`, `datasets` and `transformers` talk to it over HTTP as they talk to the real one, so that tests of
pushing and loading replace nothing. It keeps what those clients ask for, no more: no pull requests, no Xet, no search.

    python tests/hub_server.py --port 8000 --seed-model lab/tiny=outputs/tiny
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

Kind = Literal["model", "dataset"]
Content = bytes | Path

WRITE_TOKEN = "hf_testerMayWrite"
READ_TOKEN = "hf_testerMayRead"
FINE_TOKEN = "hf_testerMayWriteToLab"
INITIAL_FILES: dict[str, Content] = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pkl", ".parquet", ".arrow", ".tar", ".zip")
WRITER_ROLES = ("admin", "write", "contributor")


@dataclass(frozen=True)
class Token:
    """What a token may do; a fine-grained one writes to the users, organisations and repositories in `write_to`."""

    user: str
    role: Literal["read", "write", "fineGrained"] = "write"
    write_to: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit: its git blob id (for LFS that of the pointer), its sha256, and where its bytes are."""

    oid: str
    sha256: str
    size: int
    is_lfs: bool
    path: Path

    def describe(self, name: str) -> dict[str, Any]:
        """The file as the tree and paths-info endpoints tell it."""
        entry: dict[str, Any] = {"type": "file", "path": name, "oid": self.oid, "size": self.size}
        if self.is_lfs:
            entry["lfs"] = {
                "oid": self.sha256,
                "sha256": self.sha256,  # trees say oid, repository infos sha256
                "size": self.size,
                "pointerSize": len(_lfs_pointer(self.sha256, self.size)),
            }
        return entry


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    oid: str
    parent: str | None
    title: str
    date: str
    files: dict[str, StoredFile]


@dataclass
class Repository:
    """A model or a data set with its history."""

    kind: Kind
    repo_id: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        """The commit of a branch, tag or commit id (or the first seven characters of one)."""
        named = self.branches.get(revision) or self.tags.get(revision)
        if named is None and re.fullmatch("[0-9a-f]{7,40}", revision):
            named = next((oid for oid in self.commits if oid.startswith(revision)), None)
        return self.commits[named] if named else None


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose `METHOD /path` is found by the expression `request`."""

    request: str
    status: int | None = None
    drop: Literal["before", "after"] | None = None
    """Close the connection without an answer, before or after the request took effect."""
    delay: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    first: Callable[[], object] | None = None
    """Called before the request is handled, e.g. to commit something else in between."""
    times: int = 1


@dataclass
class LoggedRequest:
    """A request that arrived; `status` is None where the connection was closed without an answer."""

    method: str
    path: str
    status: int | None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


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


class HubServer:
    """A Hub on loopback, for the time of a `with`.

    Args:
        tokens: Tokens that are known; default: a writing, a reading and a fine-grained one of the user `tester`.
        orgs: Organisations with the roles of their members; default: `lab` (write) and `library` (read).
        port: The port to listen on; 0 takes a free one.
    """

    def __init__(
        self,
        tokens: dict[str, Token] | None = None,
        orgs: dict[str, dict[str, str]] | None = None,
        port: int = 0,
    ) -> None:
        self.tokens = tokens or {
            WRITE_TOKEN: Token("tester"),
            READ_TOKEN: Token("tester", "read"),
            FINE_TOKEN: Token("tester", "fineGrained", ("lab",)),
        }
        self.orgs = orgs or {"lab": {"tester": "write"}, "library": {"tester": "read"}}
        self.repositories: dict[tuple[Kind, str], Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[LoggedRequest] = []
        self.lock = threading.RLock()
        self._folder = tempfile.TemporaryDirectory(prefix="hub_")
        self.objects = Path(self._folder.name) / "objects"
        self.objects.mkdir()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"hub": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._folder.cleanup()

    def environment(self, token: str | None = WRITE_TOKEN, home: Path | None = None) -> dict[str, str]:
        """The environment of a child process that knows this Hub alone; `home` is its cache (default: the server's)."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) and not key.lower().endswith("_proxy")
        }
        ours = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home or Path(self._folder.name) / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        return kept | ours | ({"HF_TOKEN": token} if token else {})

    def publish_model(self, repo_id: str, files: Path | Mapping[str, Content], **options: bool) -> str:
        """Commit a folder, or files by name, to a model (made if needed; `private`, `gated`); returns the commit id."""
        return self._publish("model", repo_id, files, **options)

    def publish_dataset(self, repo_id: str, files: Path | Mapping[str, Content], **options: bool) -> str:
        """Commit a folder, or files by name, to a data set, as `publish_model` does."""
        return self._publish("dataset", repo_id, files, **options)

    def _publish(self, kind: Kind, repo_id: str, files: Path | Mapping[str, Content], **options: bool) -> str:
        if isinstance(files, Path):
            root = files
            files = {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}
        with self.lock:
            repository = self.repositories.get((kind, repo_id)) or self.create(kind, repo_id, **options)
            added = {name: self.store(content, name=name) for name, content in files.items()}
            return self.commit(repository, "main", "Publish", added).oid

    def create(self, kind: Kind, repo_id: str, *, private: bool = False, gated: bool = False) -> Repository:
        """Make a repository with the initial commit that the real Hub makes."""
        repository = self.repositories[kind, repo_id] = Repository(kind, repo_id, private, gated)
        added = {name: self.store(content, name=name) for name, content in INITIAL_FILES.items()}
        self.commit(repository, "main", "initial commit", added)
        return repository

    def commits(self, repo_id: str, kind: Kind = "model", revision: str = "main") -> list[Commit]:
        """The history of a branch, newest first; the last one is the Hub's own initial commit."""
        repository = self.repositories[kind, repo_id]
        commit, history = repository.find(revision), []
        while commit:
            history.append(commit)
            commit = repository.commits[commit.parent] if commit.parent else None
        return history

    def files(self, repo_id: str, revision: str = "main", kind: Kind = "model") -> dict[str, bytes]:
        """The files of a revision with their bytes, without `.gitattributes`."""
        commit = self.commits(repo_id, kind, revision)[0]
        return {name: file.path.read_bytes() for name, file in commit.files.items() if name not in INITIAL_FILES}

    def inject(self, request: str, **fault: Any) -> Fault:
        """Let requests fail: see `Fault`, e.g. `inject("POST .*/commit/", status=503)`."""
        self.faults.append(Fault(request, **fault))
        return self.faults[-1]

    def requested(self, expression: str) -> list[LoggedRequest]:
        """The requests so far whose `METHOD /path` is found by a regular expression."""
        return [request for request in self.requests if re.search(expression, str(request))]

    def store(self, content: Content, *, name: str = "", is_lfs: bool | None = None) -> StoredFile:
        """Keep bytes; whether they are an LFS object is decided by name and content unless said."""
        data = content.read_bytes() if isinstance(content, Path) else content
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.objects / sha256
        path.write_bytes(data)
        is_lfs = goes_to_lfs(name, data[:512], len(data)) if is_lfs is None else is_lfs
        oid = _git_blob_id(_lfs_pointer(sha256, len(data)) if is_lfs else data)
        return StoredFile(oid, sha256, len(data), is_lfs, path)

    def commit(
        self,
        repository: Repository,
        branch: str,
        title: str,
        added: Mapping[str, StoredFile],
        deleted: Callable[[str], bool] = lambda name: False,
    ) -> Commit:
        """Move a branch on by one commit."""
        parent = repository.branches.get(branch)
        files = {} if parent is None else repository.commits[parent].files
        files = {name: file for name, file in files.items() if not deleted(name)} | dict(added)
        date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        oid = hashlib.sha1(f"{parent} {title} {sorted(files)} {time.time_ns()}".encode()).hexdigest()
        commit = repository.commits[oid] = Commit(oid, parent, title, date, files)
        repository.branches[branch] = oid
        return commit

    def may_write(self, token: Token | None, repo_id: str) -> bool:
        """Whether a token may create or change a repository."""
        namespace = repo_id.split("/")[0]
        if token is None or token.role == "read":
            return False
        if token.role == "fineGrained" and not {namespace, repo_id} & set(token.write_to):
            return False
        return namespace == token.user or self.orgs.get(namespace, {}).get(token.user) in WRITER_ROLES

    def may_read(self, token: Token | None, repository: Repository) -> bool:
        """Whether a token, or nobody in particular, may see a repository."""
        namespace = repository.repo_id.split("/")[0]
        member = token is not None and (namespace == token.user or token.user in self.orgs.get(namespace, {}))
        return member or not repository.private


class _Handler(BaseHTTPRequestHandler):
    """HTTP/1.1 on one side, `ROUTES` on the other."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Requests are kept in `HubServer.requests`, not printed."""

    def handle_one_request(self) -> None:
        # Clients close connections when they please; that is no error of the server's.
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def do_GET(self) -> None:
        body = self._read_body()
        logged = LoggedRequest(self.command, self.path, None)
        with self.hub.lock:
            self.hub.requests.append(logged)
            fault = next(
                (each for each in self.hub.faults if each.times and re.search(each.request, str(logged))), None
            )
            if fault:
                fault.times -= 1
        if fault and fault.first:
            fault.first()
        if fault:
            time.sleep(fault.delay)
        if fault and fault.drop == "before":
            return self._hang_up()
        if fault and fault.status:
            answer = Answer({"error": "Injected fault"}, fault.status, fault.headers)
        else:
            answer = self._answer(body)
        if fault and fault.drop == "after":
            return self._hang_up()
        logged.status = answer.status
        return self._send(answer)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, body: bytes) -> Answer:
        url = urlsplit(self.path)
        secret = self.headers.get("Authorization", "").removeprefix("Bearer ")
        token = self.hub.tokens.get(secret)
        call = Call(self.command, url.path, parse_qs(url.query), self.headers, body, token)
        try:
            if secret and token is None:
                raise Refusal(401, "Invalid credentials in Authorization header")
            for methods, expression, route in ROUTES:
                if self.command in methods.split() and (match := re.fullmatch(expression, url.path)):
                    call.parts = {key: unquote(value) for key, value in match.groupdict("").items()}
                    with self.hub.lock:
                        return route(self.hub, call)
            raise Refusal(404, f"No such page: {url.path}")
        except Refusal as refusal:
            return refusal.answer

    def _send(self, answer: Answer) -> None:
        data = answer.content if isinstance(answer.content, bytes) else json.dumps(answer.content).encode()
        self.send_response(answer.status)
        for key, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **answer.headers,
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def goes_to_lfs(name: str, sample: bytes, size: int) -> bool:
    """Whether a file is kept as an LFS object: by its suffix, its size, or because it is not text."""
    return size > 0 and (name.endswith(LFS_SUFFIXES) or size > 10_000_000 or b"\0" in sample)


def _git_blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _repository(hub: HubServer, call: Call, *, write: bool = False) -> Repository:
    """The repository of a call, as far as the token may see or change it."""
    kind: Kind = "dataset" if call.parts["kind"].startswith("dataset") else "model"
    repository = hub.repositories.get((kind, call.parts["repo"]))
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
    url = f"{hub.url}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
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
    url = f"{hub.url}/{'datasets/' if repository.kind == 'dataset' else ''}{repository.repo_id}/commit/{commit.oid}"
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


API = "/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
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
    ("POST", "/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)\\.git/info/lfs/objects/batch", lfs_batch),
    ("POST", "/lfs/verify", lfs_verify),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", lfs_put),
    ("GET HEAD", f"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve{REVISION}/(?P<path>.+)", resolve),
]


def main() -> None:
    """Serve until interrupted, for trying things by hand."""
    parser = argparse.ArgumentParser(description="A Hub on loopback, with the user `tester`.")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    parser.add_argument("--seed-model", action="append", default=[], metavar="ORG/NAME=DIR")
    parser.add_argument("--seed-dataset", action="append", default=[], metavar="ORG/NAME=DIR")
    arguments = parser.parse_args()
    with HubServer(port=arguments.port) as hub:
        for seeds, publish in (
            (arguments.seed_model, hub.publish_model),
            (arguments.seed_dataset, hub.publish_dataset),
        ):
            for repo_id, _, folder in (seed.partition("=") for seed in seeds):
                publish(repo_id, Path(folder))
        print(f"{hub.url}\nexport HF_ENDPOINT={hub.url} HF_TOKEN={WRITE_TOKEN} HF_HUB_DISABLE_XET=1", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("stopped")


if __name__ == "__main__":
    main()
