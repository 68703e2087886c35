"""A Java process that lives on, answers lines with lines, and ends with the run."""

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
    """Runs `command`, called `name` in messages, until it is closed, lost or this process ends.

    Threads write its input and read its output and its stderr, so that neither side ever waits on a full pipe.
    """

    def __init__(self, name: str, command: list[str]) -> None:
        self.name, self.answered = name, False
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self._process.stdin
        assert self._process.stdout
        assert self._process.stderr
        self._input = self._process.stdin
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        start_thread(read_lines, self._process.stdout, self._lines.put)
        self._stderr_reader = start_thread(read_lines, self._process.stderr, self._stderr.append)
        # Runs when this object goes, at the latest at exit: no JVM outlives the run.
        self.close = weakref.finalize(self, end_process, self._process, os.getpid())

    @property
    def alive(self) -> bool:
        """Whether the process can be asked."""
        return self.close.alive and self._process.poll() is None

    def send(self, lines: Iterable[str]) -> None:
        """Start to write `lines`, each without its end."""
        start_thread(write_lines, self._input, "".join(f"{line}\n" for line in lines).encode())

    def receive(self, timeout: float) -> str:
        """The next line of the answer.

        Raises:
            queue.Empty: None came within `timeout` seconds.
            JavaEndedError: The process has ended.
        """
        line = self._lines.get(timeout=timeout)
        if line is None:
            status = self._process.wait()
            self._stderr_reader.join()
            said = stderr_tail("\n".join(filter(None, self._stderr)))
            # A negative status is the signal that ended it.
            raise JavaEndedError(f"{self.name} ended with status {status}; Java says: {said}", killed=status < 0)
        self.answered = True
        return line


def start_thread(work: Callable[..., None], *arguments: object) -> threading.Thread:
    """Run `work` beside this thread, without keeping the run alive for it."""
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


def read_lines(stream: IO[bytes], keep: Callable[[str | None], None]) -> None:
    """Hand every line of `stream` to `keep`, and `None` at its end."""
    for line in stream:
        keep(line.decode("utf-8", "replace").rstrip("\r\n"))
    keep(None)


def write_lines(stream: IO[bytes], text: bytes) -> None:
    """Write `text`. A process that ends meanwhile is reported where its answer is read."""
    with contextlib.suppress(OSError, ValueError):
        stream.write(text)
        stream.flush()


def end_process(process: subprocess.Popen[bytes], owner: int) -> None:
    """End the process and wait for it; not in a fork of the process that started it."""
    if os.getpid() == owner:
        process.kill()
        process.wait()
