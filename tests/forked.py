"""Start Python processes in milliseconds: fork one that has imported torch and transformers already.

A cold start costs 5 to 9 seconds, nearly all of it imports. A forked process gets its environment after the imports, so
`read_environment_again` renews the constants that the libraries took from it. `test_forked.py` compares the two starts.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import math
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.forkserver import ensure_running
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent
READ_AT_IMPORT = ("HF_", "HUGGING", "TRANSFORMERS_")
LIBRARIES = ("blip_recipe", "datasets", "evaluate", "huggingface_hub", "peft", "transformers")

WORKS = sys.platform == "linux" and not Path("/dev/nvidiactl").exists()
"""Whether processes are forked here: CUDA, Metal and macOS's libraries do not survive it, and Windows has none."""


class Forked:
    """A forked process with the methods of `subprocess.Popen`.

    Args:
        arguments: What follows `python` on the command line: `-m MODULE`, `-c CODE` or a script, and its arguments.
        env: The whole environment.
        cwd: The working directory.
        stdout: A file that standard output is appended to.
        stderr: The same for standard error.
        alone: Whether to run it in a session of its own, as a batch system does.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        stdout: Path,
        stderr: Path,
        alone: bool = False,
    ) -> None:
        self.args = list(arguments)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["warm_imports"])
        self._process = context.Process(target=_run, args=(self.args, dict(env), cwd, stdout, stderr, alone))
        with _environment_of_the_server():
            ensure_running()
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self._status = threading.Lock()

    @property
    def returncode(self) -> int | None:
        """The exit status, or the negative number of the signal that ended it, or None while it runs."""
        with self._status:  # it can be read once, whichever thread asks
            return self._process.exitcode

    def poll(self) -> int | None:
        """`returncode`, as `Popen` names it."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once it has ended.

        Raises:
            subprocess.TimeoutExpired: It is still running after `timeout` seconds.
        """
        end = time.monotonic() + (math.inf if timeout is None else timeout)
        while (status := self.returncode) is None:
            if timeout is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.002)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


@contextlib.contextmanager
def _environment_of_the_server() -> Iterator[None]:
    """An environment in which the server finds `warm_imports` and knows no Hub."""
    kept = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(READ_AT_IMPORT)]:
        del os.environ[name]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "tests")])
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


def _run(arguments: list[str], env: dict[str, str], cwd: Path, stdout: Path, stderr: Path, alone: bool) -> None:
    """Be `python *arguments`, in the forked process."""
    if alone:
        os.setsid()
    # Its own children, such as workers that read pictures, start as they do elsewhere.
    multiprocessing.set_start_method(None, force=True)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for stream, path in ((1, stdout), (2, stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream)
        os.close(file)
    buffering = 1 if env.get("PYTHONUNBUFFERED") else -1
    sys.stdout = open(1, "w", buffering, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    read_environment_again()
    kind, *words = arguments
    target, words = (words[0], words[1:]) if kind in ("-m", "-c") else (kind, words)
    sys.argv = ["-c" if kind == "-c" else target, *words]
    installed = [path for path in sys.path if "site-packages" in path or path.startswith(sys.base_prefix)]
    own = "" if kind in ("-m", "-c") else str(Path(target).parent)
    sys.path[:] = [own, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *installed]
    try:
        if kind == "-m":
            runpy.run_module(target, run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            exec(compile(target, "<string>", "exec"), vars(main))
        else:
            runpy.run_path(target, run_name="__main__")
    finally:
        # multiprocessing ends its processes without what an interpreter does at its end.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()


def read_environment_again() -> None:
    """Give the libraries that read the environment at import that of this process.

    Their modules of constants are loaded again in place, and copies of a constant in other modules are replaced.
    """
    import huggingface_hub
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    for module in (huggingface_hub.constants, sys.modules["datasets.config"]):
        before = dict(vars(module))
        importlib.reload(module)
        changed = {key: value for key, value in vars(module).items() if key.isupper() and before.get(key) != value}
        for other in [each for name, each in sys.modules.items() if name.startswith(LIBRARIES) and each is not module]:
            copies = {key: value for key, value in changed.items() if vars(other).get(key, value) == before.get(key)}
            vars(other).update(copies)
    huggingface_hub.hf_api.api.endpoint = huggingface_hub.constants.ENDPOINT
