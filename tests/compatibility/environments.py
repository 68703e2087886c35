"""Run the core tests and the quickstart recipe in environments of the lowest and the newest packages that we allow.

python tests/compatibility/environments.py lowest newest newest@3.13

`@` names another Python than this one, which must be installed. An environment is made anew with uv when the
requirements have changed, in `build/compatibility`; each takes about 6 GB.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
FOLDER = CHECKOUT / "build" / "compatibility"
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt")

RESOLUTIONS = {"lowest": "lowest-direct", "newest": "highest"}

CORE_TESTS = (
    "tests/captioning",
    "tests/card/test_rendering.py",
    "tests/data/test_dataset.py",
    "tests/data/test_loading.py",
    "tests/hub",
    "tests/metrics/test_scorer.py",
    "tests/models",
    "tests/retrieval",
    "tests/test_library.py",
    "tests/test_warnings.py",
    "tests/training/test_publishing.py",
    "tests/vqa",
)

SHOWN = ("accelerate", "bitsandbytes", "datasets", "huggingface-hub", "peft", "pillow", "torch", "transformers")


def main() -> None:
    """Each environment of the command line; the first test that fails ends it."""
    for name in sys.argv[1:]:
        python = str(environment(name))
        versions = subprocess.run(
            [uv(), "pip", "freeze", "--quiet", "--python", python], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        print(f"{name}:", *(line for line in versions if line.partition("==")[0] in SHOWN), flush=True)
        run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *CORE_TESTS)
        output_dir = FOLDER / f"quickstart-{name}"
        shutil.rmtree(output_dir, ignore_errors=True)
        run(python, "-m", "blip_recipe.finetune", "recipes/shapes_tiny.json", "--output_dir", str(output_dir))


def environment(name: str) -> Path:
    """The Python of the environment `name`, made where it is missing or its requirements have changed."""
    resolution, _, version = name.partition("@")
    folder = FOLDER / name
    wanted = hashlib.sha256(b"".join((CHECKOUT / file).read_bytes() for file in REQUIREMENTS)).hexdigest()
    complete = folder / "complete"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not complete.is_file() or complete.read_text() != wanted:
        make = [uv(), "venv", "--quiet", "--clear", "--no-python-downloads", "--python", version or sys.executable]
        subprocess.run([*make, str(folder)], check=True)
        install = [uv(), "pip", "install", "--quiet", "--resolution", RESOLUTIONS[resolution], "--python", str(python)]
        subprocess.run([*install, "-r", "requirements-dev.txt"], cwd=CHECKOUT, check=True)
        complete.write_text(wanted)
    return python


def uv() -> str:
    """The `uv` of this environment."""
    from uv import find_uv_bin

    return find_uv_bin()


def run(*command: str) -> None:
    """Run `command` in the checkout; ends as it ends when it fails."""
    done = subprocess.run(command, cwd=CHECKOUT, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")


if __name__ == "__main__":
    main()
