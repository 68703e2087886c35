"""Running the package's commands as a user does, in processes of their own."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import forked
from forked import CHECKOUT, Forked

Process = Forked | subprocess.Popen[bytes]

WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PORTS = itertools.count(20_000 + 500 * WORKER)
"""Ports of this process of pytest alone, below those that systems hand out."""

OURS = {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}


def run_module(
    module: str,
    *arguments: str | Path,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    processes: int = 1,
    timeout: float = 300,
    cold: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module arguments`, in several processes as `torchrun` does, or `cold`, with all its imports."""
    environment = {**os.environ, **OURS, **(env or {})}
    words = ["-m", module, *map(str, arguments)]
    return _run(words, env=environment, cwd=cwd, timeout=timeout, processes=processes, cold=cold)


def run_checked(module: str, *arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """As `run_module`, for a command that must end well."""
    done = run_module(module, *arguments, **options)  # type: ignore[arg-type]
    assert done.returncode == 0, f"{module} ended with {done.returncode}:\n{done.stderr[-4000:]}"
    return done


def run_script(script: Path, *arguments: str | Path, env: Mapping[str, str], cwd: Path | None = None) -> str:
    """What a script prints that must end well, in a process of its own."""
    done = _run([str(script), *map(str, arguments)], env={**env, **OURS}, cwd=cwd)
    assert done.returncode == 0, f"{script.name} ended with {done.returncode}:\n{done.stderr[-4000:]}"
    return done.stdout


def run_code(
    code: str,
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    processes: int = 1,
    cold: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run `python -c code arguments`; `env` is its whole environment, but for the path of the checkout."""
    environment = {**(os.environ if env is None else env), **OURS}
    return _run(["-c", code, *map(str, arguments)], env=environment, cwd=cwd, processes=processes, cold=cold)


def start_module(
    module: str,
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: Path,
    alone: bool = False,
) -> Process:
    """Start `python -m module arguments`, which writes what it says to `log`.

    Args:
        module: The module.
        arguments: Its arguments.
        env: Variables of the environment, beside those of this process.
        cwd: The working directory.
        log: The file.
        alone: Whether to start it in a session of its own: `os.killpg` then signals it and all that it starts.
    """
    environment = {**os.environ, **OURS, **(env or {})}
    words = ["-m", module, *map(str, arguments)]
    return _start(words, env=environment, cwd=cwd, stdout=log, stderr=log, cold=False, alone=alone)


def _start(
    words: list[str],
    *,
    env: Mapping[str, str],
    cwd: Path | None,
    stdout: Path,
    stderr: Path,
    cold: bool,
    alone: bool = False,
) -> Process:
    """Start `python *words`, forked unless it is to be `cold` or forking does not work here."""
    place = cwd or CHECKOUT
    if forked.WORKS and not cold:
        return Forked(words, env=env, cwd=place, stdout=stdout, stderr=stderr, alone=alone)
    with stdout.open("ab") as output, stderr.open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, *words], env=env, cwd=place, stdout=output, stderr=errors, start_new_session=alone
        )


def _run(
    words: list[str],
    *,
    env: Mapping[str, str],
    cwd: Path | None,
    timeout: float = 300,
    processes: int = 1,
    cold: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run to the end; of several processes the first bad status counts, and ends the others."""
    with tempfile.TemporaryDirectory() as folder:
        files = {"stdout": Path(folder, "stdout"), "stderr": Path(folder, "stderr")}
        started = [
            _start(words, env={**env, **rank}, cwd=cwd, stdout=files["stdout"], stderr=files["stderr"], cold=cold)
            for rank in ranks(processes)
        ]
        end = time.monotonic() + timeout
        while any(process.poll() is None for process in started):
            if any(process.poll() for process in started) or time.monotonic() > end:
                break
            time.sleep(0.005)
        is_late = time.monotonic() > end
        statuses = [process.poll() for process in started]
        for process in started:
            process.kill()
            process.wait()
        said, complained = (path.read_text(errors="replace") if path.exists() else "" for path in files.values())
    if is_late:
        raise subprocess.TimeoutExpired(words, timeout, said, complained)
    return subprocess.CompletedProcess(words, next(filter(None, statuses), 0), said, complained)


def wait_for_server(url: str, process: Process, log: Path, seconds: float = 300) -> None:
    """Wait until a process that was started answers at `url`; `log` is shown if it does not."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer:\n{log.read_text(errors='replace')[-4000:]}")


def ranks(processes: int) -> list[dict[str, str]]:
    """The variables by which `torchrun` tells processes of each other."""
    if processes == 1:
        return [{}]
    of_all = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(next(PORTS)), "WORLD_SIZE": str(processes)}
    of_all |= {"LOCAL_WORLD_SIZE": str(processes)}
    return [{**of_all, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
