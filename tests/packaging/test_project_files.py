"""Files of the repository that say the same: versions, ranges, supported Pythons, and the paths that texts name."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import CHECKOUT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import blip_recipe

WORKFLOWS = sorted((CHECKOUT / ".github/workflows").glob("*.yml"))
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


def read(name: str) -> str:
    return (CHECKOUT / name).read_text(encoding="utf-8")


def read_yaml(path: Path | str) -> Any:
    return yaml.safe_load((CHECKOUT / path).read_text(encoding="utf-8"))


def project() -> dict[str, Any]:
    return tomllib.loads(read("pyproject.toml"))["project"]


def jobs() -> list[dict[str, Any]]:
    return [job for path in WORKFLOWS for job in read_yaml(path)["jobs"].values()]


def steps() -> list[dict[str, Any]]:
    return [step for job in jobs() for step in job["steps"]]


# Version


def test_the_newest_version_of_the_changelog_and_the_citation_is_that_of_the_package() -> None:
    newest, when = re.findall(r"^## \[(.+)\] - (.+)$", read("CHANGELOG.md"), flags=re.MULTILINE)[0]
    citation = read_yaml("CITATION.cff")
    assert newest == citation["version"] == blip_recipe.__version__
    assert str(citation.get("date-released", "Unreleased")) == when
    assert "version" not in project()


def test_the_citation_names_licence_authors_and_paper_as_the_package_does() -> None:
    citation = read_yaml("CITATION.cff")
    assert citation["license"] == project()["license"]
    assert citation["authors"] == project()["authors"]
    assert citation["references"][0]["title"] in read("model_cards/base.md.jinja").replace("{BLIP}", "BLIP")


# Pythons and operating systems


def test_the_supported_pythons_are_the_classifiers_and_are_tested() -> None:
    classifiers = re.findall(r"Python :: (3\.\d+)", "\n".join(project()["classifiers"]))
    assert classifiers == PYTHONS
    allowed = SpecifierSet(project()["requires-python"])
    assert [version for version in ("3.10", *PYTHONS) if version in allowed] == PYTHONS
    matrix = read_yaml(".github/workflows/tests.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert matrix == {"os": ["ubuntu-latest", "macos-latest"], "python-version": PYTHONS}


def test_every_other_python_that_is_named_is_supported() -> None:
    set_up = [step["with"]["python-version"] for step in steps() if "python-version" in step.get("with", {})]
    named = {version for version in set_up if not version.startswith("${{")}
    named |= set(read_yaml(".github/workflows/tests.yml")["jobs"]["windows"]["strategy"]["matrix"]["python-version"])
    named |= set(re.findall(r"^FROM python:(\S+?)-slim$", read("Dockerfile"), flags=re.MULTILINE))
    assert named
    assert named <= set(PYTHONS)


def test_ruff_and_mypy_read_the_oldest_python() -> None:
    tools = tomllib.loads(read("pyproject.toml"))["tool"]
    assert tools["mypy"]["python_version"] == PYTHONS[0]
    assert tools["ruff"]["target-version"] == f"py{PYTHONS[0].replace('.', '')}"


# Workflows


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_the_repository_and_knows_no_secret(path: Path) -> None:
    assert read_yaml(path)["permissions"] == {"contents": "read"}
    assert "secrets" not in path.read_text(encoding="utf-8")
    for name, job in read_yaml(path)["jobs"].items():
        more = {"publish": {"id-token": "write"}, "deploy": {"pages": "write", "id-token": "write"}}
        assert job.get("permissions") == more.get(name)
        assert job["timeout-minutes"]


def test_actions_are_pinned_to_a_major_version() -> None:
    for action in {step["uses"] for step in steps() if "uses" in step}:
        assert re.fullmatch(r"(actions/[a-z-]+@v\d+|pypa/gh-action-pypi-publish@release/v1)", action)


def test_workflows_and_hooks_run_what_is_there() -> None:
    commands = [step["run"] for step in steps() if "run" in step]
    commands += [hook["entry"] for hook in read_yaml(".pre-commit-config.yaml")["repos"][0]["hooks"]]
    words = [shlex.split(command) for command in commands]
    targets = set(re.findall(r"^([\w-]+):", read("Makefile"), flags=re.MULTILINE))
    assert {line[1] for line in words if line[0] == "make"} <= targets
    paths = {word for line in words for word in line if word.startswith("tests/") or word.endswith(".txt")}
    assert {path for path in paths if not (CHECKOUT / path).exists()} == set()


def test_make_leaves_the_number_of_threads_to_the_model() -> None:
    # `fit_threads` does nothing where it is set, and the quickstart would wait for every other process.
    show = "include Makefile\nshow:\n\t@echo [$$OMP_NUM_THREADS]\n"
    # The last three are those of the make that runs the tests.
    others = {"OMP_NUM_THREADS", "MAKEFLAGS", "MFLAGS", "MAKELEVEL"}
    environment = {name: value for name, value in os.environ.items() if name not in others}
    made = subprocess.run(
        ["make", "--file", "-", "show"], input=show, text=True, capture_output=True, cwd=CHECKOUT, env=environment
    )
    assert made.stdout == "[]\n", made.stderr


def test_a_bug_report_needs_the_environment() -> None:
    form = read_yaml(".github/ISSUE_TEMPLATE/bug_report.yml")["body"]
    (environment,) = (field for field in form if field.get("id") == "environment")
    assert "`blip-recipe env`" in environment["attributes"]["description"]
    assert environment["validations"] == {"required": True}


# Versions of tools


def test_hooks_use_the_versions_that_make_lint_uses() -> None:
    lines = [line.partition("#")[0].strip() for line in read("requirements-dev.txt").splitlines()]
    listed = {Requirement(line) for line in lines if line and not line.startswith("-")}
    hooks = read_yaml(".pre-commit-config.yaml")["repos"][0]["hooks"]
    used = {Requirement(line) for hook in hooks for line in hook.get("additional_dependencies", [])}
    assert {each.name for each in used} == {"ruff"}
    assert used <= listed


# The image


def test_what_the_image_copies_is_what_the_build_context_lets_in() -> None:
    copied = {
        word
        for line in re.findall(r"^COPY (.+) /src/", read("Dockerfile"), flags=re.MULTILINE)
        for word in line.split()
    }
    served = re.findall(r"^COPY (\S+) ", read("docs/serving/Dockerfile"), flags=re.MULTILINE)
    assert {name for name in served if not name.startswith("docs/serving/")} <= copied
    copied.add("docs/serving")
    allowed = {line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")}
    assert copied == allowed
    assert {name for name in copied if not (CHECKOUT / name).exists()} == set()


def test_the_image_starts_a_command_of_the_package() -> None:
    (entry,) = re.findall(r"^ENTRYPOINT (.+)$", read("Dockerfile"), flags=re.MULTILINE)
    assert json.loads(entry)[0] in project()["scripts"]


# Texts


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", ".github/PULL_REQUEST_TEMPLATE.md"])
def test_every_path_and_link_of_a_text_leads_somewhere(name: str) -> None:
    text = read(name)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    paths = re.findall(r"`((?:blip_recipe|tests|recipes|model_cards|benchmarks)/[^`\s]*)`", text)
    missing = [
        path for path in (*links, *paths) if path and "TASK" not in path and not any(CHECKOUT.glob(path.rstrip("/")))
    ]
    assert missing == []


def test_the_names_that_contributors_are_led_to_are_in_the_files_named_with_them() -> None:
    places = re.findall(
        r"((?:`[\w.]+`(?:, | and | or )?)+) (?:of|in)\s+\[[^\]]+\]\((blip_recipe/[\w/]+\.py)\)", read("CONTRIBUTING.md")
    )
    assert len(places) >= 10
    for names, path in places:
        for name in re.findall(r"`([\w.]+)`", names):
            assert re.search(rf"\b{name.rpartition('.')[2]}\b", read(path)), f"{path} has no {name}"
