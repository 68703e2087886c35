"""Load what a run saves with plain transformers: the installed one, and others beside it in folders of their own.

python tests/compatibility/run.py "4.57.*" "5.18.*"

A version is installed once, into `build/compatibility`; everything else of the environment is shared.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
FOLDER = CHECKOUT / "build" / "compatibility"

BESIDE = {"4": ["huggingface-hub>=0.36,<1", "tokenizers>=0.22,<0.23"], "5": []}
"""What a major version of transformers needs in other versions than the environment has."""


def main() -> None:
    """Save and install, then check with each version; on two cores, two of these at once."""
    versions = sys.argv[1:]
    missing = [version for version in versions if not complete(version).exists()]
    saved = FOLDER / "saved"
    for folder in (saved, *(complete(version).parent for version in missing)):
        shutil.rmtree(folder, ignore_errors=True)
    run([[str(HERE / "save_repositories.py"), str(saved)], *map(installation, missing)])
    for version in missing:
        complete(version).touch()
    check = [str(HERE / "check_repositories.py"), str(saved)]
    run([check] * (1 + len(versions)), [None, *(complete(version).parent for version in versions)])


def complete(version: str) -> Path:
    """The file that stands where `version` of transformers is wholly installed."""
    return FOLDER / f"transformers-{version.rstrip('.*')}" / "complete"


def installation(version: str) -> list[str]:
    """Arguments to Python that install `version` of transformers into its folder."""
    target = ["--target", str(complete(version).parent)]
    packages = [f"transformers=={version}", *BESIDE[version.partition(".")[0]]]
    return ["-m", "uv", "pip", "install", "--quiet", "--no-deps", *target, *packages]


def run(commands: list[list[str]], first_on_path: list[Path | None] | None = None) -> None:
    """Run Python on each of `commands`, two at once; ends with the output of one that fails."""
    waiting = list(zip(commands, first_on_path or [None] * len(commands), strict=True))
    while waiting:
        running = [(command, start(command, path)) for command, path in waiting[:2]]
        waiting = waiting[2:]
        for command, process in running:
            output, _ = process.communicate()
            print("\n".join(line for line in output.splitlines() if line.startswith(("transformers ", "saved "))))
            if process.returncode:
                sys.exit(f"{output}\n{command} ended with {process.returncode}")


def start(command: list[str], first_on_path: Path | None) -> subprocess.Popen[str]:
    """A process of this Python, where `first_on_path` hides what is installed."""
    path = os.pathsep.join(map(str, filter(None, (first_on_path, CHECKOUT))))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


if __name__ == "__main__":
    main()
