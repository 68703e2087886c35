"""The example server of docs/serving in a process of its own, and clients of it."""

from __future__ import annotations

import importlib.util
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from commands import PORTS, wait_for_server
from forked import CHECKOUT
from PIL import Image

SERVING = CHECKOUT / "docs" / "serving"

spec = importlib.util.spec_from_file_location("serving_load", SERVING / "load.py")
assert spec
assert spec.loader
load = importlib.util.module_from_spec(spec)
spec.loader.exec_module(load)

ask: Callable[..., tuple[int, dict[str, Any]]] = load.ask
measure_load: Callable[..., dict[str, Any]] = load.measure


@contextmanager
def serve_captioner(exported: Path, log: Path, **limits: str) -> Iterator[str]:
    """Serve an exported captioner with uvicorn; gives the address."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    # Not a port that systems hand out: asked before the server is there, a client may be given it and answer itself.
    port = next(PORTS)
    places = os.pathsep.join(map(str, (CHECKOUT, SERVING)))
    env = {**os.environ, "CAPTIONER": str(exported), "PYTHONPATH": places, **limits}
    words = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port), "--log-level", "warning"]
    words += ["--timeout-graceful-shutdown", "10"]
    with log.open("wb") as output, subprocess.Popen(words, env=env, stdout=output, stderr=output) as process:
        address = f"http://127.0.0.1:{port}"
        try:
            wait_for_server(f"{address}/health", process, log)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def encode_black(size: int) -> bytes:
    """A black square as PNG."""
    file = io.BytesIO()
    Image.new("RGB", (size, size)).save(file, "PNG", compress_level=1)
    return file.getvalue()


@contextmanager
def stalled_upload(address: str) -> Iterator[Callable[[], int]]:
    """A request whose body does not come; gives a function that waits for the status."""
    parts = urlsplit(address)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as client:
        client.sendall(b"POST /caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n")
        time.sleep(0.05)
        yield lambda: int(client.recv(4096).split()[1])
