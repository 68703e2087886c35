"""Run the core tests and the quickstart recipe in environments of the lowest and the newest packages that we allow.

python tests/compatibility/environments.py lowest newest newest@3.13

`@` names another Python than this one, by version or path; it must be installed. uv makes an environment in
`build/compatibility`, anew when the requirements change; each takes about 6 GB.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
FOLDER = CHECKOUT / "build" / "compatibility"
LOWEST = Path("tests/compatibility/lowest.txt")
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt", LOWEST)

RESOLUTIONS = {"lowest": ["lowest-direct", "--constraints", str(LOWEST)], "newest": ["highest"]}
"""How uv chooses versions."""

CORE_TESTS = (
    "tests/captioning",
    "tests/card/test_rendering.py",
    "tests/data/test_dataset.py",
    "tests/data/test_loading.py",
    "tests/data/test_streaming.py",
    "tests/hub",
    "tests/metrics/test_scorer.py",
    "tests/models",
    "tests/retrieval",
    "tests/test_library.py",
    "tests/test_warnings.py",
    "tests/training/test_publishing.py",
    "tests/vqa",
)

UV = (sys.executable, "-m", "uv")

SHOWN = (
    *("accelerate", "bitsandbytes", "datasets", "evaluate", "huggingface-hub", "peft", "pillow", "torch"),
    *("torchvision", "transformers"),
)


def main() -> None:
    """Each environment of the command line; the first failure ends it."""
    for name in sys.argv[1:]:
        folder = FOLDER / re.sub(r"\W+", "-", name)
        python = str(make_environment(name, folder))
        freeze = [*UV, "pip", "freeze", "--quiet", "--python", python]
        versions = subprocess.run(freeze, capture_output=True, text=True, check=True).stdout.splitlines()
        print(f"{name}:", *(line for line in versions if line.partition("==")[0] in SHOWN), flush=True)
        os.environ["OMP_NUM_THREADS"] = "1"  # for each of as many processes as cores
        run(python, "-m", "pytest", "-q", "-n", str(os.cpu_count()), "-m", "not long", *CORE_TESTS)
        output_dir = folder / "quickstart"
        shutil.rmtree(output_dir, ignore_errors=True)
        run(python, "-m", "blip_recipe.finetune", "recipes/shapes_tiny.json", "--output_dir", str(output_dir))
        print(f"{name}: the core tests and the quickstart recipe pass", flush=True)


def make_environment(name: str, folder: Path) -> Path:
    """Make the environment `name` in `folder`, unless it is there with these requirements; its Python."""
    resolution, _, other_python = name.partition("@")
    wanted = hashlib.sha256(b"".join((CHECKOUT / file).read_bytes() for file in REQUIREMENTS)).hexdigest()
    complete = folder / "complete"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not complete.is_file() or complete.read_text() != wanted:
        make = [*UV, "venv", "--quiet", "--clear", "--no-python-downloads", "--python", other_python or sys.executable]
        run(*make, str(folder))
        install = [*UV, "pip", "install", "--quiet", "--python", str(python), "-r", "requirements-dev.txt"]
        run(*install, "--resolution", *RESOLUTIONS[resolution])
        complete.write_text(wanted)
    return python


def run(*command: str) -> None:
    """Run `command` in the checkout; ends as it ends when it fails."""
    done = subprocess.run(command, cwd=CHECKOUT, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")


if __name__ == "__main__":
    main()
