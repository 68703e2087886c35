"""Download pictures from URLs, with limits on size and time, and from public addresses only.

URLs in a data set may be hostile (server-side request forgery): they must not reach this machine's services, its
private network or a cloud's metadata service. A host name is resolved once, and the checked address is the one that is
connected to, which prevents DNS rebinding. Redirects are checked like the first URL.
"""

from __future__ import annotations

import http.client
import ipaddress
import logging
import os
import socket
import string
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

logger = logging.getLogger(__name__)

MAX_DOWNLOAD = 100 * 2**20
"""Maximum size of a downloaded picture in bytes."""

DOWNLOAD_TIMEOUT = 30.0
"""Maximum seconds for a picture in total: DNS, redirects, transfer and all attempts."""

ATTEMPTS = 3
"""Maximum attempts after network or server errors."""

PAUSE = 1.0
"""Seconds to wait after the first failed attempt. The second wait is twice as long."""

SCHEMES = ("http", "https")

ALLOW_PRIVATE = "BLIP_RECIPE_ALLOW_PRIVATE_URLS"
"""Environment variable: `1` allows private addresses in data sets. It is not a recipe key, because a recipe may come
from a stranger too."""


class DownloadError(Exception):
    """A download failed for good. The message says why, without the URL.

    It is not an `OSError`, because urllib would wrap that in a `URLError`.
    """


def download(url: str, *, timeout: float | None = None, allow_private: bool) -> bytes:
    """Download `url`, retrying after network and server errors.

    Args:
        url: An http or https URL.
        timeout: Maximum seconds in total. Default: 30.
        allow_private: Whether `url` may have a private address. Redirects from a public to a private address are
            refused in any case.

    Raises:
        DownloadError: The URL is invalid or private, or the picture is too large or too slow.
        OSError: The network or the server failed (`HTTPError`: the server refused the request).
    """
    timeout = DOWNLOAD_TIMEOUT if timeout is None else timeout
    fetch = _Fetch(time.monotonic() + timeout, allow_private)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return fetch.read(url)
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() >= fetch.deadline:
                raise DownloadError(f"it was not downloaded within {timeout:g} seconds") from error
            refused = isinstance(error, HTTPError) and error.code < 500 and error.code != HTTPStatus.TOO_MANY_REQUESTS
            if attempt == ATTEMPTS or refused:
                raise
            logger.info("%s: attempt %d failed (%s)", url, attempt, error)
        time.sleep(min(PAUSE * attempt, max(0.0, fetch.deadline - time.monotonic())))
    raise AssertionError("the last attempt returns or raises")


def private_addresses_allowed() -> bool:
    """Whether the user allows private addresses in data sets."""
    return os.environ.get(ALLOW_PRIVATE, "").lower() in ("1", "true", "yes")


def is_public(address: str) -> bool:
    """Whether an IP address is public; IPv4 addresses inside IPv6 are checked too."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local:  # "global" to Python
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""IPv6 addresses that a gateway translates to the IPv4 address in their last 32 bits (RFC 6052, section 2.1)."""


