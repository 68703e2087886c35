"""Pictures behind URLs are fetched within limits, from nowhere but the public network, unless the user allows more."""

from __future__ import annotations

import http.server
import io
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from blip_recipe.data.downloads import ALLOW_PRIVATE, DownloadError, download, is_public
from blip_recipe.data.images import BadImageError, open_image

PRIVATE = [
    *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
    *("224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254"),
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::7f00:1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
    *("2002:7f00:1::", "2002:a9fe:a9fe::1", "ff02::1", "fec0::1", "2001:db8::1"),
]
PUBLIC = ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_known_in_every_form(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_known_as_such(address: str) -> None:
    assert is_public(address)


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), "blue").save(buffer, "PNG")
    return buffer.getvalue()


class Server(http.server.BaseHTTPRequestHandler):
    """`/picture.png`; `/to/ADDRESS` leads there; `/endless` leads on and goes on.

    `/drip`, `/drip-header` send a byte now and then; `/short` stops.
    """

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        content = picture()
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
        elif self.path == "/endless":
            self.send_response(302)
            self.send_header("Location", "/picture.png")
            self.end_headers()
            self.drip(bytes(1000))
        elif self.path == "/drip-header":
            self.drip(b"HTTP/1.0 200 OK\r\nX: " + b"x" * 1000)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.path == "/drip":
                self.drip(content)
            elif self.path == "/short" and self.asked.count(self.path) == 1:
                self.wfile.write(content[:20])
            else:
                self.wfile.write(content)

    def drip(self, content: bytes) -> None:
        try:
            for byte in content:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
        except OSError:
            self.close_connection = True  # the client has had enough

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def of_data(url: str) -> dict[str, Any]:
    """A row of a data set."""
    return {"bytes": None, "path": url}


def in_forms(server: str) -> list[str]:
    """The address of a server on loopback, as somebody writes it who does not want it to be seen."""
    port = server.rpartition(":")[2]
    hosts = [
        "localhost",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "[::ffff:127.0.0.1]",
        "%3127.0.0.1",
        "①27.0.0.1",
    ]
    return [server, *(f"http://{host}:{port}" for host in hosts)]


def test_a_data_set_cannot_make_this_machine_ask_its_own_network(server: str) -> None:
    for address in in_forms(server):
        with pytest.raises(BadImageError, match=r"private address|not a valid host name"):
            open_image(of_data(f"{address}/picture.png"), timeout=3)
    with pytest.raises(BadImageError, match=f"169.254.169.254.*{ALLOW_PRIVATE}=1"):
        open_image(of_data("http://169.254.169.254/latest/meta-data"))
    assert Server.asked == []


def test_the_user_may_allow_it(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW_PRIVATE, "1")
    assert open_image(of_data(f"{server}/picture.png")).size == (3, 2)


def test_an_address_that_the_caller_names_is_asked(server: str) -> None:
    assert open_image(f"{server}/picture.png").size == (3, 2)
    assert open_image(f"{server}/to/{server}/picture.png").size == (3, 2)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The addresses of names, one lookup after the other; public ones lead to loopback all the same."""
    known: dict[str, list[str]] = {}
    look_up, connect = socket.getaddrinfo, socket.socket.connect

    def answer(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host not in known:
            return look_up(host, port, *arguments, **options)
        address = known[host].pop(0) if len(known[host]) > 1 else known[host][0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    def lead(self: socket.socket, address: Any) -> None:
        connect(self, ("127.0.0.1", address[1]) if address[0] == "1.1.1.1" else address)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    monkeypatch.setattr(socket.socket, "connect", lead)
    return known


def test_a_name_is_looked_up_once_and_that_address_is_asked(server: str, names: dict[str, list[str]]) -> None:
    port = server.rpartition(":")[2]
    names["pictures.example"] = ["1.1.1.1", "127.0.0.1"]
    assert open_image(of_data(f"http://pictures.example:{port}/picture.png")).size == (3, 2)
    assert names["pictures.example"] == ["127.0.0.1"]
    with pytest.raises(BadImageError, match="private address"):
        open_image(of_data(f"http://pictures.example:{port}/picture.png"))


def test_redirects_are_checked_like_the_first_address(
    server: str, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    names["pictures.example"] = ["1.1.1.1"]
    public = f"http://pictures.example:{server.rpartition(':')[2]}"
    assert open_image(of_data(f"{public}/to/{public}/picture.png")).size == (3, 2)
    monkeypatch.setenv(ALLOW_PRIVATE, "1")
    Server.asked.clear()
    for image in (of_data(f"{public}/to/{server}/picture.png"), f"{public}/to/{server}/picture.png"):
        with pytest.raises(BadImageError, match=r"127\.0\.0\.1 is the private address"):
            open_image(image)
    assert all(path.startswith("/to/") for path in Server.asked)


def test_redirects_lead_to_http_alone_and_not_for_ever(server: str, tmp_path: Any) -> None:
    (tmp_path / "secret.png").write_bytes(picture())
    for target in (f"file://{tmp_path}/secret.png", "ftp://127.0.0.1/x", "data:image/png;base64,AAAA"):
        with pytest.raises(BadImageError, match=r"not an http or https URL|not allowed"):
            open_image(f"{server}/to/{target}")
    with pytest.raises(BadImageError, match="infinite loop"):
        open_image(f"{server}/to/")


def test_what_a_redirect_brings_beside_its_address_is_not_read(server: str) -> None:
    assert download(f"{server}/endless", timeout=5, allow_private=True) == picture()


@pytest.mark.parametrize(
    "scheme", ["file://", "ftp://localhost", "hf://datasets/a/b@c", "s3://bucket", "zip://x::file://"]
)
def test_other_schemes_are_refused_wherever_they_stand(scheme: str, tmp_path: Any) -> None:
    (tmp_path / "secret.png").write_bytes(picture())
    for image in (f"{scheme}{tmp_path}/secret.png", of_data(f"{scheme}{tmp_path}/secret.png")):
        with pytest.raises(BadImageError, match="not an http or https URL"):
            open_image(image)


@pytest.mark.parametrize("path", ["/drip", "/drip-header"])
def test_the_time_limit_is_for_all_of_it(server: str, path: str) -> None:
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"not downloaded within 0\.3 seconds"):
        download(f"{server}{path}", timeout=0.3, allow_private=True)
    assert time.monotonic() - start < 2


def test_a_server_that_never_answers_is_left_after_the_time_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(DownloadError, match=r"0\.3 seconds"):
            download(f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.3, allow_private=True)
        assert time.monotonic() - start < 2


def test_a_download_that_was_cut_off_is_made_again(server: str) -> None:
    assert download(f"{server}/short", allow_private=True) == picture()
    assert Server.asked == ["/short", "/short"]


def test_a_proxy_of_the_user_is_asked_but_not_for_private_addresses(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server)
    monkeypatch.delenv("no_proxy", raising=False)
    assert download("http://pictures.example/picture.png", allow_private=False) == picture()
    assert Server.asked == ["http://pictures.example/picture.png"]
    for host in ("127.0.0.1", "localhost", "127.1", "%3127.0.0.1", "[::1]", "169.254.169.254"):
        with pytest.raises(DownloadError, match="private address"):
            download(f"http://{host}/picture.png", allow_private=False)


@pytest.mark.parametrize(
    "url", ["http://", "http:///x", "http://[::1", "http://a b/", "http://x\r\nHost: y/", "http://.."]
)
def test_what_is_no_url_is_a_bad_picture(url: str) -> None:
    with pytest.raises(BadImageError):
        open_image(of_data(url), timeout=0.5)
