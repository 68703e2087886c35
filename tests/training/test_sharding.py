"""Sharded over two processes (FSDP2), a run learns, scores, saves and goes on as it does without."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from commands import CHECKOUT, run_checked
from hub_server import HubServer
from safetensors.torch import load_file
from transformers import BlipForConditionalGeneration

from blip_recipe.errors import RecipeError
from blip_recipe.recipe.arguments import FinetuneOptions
from blip_recipe.recipe.checks import check_recipe
from blip_recipe.recipe.parsing import Recipe, read_recipe
from blip_recipe.training.sharding import check_checkpoint_sharding, is_fsdp_requested

# Runs that two processes make, one after the other.
pytestmark = pytest.mark.timeout(1900)

LAUNCHED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What `accelerate launch --use_fsdp --fsdp_version 2` says."""


TESTS_TOO = {"PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'tests'}"}
"""Where processes find `fsdp_runs`."""


def scores_of(output_dir: Path) -> dict[str, float]:
    """Losses and scores before, while and after training, without times."""
    results = json.loads((output_dir / "all_results.json").read_text())
    return {name: value for name, value in results.items() if not re.search("runtime|second|time", name)}


def largest_difference(one: Path, other: Path, name: str) -> float:
    weights, others = load_file(one / name), load_file(other / name)
    assert weights.keys() == others.keys()
    return max((weights[key] - others[key]).abs().max().item() for key in weights)


class Runs(NamedTuple):
    """What `fsdp_runs` left.

    Args:
        copies, sharded: The folders of the runs with a copy of the model in each process, and of those that share it.
        log: What the latter said.
        published: The files that the first of the latter pushed.
    """

    copies: Path
    sharded: Path
    log: str
    published: dict[str, bytes]


@pytest.fixture(name="runs", scope="module")
def fixture_runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    place = tmp_path_factory.mktemp("fsdp")
    with HubServer() as hub:
        environment = hub.environment() | TESTS_TOO
        for kind in ("copies", "sharded"):
            done = run_checked("fsdp_runs", place, kind, processes=2, env=environment, timeout=900)
        return Runs(place / "copies", place / "sharded", done.stdout + done.stderr, hub.files("lab/sharded"))


@pytest.mark.parametrize("run", ["full", "lora", pytest.param("vqa", marks=pytest.mark.long)])
def test_a_sharded_run_learns_and_says_what_copies_do(run: str, runs: Runs) -> None:
    if run == "vqa":
        for kind in ("copies", "sharded"):
            run_checked("fsdp_runs", runs.copies.parent, kind, run, processes=2, env=TESTS_TOO, timeout=900)
    copies, sharded = runs.copies / run, runs.sharded / run
    assert largest_difference(copies, sharded, "model.safetensors") < 1e-5
    weights = "adapter_model.safetensors" if run == "lora" else "model.safetensors"
    assert largest_difference(copies / "checkpoint-1", sharded / "checkpoint-1", weights) < 1e-5
    assert largest_difference(copies / "checkpoint-2", copies / "checkpoint-1", weights) > 1e-4
    assert scores_of(sharded) == pytest.approx(scores_of(copies), abs=1e-5)
    predictions = [(folder / "predictions.jsonl").read_text() for folder in (copies, sharded)]
    assert predictions[0] == predictions[1]
    assert len(predictions[1].splitlines()) == 4


def test_each_process_keeps_half_of_the_weights_and_gathers_them_by_layer(runs: Runs) -> None:
    found = re.search(r"Sharded: ([\d,]+) of ([\d,]+) weights in this process, gathered in (\d+) groups", runs.log)
    assert found is not None
    mine, total, groups = (int(number.replace(",", "")) for number in found.groups())
    assert 0.49 < mine / total < 0.51
    config = json.loads((runs.sharded / "full/config.json").read_text())
    layers = config["text_config"]["num_hidden_layers"] + config["vision_config"]["num_hidden_layers"]
    assert groups == layers + 1


@pytest.mark.parametrize("run", ["full", "lora"])
def test_what_a_sharded_run_saves_is_a_stock_model_with_its_card(run: str, runs: Runs) -> None:
    copies, sharded = runs.copies / run, runs.sharded / run
    loaded: Any = BlipForConditionalGeneration.from_pretrained(sharded, output_loading_info=True)
    model, report = loaded
    assert not any(report.values())
    head = model.text_decoder.cls.predictions
    assert head.decoder.weight is model.text_decoder.bert.embeddings.word_embeddings.weight
    assert head.decoder.bias is head.bias
    assert "2 processes" in (sharded / "README.md").read_text()
    files = [{path.name for path in folder.iterdir()} for folder in (copies, sharded)]
    assert files[0] == files[1]


