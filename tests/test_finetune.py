"""The main job on real input: from the recipes that people run to captions out of a published repository."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from coco import (
    picture,
    publish_base_model,
    publish_coco,
    publish_empty_dataset,
    publish_flickr8k,
    publish_flickr30k,
    publish_other_bases,
    write_image_folder,
)
from commands import CHECKOUT, run_checked, run_module, run_script
from hub_server import WRITE_TOKEN, HubServer
from huggingface_hub import ModelCard

from blip_recipe.compare import main as compare
from blip_recipe.data.resources import resource_folder
from blip_recipe.recipe.file import packaged_recipes

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
    "samples/best.jpg",
    "samples/median.jpg",
    "samples/worst.jpg",
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
        (folder / "flickr30k").mkdir()
        publish_flickr30k(server, folder / "flickr30k", {"train": 34, "val": 5, "test": 6})
        yield server


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures of COCO's test split, in its order."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(21, 27):
        (folder / f"{number}.png").write_bytes(picture(number)["bytes"])
    return folder


RUNS = ["coco_lora", "coco_full", pytest.param("coco_lora_8bit", marks=pytest.mark.long), "coco_qlora_4bit"]
"""The merged run below keeps the 8-bit recipe in `make test`."""


@pytest.fixture(scope="module", params=RUNS)
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


def test_the_texts_of_the_base_model_are_kept_beside_those_of_the_finished_one(
    run: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    results = json.loads((run["output_dir"] / "all_results.json").read_text())
    images = []
    for role, name in (("test", "predictions.jsonl"), ("baseline", "baseline_predictions.jsonl")):
        lines = [json.loads(line) for line in (run["output_dir"] / name).read_text().splitlines()]
        images.append([(line["image_id"], line["references"]) for line in lines])
        for score in ("cider", "rouge_l"):
            values = [line["scores"][score] for line in lines]
            assert sum(values) / len(values) == pytest.approx(results[f"{role}_{score}"], abs=1e-12)
    assert images[0] == images[1]
    compare(
        [str(run["output_dir"] / name) for name in ("baseline_predictions.jsonl", "predictions.jsonl")] + ["--json"]
    )
    compared = json.loads(capsys.readouterr().out)["scores"]
    # The run keeps what it knows; the command reads the files and scores them anew.
    for name, each in compared.items():
        assert each["second"] == pytest.approx(results[f"test_{name}"], abs=1e-9)
        assert each["second_interval"] == pytest.approx(
            [results[f"test_{name}_{end}"] for end in ("low", "high")], abs=1e-9
        )
        assert each["p_value"] == pytest.approx(results[f"test_{name}_p_value"], abs=1e-9)
    assert {"bleu_4", "cider", "meteor", "rouge_l"} <= compared.keys()


def test_the_report_shows_every_scored_picture_and_stays_here(run: dict[str, Any]) -> None:
    page = (run["output_dir"] / "report.html").read_text(encoding="utf-8")
    data, pictures = (
        json.loads(each) for each in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page)
    )
    lines, before = (
        [json.loads(line) for line in (run["output_dir"] / name).read_text().splitlines()]
        for name in ("predictions.jsonl", "baseline_predictions.jsonl")
    )
    assert [row["text"] for row in data["rows"]] == [line["caption"] for line in lines]
    assert [row["base"] for row in data["rows"]] == [line["caption"] for line in before]
    assert len(pictures) == len(lines)
    assert all(pictures)
    assert "report.html" not in (run["output_dir"] / "README.md").read_text(encoding="utf-8")


def test_the_published_model_gives_the_captions_that_were_scored(
    run: dict[str, Any], hub: HubServer, images: Path, tmp_path: Path
) -> None:
    script = tmp_path / "captions.py"
    script.write_text(SAME_CAPTIONS)
    env = hub.environment(token=None, home=tmp_path / "home")
    captions = [json.loads(line) for line in run_script(script, run["repo_id"], images, env=env).splitlines()]
    lines = (run["output_dir"] / "predictions.jsonl").read_text().splitlines()
    assert captions == [json.loads(line)["caption"] for line in lines]


def test_a_merged_run_publishes_a_plain_model_of_its_own_image_size(
    hub: HubServer, images: Path, tmp_path: Path
) -> None:
    options = [
        "--merge_adapter",
        "true",
        "--image_size",
        "144",
        "--hub_model_id",
        "lab/merged",
        "--metrics",
        "bleu",
        "cider",
    ]
    run_checked("blip_recipe.finetune", "recipes/coco_lora_8bit.json", *options, cwd=tmp_path, env=hub.environment())
    assert set(hub.files("lab/merged")) == ALWAYS_PUBLISHED | PUBLISHED["full"]
    script = tmp_path / "captions.py"
    script.write_text(SAME_CAPTIONS)
    env = hub.environment(token=None, home=tmp_path / "home")
    captions = [json.loads(line) for line in run_script(script, "lab/merged", images, env=env).splitlines()]
    lines = (tmp_path / "outputs" / "coco_lora_8bit" / "predictions.jsonl").read_text().splitlines()
    assert captions == [json.loads(line)["caption"] for line in lines]


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


DRY_RUNS = """
import json, sys
from blip_recipe.finetune import main
from blip_recipe.data.resources import resource_folder
from blip_recipe.recipe.file import packaged_recipes
SMALL = ["--max_train_samples", "64", "--max_eval_samples", "16"]
for recipe in sys.argv[2:]:
    options = [*SMALL] if recipe.startswith("shapes") else []
    if recipe in ("my_folder", "capfilt_train"):
        options = ["--dataset_name", sys.argv[1]]
    if recipe == "my_pictures":
        options = ["--dataset_name", sys.argv[1], "--train_split", "train+validation+test", "--test_fraction", "0.3"]
        options += ["--validation_fraction", "0.3"]
    if recipe == "vqav2":
        options = [*SMALL, "--dataset_name", "shapes", "--train_split", "train", "--eval_split", "validation"]
        options += ["--image_root", "null", "--answer_min_questions", "1"]
    content = json.loads((resource_folder("recipes") / f"{recipe}.json").read_text())
    if content["model_name_or_path"].startswith("outputs/"):
        options += ["--model_name_or_path", "lab/tiny"]
    main([f"recipes/{recipe}.json", "--dry_run", "true", *options])
    print("---")
