"""Pushes that arrive: what goes wrong on the way to the Hub, between any two requests, and how it ends.

A push is killed before and after every fourth request took effect; `make test-all` does so for every request. To the
Hub, a request that was lost is the one before whose reply was lost.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from commands import Process, run_module, start_module
from hub_server import WRITE_TOKEN, HubServer
from huggingface_hub import HfApi
from pushes import FAST, content_commits, push, write_output_dir

from blip_recipe.errors import PushError
from blip_recipe.hub.published_files import published_files
from blip_recipe.hub.publishing import push_folder

PUSH = ("--repo_id", "lab/tulips", "--tag", "v1")
"""Of a folder that was made for another repository, so that card and recipe change too."""


@pytest.fixture(name="folder")
def fixture_folder(tmp_path: Path) -> Path:
    """An output directory with one file for LFS, so that the order of requests is always the same."""
    return one_upload(tmp_path / "flowers")


def one_upload(folder: Path) -> Path:
    """Write an output directory in which only the weights are stored as an LFS object."""
    write_output_dir(folder)
    (folder / "samples" / "best.jpg").unlink()
    return folder


def assert_arrived(hub: HubServer, folder: Path, repo_id: str) -> None:
    """One commit holds every byte, and another push makes none."""
    assert hub.files(repo_id) == {name: path.read_bytes() for name, path in published_files(folder).items()}
    assert content_commits(hub, repo_id) == 1
    assert hub.repositories["model", repo_id].tags == {"v1": hub.commits(repo_id)[0].oid}
    api = HfApi(endpoint=hub.url, token=WRITE_TOKEN)
    assert not push_folder(folder, repo_id, private=None, message="Again", tag="v1", api=api).committed
    assert content_commits(hub, repo_id) == 1


def finishing_command(message: str) -> list[str]:
    """The arguments of the push command that a message names, once."""
    commands = re.findall(r"finish with: python -m blip_recipe\.push (.*)", message)
    assert len(commands) == 1, message
    return shlex.split(commands[0])


# A process that dies


def push_and_kill(hub: HubServer, folder: Path, **fault: Any) -> int:
    """Push in a process of its own, which is killed in the course of a request; returns how it ended."""
    children: list[Process] = []

    def kill() -> None:
        children[0].kill()
        children[0].wait()

    hub.inject(first=kill, **fault)
    children.append(start_module("blip_recipe.push", folder, *PUSH, env=hub.environment(), log=Path(os.devnull)))
    return children[0].wait(timeout=120)


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("request_", "drop", "at_least"),
    [
        pytest.param("^GET|^POST|^PUT", "after", 16, id="the request took effect, the reply was lost"),
        # Of requests that change nothing, both are the same.
        pytest.param("^POST|^PUT", "before", 8, id="the request was lost"),
    ],
)
def test_a_push_killed_between_any_two_requests_is_finished_by_the_same_command(
    tmp_path: Path, request_: str, drop: str, step: int, at_least: int
) -> None:
    for skip in range(0, 100, step):
        folder = one_upload(tmp_path / f"run_{skip}")
        with HubServer() as hub:
            ended = push_and_kill(hub, folder, request=request_, skip=skip, drop=drop)
            if ended != 0:
                assert ended == -signal.SIGKILL
                again = run_module("blip_recipe.push", folder, *PUSH, env=hub.environment())
                assert again.returncode == 0, (skip, again.stderr)
            assert_arrived(hub, folder, "lab/tulips")
        if ended == 0:
            break
    assert skip >= at_least


# What the network and the server do

OURS = [
    "GET /api/models/lab/tulips$",
    "POST /api/repos/create",
    "GET .*/refs",
    "POST .*/validate-yaml",
    "PUT /lfs/",
    "POST .*/commit/",
    "POST .*/tag/",
]
THE_CLIENTS = ["GET .*/tree/", "POST .*/objects/batch"]
"""Requests that the client itself tries again, after a second each; it does so with preupload and verify too."""


@pytest.mark.parametrize(
    ("requests", "fault"),
    [(OURS + THE_CLIENTS, {"status": 503}), (OURS, {"drop": "before"}), (OURS, {"drop": "after"})],
    ids=["503", "lost request", "lost reply"],
)
def test_though_every_request_fails_once_the_push_arrives_in_one_commit(
    hub: HubServer, api: HfApi, folder: Path, requests: list[str], fault: dict[str, Any]
) -> None:
    faults = [hub.inject(request, **fault) for request in requests]
    waits = (0.01,) * len(requests)
    push_folder(folder, "lab/tulips", private=None, message="Upload", tag="v1", api=api, waits=waits)
    assert not [each.request for each in faults if each.times]
    assert_arrived(hub, folder, "lab/tulips")


@pytest.mark.parametrize(
    "request_",
    ["POST /api/repos/create", "POST .*/preupload/", "POST .*/objects/batch", "PUT /lfs/", "POST .*/commit/"],
)
def test_a_refusal_is_final_wherever_it_comes(hub: HubServer, api: HfApi, folder: Path, request_: str) -> None:
    hub.inject(request_, status=403, times=10, headers={"X-Error-Message": "Only with a pull request."})
    with pytest.raises(PushError, match=r"denies access.*403: Only with a pull request") as refused:
        push(folder, api, "lab/tulips")
    assert len(hub.requested(request_)) == 1
    assert finishing_command(str(refused.value)) == [str(folder), "--repo_id", "lab/tulips"]


@pytest.mark.parametrize(("status", "expected"), [(403, "denies access"), (401, "does not accept the Hub token")])
def test_a_refusal_of_the_xet_storage_is_final_too(
    hub: HubServer, api: HfApi, folder: Path, monkeypatch: pytest.MonkeyPatch, status: int, expected: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    hub.inject("xet-write-token", status=status, times=10)
    with pytest.raises(PushError, match=expected):
        push(folder, api, "lab/tulips")
    assert len(hub.requested("xet-write-token")) == 1
    assert content_commits(hub, "lab/tulips") == 0


def test_a_tag_that_is_refused_does_not_hide_that_the_model_was_pushed(
    hub: HubServer, api: HfApi, folder: Path
) -> None:
    hub.inject("POST .*/tag/", status=403)
    with pytest.raises(PushError, match=r"lab/tulips was pushed, but not tagged v1\."):
        push_folder(folder, "lab/tulips", private=None, message="Upload", tag="v1", api=api, waits=FAST)
    assert content_commits(hub, "lab/tulips") == 1


EXPIRED: dict[str, Callable[[HubServer], object]] = {
    "revoked": lambda hub: hub.tokens.pop(WRITE_TOKEN),
    "expired": lambda hub: hub.inject(
        ".", status=401, times=99, headers={"X-Error-Message": 'User Access Token "test" is expired'}
    ),
}


@pytest.mark.parametrize(
    ("how", "request_"),
    [
        ("expired", "POST /api/repos/create"),
        ("expired", "POST .*/commit/"),
        ("revoked", "POST .*/preupload/"),
    ],
)
def test_a_token_that_expires_on_the_way_ends_with_the_command_that_finishes_the_job(
    hub: HubServer, folder: Path, how: str, request_: str
) -> None:
    hub.inject(request_, drop="before", first=lambda: EXPIRED[how](hub))
    done = run_module("blip_recipe.push", folder, *PUSH, "--private", env=hub.environment())
    assert done.returncode == 3, done.stderr
    assert "does not accept the Hub token" in done.stderr
    assert done.stderr.count("error: ") == 1
    assert not hub.repositories or content_commits(hub, "lab/tulips") == 0
    hub.faults.clear()
    hub.tokens = HubServer().tokens
    again = run_module("blip_recipe.push", *finishing_command(done.stderr), env=hub.environment())
    assert again.returncode == 0, again.stderr
    assert hub.repositories["model", "lab/tulips"].private
    assert_arrived(hub, folder, "lab/tulips")


def test_a_hub_that_stays_away_ends_with_the_command_that_finishes_the_job(hub: HubServer, folder: Path) -> None:
    hub.inject(".", drop="before", times=1000)
    done = run_module("blip_recipe.push", folder, *PUSH, env=hub.environment())
    assert done.returncode == 3
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
    hub.faults.clear()
    again = run_module("blip_recipe.push", *finishing_command(done.stderr), env=hub.environment())
    assert again.returncode == 0, again.stderr
    assert_arrived(hub, folder, "lab/tulips")


@pytest.mark.parametrize(
    "request_", ["POST /api/repos/create", "POST .*/preupload/", "POST .*/commit/", "POST .*/tag/"]
)
def test_two_machines_that_push_at_once_make_one_commit(
    hub: HubServer, api: HfApi, folder: Path, request_: str
) -> None:
    def push_too() -> None:
        other = HfApi(endpoint=hub.url, token=WRITE_TOKEN)
        push_folder(folder, "lab/tulips", private=None, message="Upload", tag="v1", api=other, waits=FAST)

    hub.inject(request_, first=push_too)
    push_folder(folder, "lab/tulips", private=None, message="Upload", tag="v1", api=api, waits=FAST)
    assert_arrived(hub, folder, "lab/tulips")


# Repositories under other names


def test_a_renamed_repository_is_pushed_to_under_its_new_name(hub: HubServer, folder: Path) -> None:
    hub.publish_model("lab/tulips", {"NOTES.md": b"mine"}, private=True)
    hub.rename("lab/tulips", "lab/narcissi")
    done = run_module("blip_recipe.push", folder, *PUSH, env=hub.environment())
    assert done.stdout == f"{hub.url}/lab/narcissi\n", done.stderr
    assert "lab/tulips is named lab/narcissi on the Hub" in done.stderr
    assert b'model="lab/narcissi"' in hub.files("lab/narcissi")["README.md"]
    assert not hub.requested("POST .*tulips")


def test_a_repository_renamed_during_the_run_is_found(hub: HubServer, api: HfApi, folder: Path) -> None:
    hub.publish_model("lab/tulips", {})
    hub.rename("lab/tulips", "lab/narcissi")
    assert push(folder, api, "lab/tulips").committed
    assert hub.files("lab/narcissi")["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert not hub.requested("POST .*tulips")


@pytest.mark.parametrize("exists", [True, False])
def test_a_name_in_other_capitals_is_the_same_repository(hub: HubServer, folder: Path, exists: bool) -> None:
    name = "lab/Tulips" if exists else "lab/tuLIPS"
    if exists:
        hub.publish_model(name, {})
    done = run_module("blip_recipe.push", folder, "--repo_id", "LAB/tuLIPS", env=hub.environment())
    assert done.stdout == f"{hub.url}/{name}\n", done.stderr
    assert set(hub.repositories) == {("model", name)}


# Tags


def test_a_tag_names_the_published_commit_and_stays_there(hub: HubServer, api: HfApi, folder: Path) -> None:
    options: dict[str, Any] = {"private": None, "message": "Upload", "tag": "v1", "api": api, "waits": FAST}
    push_folder(folder, "lab/tulips", **options)
    assert_arrived(hub, folder, "lab/tulips")
    hub.publish_model("lab/tulips", {"NOTES.md": b"mine"})
    # The tag still holds these files, whatever somebody added since.
    assert not push_folder(folder, "lab/tulips", **options).committed
    (folder / "all_results.json").write_text("{}")
    commits = hub.commits("lab/tulips")
    with pytest.raises(PushError, match=rf"tag v1 exists at commit {commits[1].oid} with other files"):
        push_folder(folder, "lab/tulips", **options)
    assert hub.commits("lab/tulips") == commits
    push_folder(folder, "lab/tulips", **(options | {"tag": "v2"}))
    assert hub.repositories["model", "lab/tulips"].tags["v2"] == hub.commits("lab/tulips")[0].oid


def test_a_branch_is_no_tag(hub: HubServer, api: HfApi, folder: Path) -> None:
    with pytest.raises(PushError, match="main is a branch of lab/tulips"):
        push_folder(folder, "lab/tulips", private=None, message="Upload", tag="main", api=api, waits=FAST)
    assert content_commits(hub, "lab/tulips") == 0
