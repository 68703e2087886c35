"""The `push` command, in processes of its own, as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import run_module
from hub_server import READ_TOKEN, HubServer
from pushes import write_output_dir

from blip_recipe.card.retarget import retarget_card


@pytest.fixture(name="hub")
def fixture_hub() -> Iterator[HubServer]:
    """A Hub of this test's own."""
    with HubServer() as hub:
        yield hub


@pytest.fixture(name="folder")
def fixture_folder(tmp_path: Path) -> Path:
    """A finished output directory that was made for lab/flowers."""
    return write_output_dir(tmp_path / "flowers")


def test_push_prints_the_url_and_a_second_push_does_nothing(hub: HubServer, folder: Path) -> None:
    for _ in range(2):
        done = run_module("blip_recipe.push", folder, "--repo_id", "lab/flowers", env=hub.environment())
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{hub.url}/lab/flowers\n"
    assert len(hub.commits("lab/flowers")) == 2


def test_two_machines_push_the_same_files(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    copy = write_output_dir(tmp_path / "elsewhere" / "copy")
    for each, home in ((folder, "one"), (copy, "two")):
        environment = hub.environment(home=tmp_path / home)
        done = run_module("blip_recipe.push", each, "--repo_id", "lab/tulips", env=environment)
        assert done.returncode == 0, done.stderr
    assert len(hub.commits("lab/tulips")) == 2


def test_card_and_recipe_speak_of_the_new_repository_here_and_there(hub: HubServer, folder: Path) -> None:
    options = ["--repo_id", "tulips", "--private", "--commit_message", "For the fair"]
    done = run_module("blip_recipe.push", folder, *options, env=hub.environment())
    assert done.stdout == f"{hub.url}/tester/tulips\n", done.stderr
    published = hub.files("tester/tulips")
    assert published["README.md"] == (folder / "README.md").read_bytes()
    assert b"- name: tester/tulips\n" in published["README.md"]
    assert b'model="tester/tulips")' in published["README.md"]
    assert b"lab/flowers-old" in published["README.md"]
    assert json.loads(published["recipe.json"]) == {"hub_model_id": "tester/tulips", "seed": 1}
    assert hub.repositories["model", "tester/tulips"].private
    assert hub.commits("tester/tulips")[0].title == "For the fair"


@pytest.mark.parametrize(("option", "private"), [([], True), (["--no-private"], False)])
def test_what_a_run_meant_to_keep_private_is_pushed_so_from_anywhere(
    hub: HubServer, folder: Path, option: list[str], private: bool
) -> None:
    (folder / "recipe.json").write_text('{"hub_model_id": "lab/flowers", "hub_private_repo": true}')
    done = run_module("blip_recipe.push", folder, "--repo_id", "lab/tulips", *option, env=hub.environment())
    assert done.returncode == 0, done.stderr
    assert hub.repositories["model", "lab/tulips"].private is private


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["nowhere", "--repo_id", "lab/x"], 2, "nowhere holds no finished model"),
        (["FOLDER", "--repo_id", "a/b/c"], 2, "--repo_id is 'a/b/c'"),
        (["FOLDER"], 2, "required: --repo_id"),
        (["FOLDER", "--repo_id", "lab/x", "--tag", "version 1"], 2, "--tag is 'version 1'"),
        (["FOLDER", "--repo_id", "strangers/x"], 3, "is not a member of strangers"),
    ],
)
def test_wrong_arguments_end_with_2_and_a_push_that_failed_with_3(
    hub: HubServer, folder: Path, arguments: list[str], code: int, expected: str
) -> None:
    words = [str(folder) if word == "FOLDER" else word for word in arguments]
    done = run_module("blip_recipe.push", *words, env=hub.environment())
    assert done.returncode == code
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    assert not hub.repositories


def test_a_refused_push_ends_with_3_and_says_how_to_finish(hub: HubServer, folder: Path) -> None:
    hub.inject("POST .*/commit/", status=403, times=10)
    done = run_module("blip_recipe.push", folder, "--repo_id", "lab/flowers", env=hub.environment())
    assert done.returncode == 3
    assert f"python -m blip_recipe.push {folder} --repo_id lab/flowers" in done.stderr
    assert len(hub.requested("/commit/")) == 1


def test_a_token_that_may_only_read_changes_nothing(hub: HubServer, folder: Path) -> None:
    before = (folder / "README.md").read_bytes()
    done = run_module("blip_recipe.push", folder, "--repo_id", "lab/other", env=hub.environment(READ_TOKEN))
    assert done.returncode == 3
    assert "has only read access" in done.stderr
    assert (folder / "README.md").read_bytes() == before


@pytest.mark.parametrize("kind", ["full", "lora", "merged"])
def test_every_kind_of_card_is_retargeted_whole_and_can_be_turned_back(kind: str) -> None:
    card = (Path(__file__).parent / "card" / "golden" / f"card_{kind}.md").read_text(encoding="utf-8")
    retargeted = retarget_card(card, "lab/blip-coco", "org/new")
    assert "lab/blip-coco" not in retargeted
    assert retarget_card(retargeted, "org/new", "lab/blip-coco") == card


def test_a_card_that_spoke_of_no_repository_yet_speaks_of_this_one(hub: HubServer, folder: Path) -> None:
    (folder / "recipe.json").write_text('{"seed": 1}')
    (folder / "README.md").write_text('# Flowers\n\n```python\npipeline("image-to-text", model="ORG/NAME")\n```\n')
    done = run_module("blip_recipe.push", folder, "--repo_id", "lab/tulips", env=hub.environment())
    assert done.returncode == 0, done.stderr
    assert b'model="lab/tulips"' in hub.files("lab/tulips")["README.md"]
    assert json.loads(hub.files("lab/tulips")["recipe.json"])["hub_model_id"] == "lab/tulips"


def test_retargeting_spares_other_repositories_base_and_data() -> None:
    card = (
        "---\nbase_model: lab/a\ndatasets:\n- lab/a\nmodel-index:\n- name: {model}\n  results: []\n---\n\n"
        "Made from lab/a on `lab/a`; `push DIR --repo_id {model}`.\r\n```\nhf download {model}\n"
        '{model}.\n"{model}" lab/a-b lab/a.1 mylab/a our-lab/a\n```\n'
    )
    assert retarget_card(card.format(model="lab/a"), "lab/a", "org/new") == card.format(model="org/new")
