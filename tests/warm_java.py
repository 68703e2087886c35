"""Share one METEOR among all runs of the tests: reading its tables takes about ten seconds of a processor each time.

Tests find it as `BLIP_RECIPE_JAVA`, a stand-in for `java`. METEOR's jar still scores every caption: the stand-in
passes its lines on to a METEOR that runs already, and starts the real Java for everything else. The tests of
`tests/metrics` use the real Java alone.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blip_recipe.metrics.meteor import Meteor

SECONDS_OF_A_LINE = 240
STAND_IN = """#!{python} -IS
import os, socket, sys, threading

if "-stdio" not in sys.argv:
    os.execv({java!r}, [{java!r}, *sys.argv[1:]])
meteor = socket.socket(socket.AF_UNIX)
meteor.connect({address!r})


def send():
    while given := os.read(0, 65536):
        meteor.sendall(given)
    meteor.shutdown(socket.SHUT_WR)


threading.Thread(target=send, daemon=True).start()
while answer := meteor.recv(65536):
    while answer:
        answer = answer[os.write(1, answer) :]
os._exit(1)
"""
"""Acts as METEOR until either side ends, which `JavaProcess` does by killing it."""


@contextlib.contextmanager
def warm_java() -> Iterator[str]:
    """The stand-in for `java`, or nothing where there is no Java.

    METEOR belongs to a process of its own, as tests count those of theirs. It ends when its input does.
    """
    checkout = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


def main() -> None:
    """Make the stand-in, say where it is, and answer until the input ends."""
    from blip_recipe.metrics.java import java_candidates
    from blip_recipe.metrics.meteor import Meteor

    java = next((path for _, path in java_candidates(os.environ.get("BLIP_RECIPE_JAVA"))), None)
    if java is None:
        print(flush=True)
        return
    with tempfile.TemporaryDirectory(prefix="java") as folder, socket.socket(socket.AF_UNIX) as server:
        address, stand_in = f"{folder}/meteor", Path(folder, "java")
        stand_in.write_text(STAND_IN.format(python=sys.executable, java=java, address=address))
        stand_in.chmod(0o755)
        server.bind(address)
        server.listen()
        meteor = Meteor(java)
        threading.Thread(target=serve, args=(server, meteor), daemon=True).start()
        print(stand_in, flush=True)
        sys.stdin.read()
        meteor.close()


def serve(server: socket.socket, meteor: Meteor) -> None:
    """Answer each run in a thread of its own."""
    turn = threading.Lock()
    while True:
        run, _ = server.accept()
        threading.Thread(target=answer, args=(run, meteor, turn), daemon=True).start()


def answer(run: socket.socket, meteor: Meteor, turn: threading.Lock) -> None:
    """Answer the lines of one run. An answer depends on its line alone, so runs may take turns."""
    from blip_recipe.metrics.errors import JavaEndedError
    from blip_recipe.metrics.meteor import FIELD

    with run, run.makefile("rb") as lines, contextlib.suppress(OSError, JavaEndedError, queue.Empty):
        for line in lines:
            text = line.decode().removesuffix("\n")
            # EVAL is answered with a line for each of its statistics, and one for all.
            count = text.count(FIELD) + 1 if text.startswith("EVAL") else 1
            with turn:
                process = meteor.start()
                process.send([text])
                answers = [process.receive(SECONDS_OF_A_LINE) for _ in range(count)]
            run.sendall("".join(f"{each}\n" for each in answers).encode())


if __name__ == "__main__":
    main()
