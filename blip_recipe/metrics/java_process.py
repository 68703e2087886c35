"""A long-running Java process that reads lines and answers with lines."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import IO

from blip_recipe.metrics.errors import JavaEndedError
from blip_recipe.metrics.java import stderr_tail

STDERR_LINES = 200


class JavaProcess:
    """Run `command` until it is closed, garbage-collected, or this process ends. Error messages call it `name`.

    Threads write its stdin and read its stdout and stderr, so no full pipe can block it.
    """

    def __init__(self, name: str, command: list[str]) -> None:
        self.name, self.answered = name, False
        # In a session of its own: a signal to the whole job, which the trainer answers, does not end it.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdin
        assert self._process.stdout
        assert self._process.stderr
        self._input = self._process.stdin
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        start_thread(read_lines, self._process.stdout, self._lines.put)
        self._stderr_reader = start_thread(read_lines, self._process.stderr, self._stderr.append)
        # Runs when this object is deleted, at the latest at exit, so no JVM outlives the run.
        self.close = weakref.finalize(self, end_process, self._process, os.getpid())

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self.close.alive and self._process.poll() is None

    def send(self, lines: Iterable[str]) -> None:
        """Write `lines` (without line ends) in the background."""
        start_thread(write_lines, self._input, "".join(f"{line}\n" for line in lines).encode())

    def receive(self, timeout: float) -> str:
        """Return the next line of the process's output.

        Raises:
            queue.Empty: No line within `timeout` seconds.
            JavaEndedError: The process has ended.
        """
        line = self._lines.get(timeout=timeout)
        if line is None:
            status = self._process.wait()
            self._stderr_reader.join()
            said = stderr_tail("\n".join(filter(None, self._stderr)))
            # A signal ended it: Java answers some by itself, with 128 plus their number.
            raise JavaEndedError(f"{self.name} ended with status {status}: {said}", killed=status < 0 or status > 128)
        self.answered = True
        return line


def start_thread(work: Callable[..., None], *arguments: object) -> threading.Thread:
    """Run `work` in a daemon thread."""
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


def read_lines(stream: IO[bytes], keep: Callable[[str | None], None]) -> None:
    """Pass every line of `stream` to `keep`, and `None` at the end."""
    for line in stream:
        keep(line.decode("utf-8", "replace").rstrip("\r\n"))
    keep(None)


def write_lines(stream: IO[bytes], text: bytes) -> None:
    """Write `text`. If the process ends meanwhile, `receive` raises the error."""
    with contextlib.suppress(OSError, ValueError):
        stream.write(text)
        stream.flush()


def end_process(process: subprocess.Popen[bytes], owner: int) -> None:
    """Kill the process and wait for it, unless this is a fork of the process that started it."""
    if os.getpid() == owner:
        process.kill()
        process.wait()
