"""The main job on real input: from the recipes that people run to captions out of a published repository."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from coco import picture, publish_base_model, publish_coco, publish_flickr8k, write_image_folder
from commands import CHECKOUT, run_checked, run_module
from hub_server import WRITE_TOKEN, HubServer
from huggingface_hub import ModelCard

from blip_recipe.adapters import load_captioner, merged_captioner
from blip_recipe.resources import resource_folder

PUBLISHED = {
    "lora": {"adapter_config.json", "adapter_model.safetensors"},
    "full": {"config.json", "generation_config.json", "model.safetensors"},
}
ALWAYS_PUBLISHED = {
    "README.md",
    "all_results.json",
    "preprocessor_config.json",
    "processor_config.json",
    "recipe.json",
    "samples.png",
    "tokenizer.json",
    "tokenizer_config.json",
    "training_curves.png",
}
SAME_CAPTIONS = """
import json, sys
from pathlib import Path
import blip_recipe
from transformers import pipeline
captioner = pipeline("image-to-text", model=sys.argv[1], device="cpu")
for path in sorted(Path(sys.argv[2]).iterdir()):
    print(json.dumps(captioner(str(path))[0]["generated_text"]))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    folder = tmp_path_factory.mktemp("published")
    with HubServer() as server:
        publish_base_model(server, folder / "model")
        for publish in (publish_coco, publish_flickr8k):
            (folder / publish.__name__).mkdir()
            publish(server, folder / publish.__name__)
        yield server


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures of COCO's test split, in its order."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(21, 27):
        (folder / f"{number}.png").write_bytes(picture(number)["bytes"])
    return folder


@pytest.fixture(scope="module", params=["coco_lora", "coco_full", "coco_lora_8bit", "coco_qlora_4bit"])
def run(request: pytest.FixtureRequest, hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe, run word for word in an empty directory by somebody who is logged in."""
    place = tmp_path_factory.mktemp(request.param)
    done = run_checked("blip_recipe.finetune", f"recipes/{request.param}.json", cwd=place, env=hub.environment())
    name = json.loads((resource_folder("recipes") / f"{request.param}.json").read_text())["hub_model_id"]
    return {
        "recipe": request.param,
        "kind": "full" if request.param == "coco_full" else "lora",
        "repo_id": f"tester/{name}",
        "output_dir": place / "outputs" / request.param,
        "stderr": done.stderr,
        "stdout": done.stdout,
    }


def test_one_commit_holds_what_the_output_directory_holds_and_nothing_secret(
    run: dict[str, Any], hub: HubServer
) -> None:
    assert len(hub.commits(run["repo_id"])) == 2  # the Hub's own first one, and ours
    files = hub.files(run["repo_id"])
    assert set(files) == ALWAYS_PUBLISHED | PUBLISHED[run["kind"]]
    for name, content in files.items():
        assert content == (run["output_dir"] / name).read_bytes()
        assert WRITE_TOKEN.encode() not in content
        assert str(run["output_dir"].parent).encode() not in content
        assert str(CHECKOUT).encode() not in content
    assert WRITE_TOKEN not in run["stderr"] + run["stdout"]


def test_scores_are_those_of_the_contract_and_the_card_shows_them(run: dict[str, Any]) -> None:
    results = json.loads((run["output_dir"] / "all_results.json").read_text())
    names = {"loss", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider"}
    assert {f"{split}_{name}" for split in ("baseline", "test", "eval") for name in names} <= set(results)
    card = ModelCard.load(run["output_dir"] / "README.md")
    metrics = {each["type"]: each["value"] for each in card.data.to_dict()["model-index"][0]["results"][0]["metrics"]}
    assert metrics["cider"] == pytest.approx(results["test_cider"], abs=5e-4)
    assert card.data.base_model


def test_the_published_model_gives_the_captions_that_were_scored(
    run: dict[str, Any], hub: HubServer, images: Path, tmp_path: Path
) -> None:
    script = tmp_path / "captions.py"
    script.write_text(SAME_CAPTIONS)
    env = hub.environment(token=None, home=tmp_path / "home")
    captions = [json.loads(line) for line in _run_script(script, run["repo_id"], images, env=env).splitlines()]
    lines = (run["output_dir"] / "predictions.jsonl").read_text().splitlines()
    assert captions == [json.loads(line)["caption"] for line in lines]


def _run_script(script: Path, *arguments: str | Path, env: dict[str, str]) -> str:
    import subprocess

    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**env, "PYTHONPATH": str(CHECKOUT)}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_progress_is_seen_without_a_terminal(run: dict[str, Any]) -> None:
    steps = json.loads((run["output_dir"] / "trainer_state.json").read_text())["max_steps"]
    assert f"{steps}/{steps}" in run["stderr"]


def test_a_rerun_trains_nothing_again_and_pushes_nothing_twice(run: dict[str, Any], hub: HubServer) -> None:
    if run["recipe"] != "coco_lora":
        pytest.skip("one recipe shows it")
    before = (run["output_dir"] / "adapter_model.safetensors").read_bytes()
    place = run["output_dir"].parent.parent
    run_checked("blip_recipe.finetune", "recipes/coco_lora.json", cwd=place, env=hub.environment())
    assert (run["output_dir"] / "adapter_model.safetensors").read_bytes() == before