def test_what_a_sharded_run_publishes_captions_as_it_does(runs: Runs) -> None:
    assert runs.published["model.safetensors"] == (runs.sharded / "full/model.safetensors").read_bytes()
    # Said at the end of a push, once the published model was loaded and compared.
    assert re.search(r"^http\S+/lab/sharded$", runs.log, re.MULTILINE)


def test_a_sharded_run_goes_on_from_its_checkpoint_bit_for_bit(runs: Runs) -> None:
    unbroken, resumed = runs.sharded / "full", runs.sharded / "resumed"
    first = [folder / "checkpoint-1/model.safetensors" for folder in (unbroken, resumed)]
    assert first[0].stat().st_mtime_ns == first[1].stat().st_mtime_ns
    for folder in ("", "checkpoint-2"):
        assert largest_difference(unbroken / folder, resumed / folder, "model.safetensors") == 0
    optimizers = [torch.load(run / "checkpoint-2/optimizer.bin", weights_only=True) for run in (unbroken, resumed)]
    torch.testing.assert_close(*(optimizer["state"] for optimizer in optimizers), rtol=0, atol=0)
    assert scores_of(resumed) == scores_of(unbroken)


def test_a_checkpoint_of_the_other_kind_is_refused(runs: Runs) -> None:
    for folder, sharded in zip((runs.copies, runs.sharded), (False, True), strict=True):
        checkpoint = str(folder / "full/checkpoint-1")
        check_checkpoint_sharding(checkpoint, sharded=sharded)
        with pytest.raises(RecipeError, match=r"with(out)? FSDP, but this run is with"):
            check_checkpoint_sharding(checkpoint, sharded=not sharded)


@pytest.mark.parametrize(
    ("keys", "environment", "says"),
    [
        ({"stage": "scst"}, {}, "'scst'"),
        ({"load_in_4bit": True, "use_peft": True}, {}, "load_in_4bit"),
        ({"load_in_8bit": True, "use_peft": True}, {}, "load_in_8bit"),
        ({"torch_compile": True}, {}, "torch_compile"),
        ({"fsdp_config": {"version": 1}}, {}, "version 1"),
        ({"fsdp_config": {"cpu_offload": True}}, {}, "cpu_offload"),
        ({"fsdp_config": {"activation_checkpointing": True}}, {}, "activation_checkpointing"),
        ({"fsdp": None}, LAUNCHED | {"FSDP_VERSION": "1"}, "version 1"),
        ({"fsdp": None}, LAUNCHED | {"FSDP_OFFLOAD_PARAMS": "true"}, "cpu_offload"),
    ],
)
def test_what_does_not_go_with_fsdp_is_refused(
    keys: dict[str, Any], environment: dict[str, str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read(tmp_path, monkeypatch, {"fsdp": True} | keys, environment)
    with pytest.raises(RecipeError, match=says):
        check_recipe(recipe)


def test_momentum_encoders_are_not_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="momentum encoders need full weights in each process"):
        read(tmp_path, monkeypatch, {"fsdp": True, "task": "retrieval"}, {})


@pytest.mark.parametrize(("keys", "environment"), [({"fsdp": True}, {}), ({}, LAUNCHED)])
def test_fsdp_is_asked_for_by_recipe_or_launcher(
    keys: dict[str, Any], environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read(tmp_path, monkeypatch, keys, environment)
    check_recipe(recipe)
    assert is_fsdp_requested(recipe.training)
    # `from_pretrained` would leave all processes but the first without weights.
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"


def read(
    place: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], environment: dict[str, str]
) -> Recipe[FinetuneOptions]:
    """A recipe, as a process under `torchrun` or `accelerate launch` reads it."""
    common = {"dataset_name": "shapes", "model_name_or_path": "a/b", "output_dir": str(place / "out")}
    path = place / "recipe.json"
    path.write_text(json.dumps(common | keys))
    # As `accelerate launch` sets it.
    for name, value in ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"} | environment).items():
        monkeypatch.setenv(name, value)
    recipe = read_recipe(FinetuneOptions, prog="", description="", recipe_needed=True, argv=[str(path)])
    # Only now: before, Trainer's arguments would wait for other processes.
    monkeypatch.setenv("LOCAL_RANK", "0")
    return recipe
