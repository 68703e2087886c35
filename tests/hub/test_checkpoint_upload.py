"""Checkpoints on a branch of the repository: what is there, what never is, and what if the Hub does not help."""

from __future__ import annotations

import json
import logging
import pickle
import re
import shlex
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from coco import write_image_folder
from commands import run_module, run_script
from hub_server import WRITE_TOKEN, HubServer
from huggingface_hub import HfApi
from pushes import FAST, content_commits, push, write_output_dir
from safetensors.torch import load_file, save_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from blip_recipe.errors import RecipeError
from blip_recipe.hub.checkpoint_upload import CheckpointUploader
from blip_recipe.recipe.arguments import FinetuneOptions
from blip_recipe.recipe.checks import check_recipe
from blip_recipe.recipe.parsing import read_recipe

RECIPE = {"hub_model_id": "lab/flowers", "prompt": "a picture of "}


@pytest.fixture(name="uploader")
def fixture_uploader(hub: HubServer, tmp_path: Path) -> CheckpointUploader:
    """Uploads the checkpoints of `tmp_path`."""
    api = HfApi(endpoint=hub.url, token=WRITE_TOKEN)
    return CheckpointUploader(tmp_path, "lab/flowers", RECIPE, private=None, api=api, waits=FAST)


def save(uploader: CheckpointUploader, step: int, adapter: bool = False) -> Path:
    """Save a checkpoint as Trainer does, state last, and tell the uploader."""
    checkpoint = write_output_dir(uploader.output_dir / f"checkpoint-{step}", adapter, value=step)
    state = {"global_step": step, "best_model_checkpoint": str(checkpoint), "log_history": []}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    uploader.on_save(TrainingArguments(), TrainerState(global_step=step), TrainerControl())
    return checkpoint


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_each_checkpoint_is_one_commit_on_the_branch_and_main_stays_for_the_finished_model(
    hub: HubServer, uploader: CheckpointUploader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "blip_recipe")
    with uploader:
        for step in (10, 20, 30):
            save(uploader, step)
    commits = hub.commits("lab/flowers", revision="checkpoints")
    assert [commit.title for commit in commits[:-1]] == [f"Checkpoint at step {step}" for step in (30, 20, 10)]
    files = hub.files("lab/flowers", commits[1].oid)
    assert files["model.safetensors"] == (tmp_path / "checkpoint-20" / "model.safetensors").read_bytes()
    assert json.loads(files["recipe.json"]) == RECIPE
    assert json.loads(files["trainer_state.json"])["best_model_checkpoint"] == "checkpoint-20"
    assert content_commits(hub) == 0
    assert messages(caplog, logging.INFO)[-1].startswith("3 of 3 checkpoints reached the branch checkpoints of ")
    push(write_output_dir(tmp_path / "finished"), uploader.api)
    assert content_commits(hub) == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_no_pickle_no_card_and_no_local_path_is_uploaded(
    hub: HubServer, uploader: CheckpointUploader, tmp_path: Path
) -> None:
    with uploader:
        save(uploader, 10)
    files = hub.files("lab/flowers", "checkpoints")
    assert not set(files) & {"README.md", "optimizer.pt", "training_args.bin", "predictions.jsonl"}
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]


def test_a_checkpoint_of_another_kind_replaces_the_one_before_and_the_card_of_main(
    hub: HubServer, uploader: CheckpointUploader, tmp_path: Path
) -> None:
    push(write_output_dir(tmp_path / "earlier"), uploader.api)
    with uploader:
        save(uploader, 10, adapter=True)
    names = set(hub.files("lab/flowers", "checkpoints"))
    assert {"adapter_model.safetensors", "adapter_config.json"} <= names
    assert not names & {"model.safetensors", "config.json", "README.md"}
    assert "README.md" in hub.files("lab/flowers")


def test_training_goes_on_and_may_delete_a_checkpoint_while_it_is_uploaded(
    hub: HubServer, uploader: CheckpointUploader
) -> None:
    may_go_on = threading.Event()
    hub.inject("POST .*/commit/checkpoints", first=lambda: may_go_on.wait(30))
    with uploader:
        for step in (10, 20):
            # Returns although the Hub does not answer.
            shutil.rmtree(save(uploader, step))
        assert not may_go_on.is_set()
        threading.Timer(0.3, may_go_on.set).start()
        # Two copies on the disk are enough.
        save(uploader, 30)
        assert may_go_on.is_set()
    commits = hub.commits("lab/flowers", revision="checkpoints")
    assert [commit.title for commit in commits[:-1]] == [f"Checkpoint at step {step}" for step in (30, 20, 10)]