class _Fetch:
    """The download of one picture, with its deadline and the addresses it may connect to."""

    def __init__(self, deadline: float, allow_private: bool) -> None:
        self.deadline = deadline
        self.allow_private = allow_private
        self.connection: socket.socket | None = None

    def read(self, url: str) -> bytes:
        """The content of `url`."""
        content = bytearray()
        request = _request(url)
        with self._close_at_deadline(), _opener(self).open(request, timeout=self.seconds_left()) as response:
            while part := response.read(2**16):
                content += part
                if len(content) > MAX_DOWNLOAD:
                    raise DownloadError(f"it has more than {MAX_DOWNLOAD // 2**20} MiB")
            if time.monotonic() >= self.deadline or response.length:
                raise ConnectionError("it was cut off")
        return bytes(content)

    def seconds_left(self) -> float:
        """Seconds until the deadline, at least 0.01."""
        return max(0.01, self.deadline - time.monotonic())

    def connect(self, address: tuple[str, int], *_: Any) -> socket.socket:
        """Connect to the first address of a host that answers. All its addresses must be allowed."""
        host, port = address
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except UnicodeError as error:
            raise DownloadError(f"{host!r} is not a valid host name") from error
        addresses = [str(info[4][0]) for info in found]
        self.check(host, addresses)
        for each in addresses[:-1]:
            with suppress(OSError):
                return self.keep(socket.create_connection((each, port), self.seconds_left()))
        return self.keep(socket.create_connection((addresses[-1], port), self.seconds_left()))

    def connect_proxy(self, address: tuple[str, int], *_: Any) -> socket.socket:
        """Connect to the proxy of the environment."""
        return self.keep(socket.create_connection(address, self.seconds_left()))

    def check(self, host: str, addresses: list[str]) -> None:
        """Refuse private addresses of `host`. After a public address, no private one is allowed."""
        private = [each for each in addresses if not is_public(each)]
        if private and not self.allow_private:
            raise DownloadError(
                f"{host} is the private address {private[0]}. To allow private addresses in data sets, set "
                f"{ALLOW_PRIVATE}=1"
            )
        self.allow_private = bool(private)

    def check_proxied(self, host: str) -> None:
        """Refuse localhost and private addresses as a proxied host. The proxy resolves other names."""
        if host == "localhost" or host.endswith(".localhost"):
            self.check(host, ["127.0.0.1"])
        elif ":" in host:
            self.check(host, [host])
        else:
            with suppress(OSError):  # a host name
                self.check(host, [socket.inet_ntoa(socket.inet_aton(host))])

    def keep(self, connection: socket.socket) -> socket.socket:
        """Keep a duplicate of `connection`, to shut it down at the deadline."""
        self.connection = connection.dup()  # TLS takes over the other
        return connection

    @contextmanager
    def _close_at_deadline(self) -> Iterator[None]:
        """Shut the connection down at the deadline: a slow server could keep every single read below its timeout."""
        timer = threading.Timer(self.seconds_left(), self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            if self.connection is not None:
                self.connection.close()

    def _cut(self) -> None:
        if self.connection is not None:
            try:
                self.connection.shutdown(socket.SHUT_RDWR)
            except OSError as error:  # it is closed already
                logger.debug("The connection was closed already: %s", error)


def _request(url: str) -> Request:
    # Some image hosts refuse urllib's user agent. URLs may contain spaces and non-ASCII letters.
    try:
        parts = urlsplit(url)
        if not parts.netloc.isascii():
            url = parts._replace(netloc=parts.netloc.encode("idna").decode()).geturl()
        request = Request(quote(url, safe=string.punctuation), headers={"User-Agent": "blip_recipe"})
        host = urlsplit(request.full_url).hostname
    except ValueError as error:
        raise DownloadError(f"it is not a valid URL ({error})") from error
    if request.type not in SCHEMES or not host:
        raise DownloadError("it is not an http or https URL")
    return request


def _opener(fetch: _Fetch) -> OpenerDirector:
    """An opener for http and https only, which uses the proxies of the environment."""
    opener = OpenerDirector()
    plain = (ProxyHandler(), _Redirects(), HTTPErrorProcessor(), HTTPDefaultErrorHandler())
    for handler in (*plain, _Connections(fetch)):
        opener.add_handler(handler)
    return opener


class _Redirects(HTTPRedirectHandler):
    """Follow redirects to http and https only. `_Fetch.connect` checks their addresses."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if urlsplit(newurl).scheme not in SCHEMES:
            raise DownloadError(f"it redirects to {newurl[:100]!r}, which is not an http or https URL")
        fp.close()  # urllib would read the whole body, of any size
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Connections(HTTPHandler, HTTPSHandler):
    """Open connections to a checked address or to a proxy."""

    def __init__(self, fetch: _Fetch) -> None:
        super().__init__()
        self.fetch = fetch

    def http_open(self, req: Request) -> Any:
        return self._open(http.client.HTTPConnection, req)

    def https_open(self, req: Request) -> Any:
        return self._open(http.client.HTTPSConnection, req)

    def _open(self, kind: type[http.client.HTTPConnection], request: Request) -> Any:
        proxied = request.has_proxy() or request._tunnel_host is not None  # type: ignore[attr-defined]
        if proxied:
            self.fetch.check_proxied(unquote(urlsplit(request.full_url).hostname or ""))

        def connection(*arguments: Any, **options: Any) -> http.client.HTTPConnection:
            made: Any = kind(*arguments, **options)
            made._create_connection = self.fetch.connect_proxy if proxied else self.fetch.connect
            return made

        return self.do_open(connection, request)  # type: ignore[arg-type]
