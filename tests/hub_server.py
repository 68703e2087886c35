"""A small Hub on loopback that the real clients drive: repositories, commits, LFS, tokens, and faults on demand.

`huggingface_hub`, `datasets` and `transformers` talk to it over HTTP as they talk to the real one, so that tests of
pushing and loading replace nothing. It keeps what those clients ask for, no more: no pull requests, no Xet, no search.

    python tests/hub_server.py --port 8000 --seed-model lab/tiny=outputs/tiny
"""

from __future__ import annotations

import argparse
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
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from hub_routes import ROUTES, Answer, Call, Refusal, goes_to_lfs

Kind = Literal["model", "dataset", "space"]
Content = bytes | Path

WRITE_TOKEN = "hf_testerMayWrite"
READ_TOKEN = "hf_testerMayRead"
FINE_TOKEN = "hf_testerMayWriteToLab"
INITIAL_FILES: dict[str, Content] = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
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
    skip: int = 0
    """How many such requests pass unharmed first."""

    def meets(self, request: LoggedRequest) -> bool:
        """Whether it is this request that goes wrong; counts the ones that pass, and the ones that do not."""
        if not self.times or not re.search(self.request, str(request)):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


@dataclass
class LoggedRequest:
    """A request that arrived; `status` is None where the connection was closed without an answer."""

    method: str
    path: str
    status: int | None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


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
        self.former_names: dict[tuple[Kind, str], str] = {}
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
            # Said even where they are empty, so that they hold when laid over another environment.
            "HF_TOKEN": token or "",
            "NO_PROXY": "*",
        }
        return kept | ours

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

    def rename(self, old: str, new: str, kind: Kind = "model") -> None:
        """Move a repository; the old name redirects to the new one."""
        repository = self.repositories[kind, new] = self.repositories.pop((kind, old))
        repository.repo_id = self.former_names[kind, old] = new

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
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
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
            fault = next((each for each in self.hub.faults if each.meets(logged)), None)
        if fault and fault.first:
            fault.first()
        if fault:
            time.sleep(fault.delay)
        if fault and fault.drop == "before":
            return self._hang_up()
        if fault and fault.status:
            # A page such as a gateway shows: the Hub's own errors are JSON, but not everything on the way is the Hub.
            answer = Answer(b"<html>Out of order</html>", fault.status, {"Content-Type": "text/html"} | fault.headers)
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


def _git_blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


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