def test_a_hiccup_costs_no_checkpoint_and_a_lost_reply_makes_no_second_commit(
    hub: HubServer, uploader: CheckpointUploader
) -> None:
    hub.inject("POST .*/repos/create", drop="after")
    hub.inject("POST .*/branch/checkpoints", drop="after")
    hub.inject("POST .*/commit/checkpoints", status=503)
    hub.inject("POST .*/commit/checkpoints", drop="after")
    with uploader:
        save(uploader, 10)
    assert len(hub.commits("lab/flowers", revision="checkpoints")) == 2
    assert uploader.failed == 0


def test_what_does_not_arrive_is_a_warning_and_is_counted_at_the_end(
    hub: HubServer, uploader: CheckpointUploader, caplog: pytest.LogCaptureFixture
) -> None:
    hub.inject("POST .*/commit/checkpoints", status=403)
    with uploader:
        first = save(uploader, 10)
        second = save(uploader, 20)
        (second / "config.json").write_bytes(pickle.dumps({}))
        uploader.on_save(TrainingArguments(), TrainerState(global_step=30), TrainerControl())
        save(uploader, 40)
    told = "\n".join(messages(caplog, logging.WARNING))
    assert re.search(r"checkpoint at step 10 was not uploaded\. .*denies access.*403", told)
    assert re.search(r"checkpoint at step 30 was not uploaded\. It cannot be copied: .*checkpoint-30", told)
    assert told.splitlines()[-1].startswith("2 of 4 checkpoints did not reach the branch checkpoints of ")
    titles = [commit.title for commit in hub.commits("lab/flowers", revision="checkpoints")]
    assert titles[:-1] == ["Checkpoint at step 40", "Checkpoint at step 20"]
    assert first.exists()


@pytest.mark.parametrize("died_before", [True, False])
def test_the_checkpoint_that_is_resumed_from_is_there_once(
    hub: HubServer, uploader: CheckpointUploader, died_before: bool
) -> None:
    hub.inject("POST .*/commit/checkpoints", status=403, times=int(died_before))
    with uploader:
        save(uploader, 10)
    assert uploader.failed == died_before
    with uploader:
        uploader.on_train_begin(TrainingArguments(), TrainerState(global_step=10), TrainerControl())
        save(uploader, 20)
    titles = [commit.title for commit in hub.commits("lab/flowers", revision="checkpoints")]
    assert titles == ["Checkpoint at step 20", "Checkpoint at step 10", "initial commit"]


def test_an_error_of_the_training_passes_through_and_drops_what_waits(
    hub: HubServer, uploader: CheckpointUploader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    may_go_on = threading.Event()
    hub.inject("POST .*/commit/checkpoints", first=lambda: may_go_on.wait(30))
    threading.Timer(0.5, may_go_on.set).start()

    def train() -> None:
        with uploader:
            save(uploader, 10)
            save(uploader, 20)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert "1 of 2 checkpoints did not reach" in messages(caplog, logging.WARNING)[-1]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# The main job

RUNS = """
import sys
from blip_recipe.errors import PushError
from blip_recipe.finetune import main
arguments = ["recipes/shapes_tiny.json", *sys.argv[1:]]
for seed, name in enumerate(("good", "damaged", "expires")):
    try:
        # Other weights each time: the Hub keeps the same bytes once.
        main([*arguments, "--seed", str(seed), "--hub_model_id", f"lab/{name}", "--output_dir", name])
    except PushError as error:
        print(error)
"""
KEYS = {
    "num_train_epochs": "2",
    "save_steps": "1",
    "eval_strategy": "no",
    "load_best_model_at_end": "false",
    "metrics": "exact_match",
    "dataloader_num_workers": "0",
    "push_to_hub": "true",
    "hub_private_repo": "true",
    "hub_strategy": "all_checkpoints",
    "hub_tag": "v1",
}


def damage(hub: HubServer, repo_id: str) -> None:
    """Let the stored weights say one word, with the name and size of the pushed ones."""
    stored = hub.commits(repo_id)[0].files["model.safetensors"].path
    weights = load_file(stored)
    weights["text_decoder.cls.predictions.bias"][7] = 1000
    save_file(weights, stored, metadata={"format": "pt"})


@pytest.fixture(name="runs", scope="module")
def fixture_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubServer, Path, list[str]]]:
    """Three runs, of which one goes well: the Hub, where they were run, and what they printed."""
    place = tmp_path_factory.mktemp("runs")
    script = place / "runs.py"
    script.write_text(RUNS)
    options = ["--dataset_name", str(write_image_folder(place / "pictures"))]
    options += [word for key, value in KEYS.items() for word in (f"--{key}", value)]
    with HubServer() as hub:
        # The check of the published model sees through a hiccup too.
        hub.inject("HEAD /lab/good/resolve/", status=503)
        hub.inject("POST /api/models/lab/expires/commit/checkpoints", status=403)
        hub.inject(
            "GET /api/models/lab/expires/tree/",
            drop="before",
            skip=2,
            first=lambda: hub.tokens.pop(WRITE_TOKEN),
        )
        hub.inject("HEAD /lab/damaged/resolve/.*/model.safetensors", first=lambda: damage(hub, "lab/damaged"))
        printed = run_script(script, *options, env=hub.environment(), cwd=place)
        yield hub, place, printed.splitlines()


