"""Running the package's commands as a user does, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent


def run_module(
    module: str,
    *arguments: str | Path,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    processes: int = 1,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module arguments`, or the same under `torchrun` with several processes."""
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--nproc_per_node", str(processes), "-m"]
    return subprocess.run(
        [*launcher, module, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd or CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", **(env or {})},
        timeout=timeout,
        check=False,
    )


def run_checked(module: str, *arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """As `run_module`, for a command that must end well."""
    done = run_module(module, *arguments, **options)  # type: ignore[arg-type]
    assert done.returncode == 0, f"{module} ended with {done.returncode}:\n{done.stderr[-4000:]}"
    return done


def run_script(script: Path, *arguments: str | Path, env: dict[str, str], cwd: Path | None = None) -> str:
    """What a script prints that must end well, in a process of its own."""
    command = [sys.executable, str(script), *map(str, arguments)]
    environment = {**env, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, check=False)
    assert done.returncode == 0, f"{script.name} ended with {done.returncode}:\n{done.stderr[-4000:]}"
    return done.stdout
