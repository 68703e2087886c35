"""What the sdist and the wheel hold, and the quickstart from an installed wheel, outside the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import pytest
from commands import CHECKOUT
from packaging.requirements import Requirement

import blip_recipe

GENERATED = re.compile(r"PKG-INFO|setup\.cfg|blip_recipe\.egg-info/.*")
"""Files of an sdist that are no files of the repository."""


class Packages(NamedTuple):
    """The two files of a release."""

    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Both, from a copy of the checkout; the wheel is built from the sdist. Needs no network."""
    folder = tmp_path_factory.mktemp("packages")
    ignored = [line.rstrip("/") for line in (CHECKOUT / ".gitignore").read_text(encoding="utf-8").split()]
    shutil.copytree(CHECKOUT, folder / "source", ignore=shutil.ignore_patterns(".git", *ignored))
    uv("build", "--offline", "--no-build-isolation", "--out-dir", folder / "dist", folder / "source")
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    return Packages(sdist, wheel)


def uv(command: str, *arguments: str | Path) -> None:
    """Run uv for the Python that runs the tests."""
    run(sys.executable, "-m", "uv", command, *arguments, env={"UV_PYTHON": sys.executable})


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """What a command prints that must end well; it does not see the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", **(env or {})}
    line = list(map(str, command))
    done = subprocess.run(line, capture_output=True, encoding="utf-8", cwd=cwd, env=environment, check=False)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stderr[-4000:]}"
    return done.stdout


def metadata_of(wheel: Path) -> Message:
    with ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(file.read(name).decode("utf-8"))


# What they hold


@pytest.mark.skipif(not (CHECKOUT / ".git").exists(), reason="the files of the repository are not known")
def test_the_sdist_holds_the_repository_and_nothing_else(packages: Packages) -> None:
    with tarfile.open(packages.sdist) as file:
        names = {member.name.partition("/")[2] for member in file if member.isfile()}
    listing = ["git", "ls-files", "--cached"]
    files = {name for name in run(*listing, cwd=CHECKOUT).splitlines() if (CHECKOUT / name).is_file()}
    assert sorted(name for name in names if not GENERATED.fullmatch(name)) == sorted(files)


def test_the_wheel_holds_the_package_its_recipes_and_its_card_templates(packages: Packages) -> None:
    with ZipFile(packages.wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    package = CHECKOUT / "blip_recipe"
    expected = {path for suffix in ("py", "jinja", "css", "js") for path in package.rglob(f"*.{suffix}")} | {
        package / "py.typed"
    }
    folders = [(CHECKOUT / "recipes").iterdir(), (CHECKOUT / "model_cards").glob("*.jinja")]
    expected |= {package / path.relative_to(CHECKOUT) for folder in folders for path in folder}
    assert names == {path.relative_to(CHECKOUT).as_posix() for path in expected}


def test_the_metadata_are_those_of_the_project(packages: Packages) -> None:
    metadata = metadata_of(packages.wheel)
    assert metadata["Version"] == blip_recipe.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert str(metadata.get_payload()).splitlines() == readme.splitlines()
    with ZipFile(packages.wheel) as file:
        (licence,) = (name for name in file.namelist() if name.endswith("/licenses/LICENSE"))
        assert file.read(licence) == (CHECKOUT / "LICENSE").read_bytes()


def test_the_wheel_requires_what_requirements_txt_lists(packages: Packages) -> None:
    lines = (CHECKOUT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = [line.partition("#")[0].strip() for line in lines]
    required = [Requirement(line) for line in metadata_of(packages.wheel).get_all("Requires-Dist") or []]
    always = {str(each) for each in required if "extra" not in str(each.marker)}
    assert always == {str(Requirement(line)) for line in listed if line}


# What they do


def test_the_installed_wheel_runs_the_quickstart(packages: Packages, tmp_path: Path) -> None:
    """Some steps of it, in an environment that holds the wheel, and sees the dependencies of this one."""
    python = make_environment(tmp_path / "environment", packages.wheel, "--no-deps", "--offline")
    packages_of_this = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    library = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (library / "dependencies.pth").write_text("\n".join(sorted(packages_of_this)), encoding="utf-8")
    few = ["--max_steps", "2", "--max_train_samples", "64", "--max_eval_samples", "4", "--eval_steps", "2"]
    results = run_quickstart(python, tmp_path / "elsewhere", *few)
    assert results["test_loss"] > 0
    card = (tmp_path / "elsewhere/outputs/shapes_tiny/README.md").read_text(encoding="utf-8")
    assert f"blip-recipe {blip_recipe.__version__}" in card


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_wheel_in_an_empty_environment_runs_the_whole_quickstart(packages: Packages, tmp_path: Path) -> None:
    """Installs all dependencies too: some gigabytes, from uv's cache if they are there."""
    python = make_environment(tmp_path / "environment", packages.wheel)
    results = run_quickstart(python, tmp_path / "elsewhere")
    assert results["test_exact_match"] >= 0.95


def make_environment(folder: Path, wheel: Path, *options: str) -> Path:
    """Install `wheel` in a new environment; gives the environment's Python."""
    uv("venv", folder)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    uv("pip", "install", "--python", python, *options, wheel)
    return python


def run_quickstart(python: Path, place: Path, *arguments: str) -> dict[str, float]:
    """Run the packaged recipe by the installed command, in an empty folder; gives its results."""
    place.mkdir()
    where = run(python, "-c", "import blip_recipe; print(blip_recipe.__file__)", cwd=place).strip()
    assert Path(where).is_relative_to(python.parents[1])
    run(python.with_name("blip-recipe"), "finetune", "shapes_tiny.json", *arguments, cwd=place)
    assert [each.name for each in place.iterdir()] == ["outputs"]
    return json.loads((place / "outputs/shapes_tiny/all_results.json").read_text(encoding="utf-8"))


# The platforms that the workflows test on


@pytest.mark.long
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("platform", ["x86_64-unknown-linux-gnu", "aarch64-apple-darwin", "x86_64-pc-windows-msvc"])
def test_every_requirement_has_a_wheel(platform: str, version: str) -> None:
    target = ["--python-platform", platform, "--python-version", version]
    requirements = CHECKOUT / "requirements-dev.txt"
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", *target, "--only-binary", ":all:"]
    resolved = run(*command, requirements, env={"MACOSX_DEPLOYMENT_TARGET": "15.0"})
    assert "\ntorch==" in resolved