def test_a_run_publishes_its_checkpoints_and_one_tagged_commit_privately(
    runs: tuple[HubServer, Path, list[str]],
) -> None:
    hub, place, printed = runs
    assert f"{hub.url}/lab/good" in printed
    assert content_commits(hub, "lab/good") == 1
    repository = hub.repositories["model", "lab/good"]
    assert repository.private
    assert repository.tags == {"v1": hub.commits("lab/good")[0].oid}
    commits = hub.commits("lab/good", revision="checkpoints")
    assert [commit.title for commit in commits] == ["Checkpoint at step 2", "Checkpoint at step 1", "initial commit"]
    files = hub.files("lab/good", "checkpoints")
    assert {"model.safetensors", "tokenizer.json", "processor_config.json", "trainer_state.json"} <= set(files)
    assert not [name for name in files if name.endswith((".pt", ".pth", ".bin", ".md"))]
    assert files["model.safetensors"] == (place / "good" / "checkpoint-2" / "model.safetensors").read_bytes()
    assert WRITE_TOKEN.encode() not in b"".join(files.values())


def test_a_token_that_expires_in_the_run_ends_with_the_command_that_finishes_the_job(
    runs: tuple[HubServer, Path, list[str]],
) -> None:
    hub, place, printed = runs
    assert content_commits(hub, "lab/expires") == 0
    commits = hub.commits("lab/expires", revision="checkpoints")
    assert [commit.title for commit in commits] == ["Checkpoint at step 2", "initial commit"]
    assert [line for line in printed if "does not accept the Hub token" in line]
    finish = [line.partition("finish with: python -m ")[2] for line in printed if "finish with" in line]
    assert finish == ["blip_recipe.push expires --repo_id lab/expires --private --tag v1"]
    hub.tokens = HubServer().tokens
    module, *options = shlex.split(finish[0])
    again = run_module(module, *options, cwd=place, env=hub.environment())
    assert again.returncode == 0, again.stderr
    assert content_commits(hub, "lab/expires") == 1
    assert hub.repositories["model", "lab/expires"].tags == {"v1": hub.commits("lab/expires")[0].oid}


def test_a_published_model_that_captions_otherwise_is_no_success(runs: tuple[HubServer, Path, list[str]]) -> None:
    hub, _, printed = runs
    told = [line for line in printed if line.startswith(f"{hub.url}/lab/damaged was pushed, but the model loaded from")]
    assert len(told) == 1
    assert told[0].endswith("To push again: python -m blip_recipe.push damaged --repo_id lab/damaged")
    assert f"{hub.url}/lab/damaged" not in printed


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--hub_revision", "dev"], "hub_revision is 'dev', but a finished model is pushed to main"),
        (["--hub_strategy", "sometimes"], "sometimes"),
        (
            ["--use_peft", "true", "--merge_adapter", "true", "--hub_strategy", "checkpoint"],
            "which nobody else has.*without hub_strategy",
        ),
    ],
)
def test_keys_that_cannot_be_kept_are_refused(tmp_path: Path, options: list[str], expected: str) -> None:
    words = ["recipes/shapes_tiny.json", "--push_to_hub", "true", "--model_name_or_path", str(tmp_path), *options]
    with pytest.raises(RecipeError, match=expected):
        check_recipe(read_recipe(FinetuneOptions, prog="", description="", recipe_needed=True, argv=words))