"""


def test_every_recipe_can_be_dry_run_and_writes_nothing(hub: HubServer, tmp_path: Path) -> None:
    # Recipes of other commands name no training split; tests/test_recipes.py runs them.
    names = [path.stem for path in packaged_recipes() if "train_split" in json.loads(path.read_text())]
    hub.publish_model("lab/tiny", hub.files("Salesforce/blip-image-captioning-base"))
    publish_other_bases(hub, tmp_path / "bases")
    before = len(hub.repositories)
    script, place = tmp_path / "dry_runs.py", tmp_path / "place"
    script.write_text(DRY_RUNS)
    place.mkdir()
    folder = write_image_folder(tmp_path / "pictures")
    plans = run_script(script, folder, *names, env=hub.environment(), cwd=place).split("---\n")[:-1]
    assert len(plans) == len(names) > 10
    for name, plan in zip(names, plans, strict=True):
        facts = dict(line.split(None, 1) for line in plan.splitlines())
        assert {"model", "train", "steps", "memory", "output", "push"} <= facts.keys()
        assert facts["output"] == f"outputs/{name}"
        assert facts["push"].startswith("tester/") == name.startswith(("coco", "flickr", "vqav2"))
    assert len(hub.repositories) == before
    assert not [path for path in place.rglob("*") if path.is_file()]


SMALL_RUN = ["--max_train_samples", "8", "--max_eval_samples", "4", "--num_train_epochs", "1", "--eval_strategy", "no"]
NO_BEST = ["--load_best_model_at_end", "false", "--save_strategy", "no", "--metrics", "exact_match", "cider"]


def test_a_push_that_fails_leaves_everything_saved_and_says_how_to_finish(hub: HubServer, tmp_path: Path) -> None:
    hub.inject("POST .*/commit/", status=403, times=1)
    push = ["--push_to_hub", "true", "--hub_model_id", "lab/refused", "--output_dir", "out"]
    arguments = ["recipes/shapes_tiny.json", *SMALL_RUN, *NO_BEST, *push]
    done = run_module("blip_recipe.finetune", *arguments, cwd=tmp_path, env=hub.environment())
    assert done.returncode == 3, done.stderr[-2000:]
    command = "python -m blip_recipe.push out --repo_id lab/refused"
    assert command in done.stderr
    assert "Traceback" not in done.stderr
    assert {"model.safetensors", "README.md", "recipe.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    run_checked("blip_recipe.push", *command.split()[3:], cwd=tmp_path, env=hub.environment())
    assert hub.files("lab/refused")["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()


WRONG: dict[str, tuple[list[str], str]] = {
    "unknown key": (["recipes/coco_lora.json", "--lora_rank", "4"], "lora_r"),
    "missing column": (["recipes/coco_lora.json", "--caption_column", "english"], "filename"),
    "quantised without adapter": (["recipes/coco_lora_8bit.json", "--use_peft", "false"], "use_peft"),
    "not a BLIP": (["recipes/coco_lora.json", "--model_name_or_path", "lab/not-blip"], "vit"),
    "empty split": (["recipes/coco_lora.json", "--dataset_name", "lab/empty", "--dataset_revision", "main"], "empty"),
    "no such metric": (["recipes/coco_lora.json", "--metrics", "blue"], "blue"),
    "minimum over maximum": (["recipes/coco_lora.json", "--generation_min_length", "30"], "generation_min_length"),
    "a token that may only read": (["recipes/coco_lora.json", "--hub_model_id", "library/blip"], "library"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_ends_with_exit_code_2_and_one_message_before_any_training(
    hub: HubServer, tmp_path: Path, name: str
) -> None:
    hub.publish_model("lab/not-blip", {"config.json": b'{"model_type": "vit", "architectures": ["ViTModel"]}'})
    publish_empty_dataset(hub, "lab/empty", tmp_path)
    place = tmp_path / "place"
    place.mkdir()
    arguments, expected = WRONG[name]
    done = run_module("blip_recipe.finetune", *arguments, cwd=place, env=hub.environment())
    assert done.returncode == 2, done.stderr[-2000:]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert expected in done.stderr[done.stderr.index(errors[0]) :]
    assert "Traceback" not in done.stderr
    assert not [path for path in place.rglob("*") if path.is_file()]
