"""Checks before training and the one-commit push, against a Hub on loopback that the real client drives."""

from __future__ import annotations

import json
import pickle
import re
import time
from pathlib import Path

import numpy
import pytest
from commands import run_code
from hub_server import FINE_TOKEN, READ_TOKEN, WRITE_TOKEN, HubServer, Token
from huggingface_hub import HfApi
from pushes import CARD, FAST, content_commits, push, write_output_dir
from safetensors.numpy import save_file

from blip_recipe.errors import PushError, RecipeError
from blip_recipe.hub.publishing import PushResult, preflight, published_revision

COMMIT = "POST /api/models/lab/flowers/commit/main"


@pytest.fixture(name="folder")
def fixture_folder(tmp_path: Path) -> Path:
    """An output directory of a full run, with the files that nobody else should see."""
    return write_output_dir(tmp_path / "flowers")


# Before training


@pytest.mark.parametrize(
    ("repo_id", "resolved"),
    [(None, "tester/flowers"), ("tulips", "tester/tulips"), ("tester/tulips", "tester/tulips"), ("lab/x", "lab/x")],
)
def test_preflight_resolves_the_full_name_and_creates_nothing(
    hub: HubServer, api: HfApi, repo_id: str | None, resolved: str
) -> None:
    assert preflight(repo_id, "flowers", None, api) == resolved
    assert not hub.repositories
    assert not hub.requested("POST|PUT|DELETE")


@pytest.mark.parametrize(
    ("repo_id", "token", "expected"),
    [
        ("lab/x", READ_TOKEN, "has only read access"),
        ("library/x", WRITE_TOKEN, "has the role 'read' in library"),
        ("strangers/x", WRITE_TOKEN, "is not a member of strangers.*lab, tester"),
        ("tester/x", FINE_TOKEN, "fine-grained Hub token of tester may not write to tester/x"),
        ("lab/x", "hf_unknown", "does not accept the Hub token.*hf auth login"),
        ("a/b/c", WRITE_TOKEN, "hub_model_id is 'a/b/c'.*expected ORG/NAME"),
        ("lab/two words", WRITE_TOKEN, "hub_model_id is 'lab/two words'"),
    ],
)
def test_preflight_says_what_is_wrong(hub: HubServer, repo_id: str, token: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        preflight(repo_id, "flowers", None, HfApi(endpoint=hub.url, token=token))
    assert not hub.repositories


def test_preflight_accepts_a_fine_grained_token_where_it_may_write() -> None:
    tokens = {
        "hf_org": Token("tester", "fineGrained", ("lab",)),
        "hf_repo": Token("tester", "fineGrained", ("lab/a", "lab/b")),
    }
    with HubServer(tokens) as hub:
        hub.publish_model("lab/a", {})
        assert preflight("lab/new", "", None, HfApi(endpoint=hub.url, token="hf_org")) == "lab/new"
        assert preflight("lab/a", "", None, HfApi(endpoint=hub.url, token="hf_repo")) == "lab/a"
        # A scope on a repository that does not exist lets nobody make it.
        for repo_id in ("lab/new", "lab/b"):
            with pytest.raises(RecipeError, match=f"may not write to {repo_id}"):
                preflight(repo_id, "", None, HfApi(endpoint=hub.url, token="hf_repo"))


def test_preflight_names_a_directory_that_is_no_repository_name(api: HfApi) -> None:
    with pytest.raises(RecipeError, match=r"hub_model_id is not given.*'my run!'"):
        preflight(None, "my run!", None, api)


def test_preflight_refuses_to_publish_what_is_to_be_private(hub: HubServer, api: HfApi) -> None:
    hub.publish_model("lab/open", {})
    hub.publish_model("lab/closed", {}, private=True)
    assert preflight("lab/closed", "", True, api) == "lab/closed"
    with pytest.raises(RecipeError, match="lab/open should be private, but exists and is public"):
        preflight("lab/open", "", True, api)


def test_preflight_survives_a_hiccup_and_reports_an_outage(hub: HubServer, api: HfApi) -> None:
    hub.inject("whoami", status=503)
    assert preflight("lab/x", "", None, api, FAST) == "lab/x"
    hub.inject("whoami", drop="before", times=10)
    with pytest.raises(RecipeError, match=r"cannot be reached.*HF_ENDPOINT"):
        preflight("lab/x", "", None, api, FAST)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({"HF_TOKEN": ""}, "no Hub token.*hf auth login"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set")],
)
def test_preflight_without_token_or_network_says_so(hub: HubServer, variables: dict[str, str], expected: str) -> None:
    code = """
from huggingface_hub import HfApi
from blip_recipe.errors import run_command
from blip_recipe.hub.publishing import preflight
run_command(lambda: preflight("lab/x", "", None, HfApi()))
"""
    environment = hub.environment() | variables
    done = run_code(code, env=environment)
    assert done.returncode == 2
    assert re.search(expected, done.stderr)
    assert "Traceback" not in done.stderr
    assert "retrying in" not in done.stderr


# After training


def test_one_commit_brings_exactly_the_published_files(hub: HubServer, api: HfApi, folder: Path) -> None:
    result = push(folder, api)
    published = hub.files("lab/flowers")
    assert set(published) == {
        "README.md",
        "all_results.json",
        "config.json",
        "model.safetensors",
        "recipe.json",
        "samples/best.jpg",
        "vocab.txt",
    }
    assert all(content == (folder / name).read_bytes() for name, content in published.items())
    assert content_commits(hub) == 1
    assert result == PushResult(f"{hub.url}/lab/flowers", hub.commits("lab/flowers")[0].oid, committed=True)
    assert published_revision("lab/flowers", api) == result.revision


def test_the_report_is_pushed_only_on_request_and_deleted_with_the_next_push(
    hub: HubServer, api: HfApi, folder: Path
) -> None:
    (folder / "report.html").write_text("<!DOCTYPE html>")
    (folder / "report_files").mkdir()
    (folder / "report_files" / "000000.jpg").write_bytes(b"\xff\xd8")
    recipe = json.loads((folder / "recipe.json").read_text())
    for is_asked in (False, True, False):
        (folder / "recipe.json").write_text(json.dumps(recipe | {"push_report": is_asked}))
        push(folder, api)
        report = {name for name in hub.files("lab/flowers") if name.startswith("report")}
        assert report == ({"report.html", "report_files/000000.jpg"} if is_asked else set())


def test_nothing_is_pushed_twice(hub: HubServer, api: HfApi, folder: Path) -> None:
    first = push(folder, api)
    hub.requests.clear()
    assert push(folder, api) == PushResult(first.url, first.revision, committed=False)
    assert content_commits(hub) == 1
    assert {request.method for request in hub.requests} == {"GET"}


def test_only_what_changed_is_sent(hub: HubServer, api: HfApi, folder: Path) -> None:
    push(folder, api)
    (folder / "README.md").write_text(CARD + "\nMore.\n")
    uploads = len(hub.requested("PUT"))
    assert push(folder, api).committed
    assert hub.files("lab/flowers")["README.md"].endswith(b"More.\n")
    assert len(hub.requested("PUT")) == uploads
    assert content_commits(hub) == 2


def test_the_wait_that_the_hub_asks_for_is_kept(hub: HubServer, api: HfApi, folder: Path) -> None:
    hub.inject(COMMIT, status=429, headers={"Retry-After": "1"})
    start = time.monotonic()
    push(folder, api)
    assert time.monotonic() - start > 1
    assert content_commits(hub) == 1


@pytest.mark.parametrize("asked", ["Wed, 21 Oct 2099 07:28:00 GMT", "soon", ""])
def test_a_wait_that_cannot_be_read_is_our_own(hub: HubServer, api: HfApi, folder: Path, asked: str) -> None:
    hub.inject(COMMIT, status=503, headers={"Retry-After": asked})
    start = time.monotonic()
    assert push(folder, api).committed
    assert time.monotonic() - start < 30


def test_a_refusal_is_final_and_names_the_command(hub: HubServer, api: HfApi, folder: Path) -> None:
    hub.inject(COMMIT, status=403, times=10)
    with pytest.raises(PushError, match=rf"python -m blip_recipe.push {folder} --repo_id lab/flowers"):
        push(folder, api)
    assert len(hub.requested(COMMIT)) == 1


def test_a_namespace_of_others_is_refused_at_once(hub: HubServer, api: HfApi, folder: Path) -> None:
    with pytest.raises(PushError, match=r"denies access.*rights to create"):
        push(folder, api, "library/flowers")
    assert len(hub.requested("repos/create")) == 1


def test_an_outage_ends_with_the_command_that_finishes_the_job(hub: HubServer, api: HfApi, folder: Path) -> None:
    hub.inject(COMMIT, status=503, times=10)
    with pytest.raises(PushError, match=r"503(.|\n)*python -m blip_recipe.push"):
        push(folder, api)
    assert len(hub.requested(COMMIT)) == len(FAST) + 1
    hub.faults.clear()
    assert push(folder, api).committed


def test_a_commit_that_came_in_between_is_kept(hub: HubServer, api: HfApi, folder: Path) -> None:
    push(folder, api)
    (folder / "all_results.json").write_text('{"test_cider": 1.4}\n')
    hub.inject(COMMIT, first=lambda: hub.publish_model("lab/flowers", {"NOTES.md": b"mine"}))
    push(folder, api)
    files = hub.files("lab/flowers")
    assert files["NOTES.md"] == b"mine"
    assert b"1.4" in files["all_results.json"]
    assert [request.status for request in hub.requested(COMMIT)] == [200, 412, 200]
    assert [commit.title for commit in hub.commits("lab/flowers")] == ["Upload", "Publish", "Upload", "initial commit"]


@pytest.mark.parametrize("base", ["/home/somebody/base", None, "."])
def test_an_adapter_of_a_base_that_nobody_else_has_is_refused(api: HfApi, tmp_path: Path, base: str | None) -> None:
    folder = write_output_dir(tmp_path / "adapter", adapter=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with pytest.raises(RecipeError, match=r"blip_recipe\.merge"):
        push(folder, api)


def test_files_of_another_kind_of_model_go_and_others_stay(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    push(write_output_dir(tmp_path / "adapter", adapter=True), api)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(hub.files("lab/flowers"))
    stale = {"model-00001-of-00002.safetensors", "samples/worst.jpg", "samples.png"}
    others = {"NOTES.md", "samples/mine.jpg", "onnx/config.json", "model-a/1-of-2.safetensors"}
    hub.publish_model("lab/flowers", dict.fromkeys(stale | others, b"old"))
    push(write_output_dir(tmp_path / "full"), api)
    names = set(hub.files("lab/flowers"))
    assert {"model.safetensors", "config.json", "samples/best.jpg"} | others <= names
    assert not {name for name in names - others if name in stale or name.startswith("adapter_")}
    assert content_commits(hub) == 3


def test_private_is_private(hub: HubServer, api: HfApi, folder: Path) -> None:
    push(folder, api, private=True)
    assert hub.repositories["model", "lab/flowers"].private
    hub.publish_model("lab/open", {})
    with pytest.raises(PushError, match="exists and is public"):
        push(folder, api, "lab/open", private=True)
    assert content_commits(hub, "lab/open") == 1


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors", "samples/best.jpg"])
def test_the_token_is_never_published(hub: HubServer, api: HfApi, folder: Path, name: str) -> None:
    if name == "model.safetensors":
        save_file({"weight": numpy.zeros(4)}, folder / name, metadata={"note": WRITE_TOKEN})
    else:
        (folder / name).write_bytes((folder / name).read_bytes() + WRITE_TOKEN.encode())
    with pytest.raises(PushError, match=f"{name} contains your Hub token") as refused:
        push(folder, api)
    assert WRITE_TOKEN not in str(refused.value)
    assert not hub.repositories


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("content", [pickle.dumps({"a": 1}), b"PK\x03\x04 an archive of torch.save"])
def test_a_pickle_under_another_name_is_refused(
    hub: HubServer, api: HfApi, folder: Path, name: str, content: bytes
) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(PushError, match=f"{name} is a pickle or a damaged file"):
        push(folder, api)
    assert not hub.repositories


def test_a_card_that_cannot_be_read_is_refused_before_anything_is_sent(
    hub: HubServer, api: HfApi, folder: Path
) -> None:
    (folder / "README.md").write_text("---\ntags: [a\n---\n")
    with pytest.raises(PushError, match=r"metadata of README\.md"):
        push(folder, api)
    assert not hub.requests


def test_weights_in_several_files_are_all_published(hub: HubServer, api: HfApi, folder: Path) -> None:
    shards = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
    for name in shards:
        (folder / name).write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors.index.json").write_text("{}")
    (folder / "model.safetensors").unlink()
    push(folder, api)
    names = set(hub.files("lab/flowers"))
    assert {*shards, "model.safetensors.index.json"} <= names
    assert "model.safetensors" not in names


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_an_unfinished_directory_is_an_error_of_the_arguments(folder: Path, api: HfApi, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(RecipeError, match="holds no finished model"):
        push(folder, api)


# The loopback Hub itself


def test_datasets_and_transformers_load_from_the_loopback_hub(hub: HubServer, tmp_path: Path) -> None:
    code = """
import io, sys
import datasets, pyarrow, pyarrow.parquet
from PIL import Image
from transformers import AutoConfig, BlipConfig
from huggingface_hub import HfApi
api = HfApi()
folder = sys.argv[1]
BlipConfig().save_pretrained(folder)
Image.new("RGB", (8, 8), "red").save(f"{folder}/a.png")
picture = open(f"{folder}/a.png", "rb").read()
datasets.Dataset.from_dict({"caption": ["red", "blue"]}).to_parquet(f"{folder}/all.parquet")
for repo_id, files in {
    "lab/table": {"data/train-00000-of-00001.parquet": open(f"{folder}/all.parquet", "rb").read()},
    "lab/pictures": {"test/a.png": picture, "test/metadata.jsonl": b'{"file_name": "a.png", "text": "red"}'},
}.items():
    api.create_repo(repo_id, repo_type="dataset", private=True)
    for name, content in files.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=repo_id, repo_type="dataset")
revision = api.dataset_info("lab/table").sha
api.create_tag("lab/table", tag="v1", repo_type="dataset")
api.upload_file(path_or_fileobj=b"x", path_in_repo="notes.txt", repo_id="lab/table", repo_type="dataset")
for name in (revision, "v1"):
    assert datasets.load_dataset("lab/table", revision=name, split="train")["caption"][:] == ["red", "blue"]
row = datasets.load_dataset("lab/pictures", split="test")[0]
assert row["image"].size == (8, 8) and row["text"] == "red"
api.create_repo("tiny")
api.upload_folder(folder_path=folder, repo_id="tester/tiny", allow_patterns="*.json")
assert type(AutoConfig.from_pretrained("tester/tiny")) is BlipConfig
"""
    done = run_code(code, tmp_path, env=hub.environment())
    assert done.returncode == 0, done.stderr
    assert not [request for request in hub.requests if request.status not in (200, 206, 404)]
