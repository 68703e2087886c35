"""What a trainer says of its model: scores and samples of the model as it is, and nothing of another."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from captioners import save_captioner
from coco import captions_of, picture
from peft import LoraConfig
from transformers import BlipForConditionalGeneration, Seq2SeqTrainingArguments

from blip_recipe import CaptionTrainer, CaptionTrainingArguments, RecipeError
from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.card.rendering import escape_markdown
from blip_recipe.models.processors import load_processor

QUICK: dict[str, Any] = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "metrics": ["bleu"],
    "generation_num_beams": 1,
    "generation_max_length": 12,
}


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_captioner(tmp_path_factory.mktemp("captioner"))


def rows(count: int, first: int = 0) -> datasets.Dataset:
    records = [{"image": picture(first + each), "captions": captions_of(first + each)} for each in range(count)]
    return datasets.Dataset.from_list(records).cast_column("image", datasets.Image())


def make_trainer(captioner: Path, folder: Path, **changes: Any) -> CaptionTrainer:
    evaluated = changes.pop("eval_dataset", None)
    args = CaptionTrainingArguments(str(folder), **QUICK | changes)
    return CaptionTrainer(str(captioner), args, rows(4), evaluated or rows(2, first=4))


def loss_of(card: Path) -> float:
    """The loss in a card's table of scores."""
    found = re.search(r"^\| Loss.*\*\*([0-9.]+)\*\*", card.read_text(encoding="utf-8"), re.MULTILINE)
    assert found, card.read_text(encoding="utf-8")
    return float(found[1])


def test_an_evaluation_while_training_is_on_the_card(captioner: Path, tmp_path: Path) -> None:
    trainer = make_trainer(captioner, tmp_path, eval_strategy="steps", eval_steps=1)
    trainer.train()
    card = trainer.create_model_card()
    assert loss_of(card) == pytest.approx(trainer.state.log_history[-2]["eval_loss"], abs=1e-3)
    assert "samples/best.jpg" in card.read_text(encoding="utf-8")
    assert loss_of(card) == pytest.approx(trainer.evaluate()["eval_loss"], abs=1e-3)


def test_scores_are_of_the_step_that_was_kept(captioner: Path, tmp_path: Path) -> None:
    every_step = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    kept = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    trainer = make_trainer(captioner, tmp_path, **every_step | kept)
    trainer.train()
    assert trainer.state.best_global_step == 2
    card = trainer.create_model_card()
    assert "samples/best.jpg" not in card.read_text(encoding="utf-8")
    assert loss_of(card) == pytest.approx(trainer.evaluate()["eval_loss"], abs=1e-3)
    assert "samples/best.jpg" in trainer.create_model_card().read_text(encoding="utf-8")


def test_scores_from_before_training_are_forgotten_and_those_of_the_base_kept(captioner: Path, tmp_path: Path) -> None:
    trainer = make_trainer(captioner, tmp_path)
    before = trainer.evaluate(metric_key_prefix="baseline")
    trainer.evaluate()
    trainer.train()
    assert list(trainer.results) == ["baseline"]
    after = trainer.evaluate()
    card = trainer.create_model_card()
    assert loss_of(card) == pytest.approx(after["eval_loss"], abs=1e-3)
    assert f"{before['baseline_loss']:.4f}"[:5] in card.read_text(encoding="utf-8")
    kept = tmp_path / "baseline_predictions.jsonl"
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 2
    assert lines[0].keys() == trainer.predictions[0].keys()
    assert all(f"| {escape_markdown(each['caption'])} | " in card.read_text(encoding="utf-8") for each in lines)
    # Other pictures with the same row numbers have no caption of the base model.
    trainer.evaluate(rows(2, first=6), metric_key_prefix="other")
    assert "caption, untouched base model" not in trainer.create_model_card().read_text(encoding="utf-8")
    # Another training in the same directory does not take them for those of its own base model.
    make_trainer(captioner, tmp_path).create_model_card()
    assert not kept.exists()


@pytest.mark.parametrize("prefix", ["test", "val"])
def test_scores_and_samples_are_of_the_split_that_was_scored_last(prefix: str, captioner: Path, tmp_path: Path) -> None:
    trainer = make_trainer(captioner, tmp_path)
    trainer.train()
    trainer.evaluate()
    scores = trainer.predict(rows(3, first=6), metric_key_prefix=prefix).metrics
    card = trainer.create_model_card()
    assert loss_of(card) == pytest.approx(scores[f"{prefix}_loss"], abs=1e-3)
    assert len((tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    scores = trainer.evaluate(rows(2, first=6), None, "again")
    assert loss_of(trainer.create_model_card()) == pytest.approx(scores["again_loss"], abs=1e-3)


def test_of_several_eval_sets_the_last_is_shown(captioner: Path, tmp_path: Path) -> None:
    sets = {"near": rows(2), "far": rows(3, first=6)}
    trainer = make_trainer(captioner, tmp_path, eval_dataset=sets, eval_strategy="steps", eval_steps=2)
    trainer.train()
    card = trainer.create_model_card()
    assert loss_of(card) == pytest.approx(trainer.results["eval_far"]["eval_far_loss"], abs=1e-3)
    assert len(trainer.predictions) == 3


def test_scores_of_an_earlier_run_in_the_directory_are_not_on_the_card(captioner: Path, tmp_path: Path) -> None:
    for metrics in (["bleu", "cider"], ["bleu"]):
        trainer = make_trainer(captioner, tmp_path, metrics=metrics)
        trainer.train()
        trainer.evaluate()
        card = trainer.create_model_card().read_text(encoding="utf-8")
        assert ("| CIDEr |" in card) == ("cider" in metrics)


def test_a_name_that_will_not_do_is_found_before_the_first_step(captioner: Path, tmp_path: Path) -> None:
    args = CaptionTrainingArguments(str(tmp_path), push_to_hub=True, hub_model_id="bad name!!", **QUICK)
    for _ in range(2):  # the arguments are as they were given
        trainer = CaptionTrainer(str(captioner), args, rows(4))
        with pytest.raises(RecipeError, match="bad name!!"):
            trainer.train()
        assert trainer.state.global_step == 0
    assert args.push_to_hub


def test_what_a_push_does_not_know_is_refused(captioner: Path, tmp_path: Path) -> None:
    trainer = make_trainer(captioner, tmp_path)
    with pytest.raises(TypeError, match="privat"):
        trainer.push_to_hub("me/x", privat=True)  # type: ignore[call-arg]


def test_the_recipe_of_a_run_has_all_that_was_chosen(captioner: Path, tmp_path: Path) -> None:
    chosen = {"lr_scheduler_type": "constant", "optim": "adafactor", "eval_strategy": "steps", "eval_steps": 2}
    args = CaptionTrainingArguments(str(tmp_path), **QUICK | chosen)
    adapter = LoraConfig(lora_dropout=0.3, use_rslora=True, target_modules=["query"])
    trainer = CaptionTrainer(str(captioner), args, rows(4), rows(2), peft_config=adapter)
    trainer.save_model()
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert recipe.items() >= chosen.items()
    assert (recipe["lora_dropout"], recipe["use_rslora"]) == (0.3, True)
    assert recipe["lora_target_modules"] == ["query"]
    assert not {"debug", "bf16", "output_dir"} & recipe.keys()


def test_the_model_in_memory_generates_as_it_was_scored(captioner: Path, tmp_path: Path) -> None:
    trainer = make_trainer(captioner, tmp_path)
    assert trainer.plain_model.decoding_settings.max_length == 12
    assert trainer.plain_model.decoding_settings.num_beams == 1


# What cannot be


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": None}, "model is missing"),
        ({"args": "stock"}, "expects CaptionTrainingArguments"),
        ({"compute_loss_func": print}, "compute_loss_func"),
        ({"processing_class": "tokenizer"}, "expected a BlipProcessor"),
        ({"processing_class": "of another model"}, "The tokenizer of"),
        ({"train_dataset": datasets.DatasetDict({"train": rows(2)})}, "the splits train: expected one split"),
        ({"train_dataset": "train"}, "expected one split"),
        ({"prompt": "a picture of a picture of a picture of a picture of"}, "the prompt"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_said_at_once(changes: dict[str, Any], says: str, captioner: Path, tmp_path: Path) -> None:
    processor = load_processor(str(captioner))
    given: dict[str, Any] = {"model": str(captioner), "train_dataset": rows(2)} | changes
    given["args"] = CaptionTrainingArguments(str(tmp_path), **QUICK, prompt=given.pop("prompt", ""))
    if changes.get("args"):
        given["args"] = Seq2SeqTrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    if changes.get("processing_class") == "tokenizer":
        given["processing_class"] = processor.tokenizer
    elif "processing_class" in changes:
        given["processing_class"] = build_tiny_captioner(["one word"], 32)[1]
    with pytest.raises(RecipeError, match=says):
        CaptionTrainer(**given)


def test_a_name_of_no_eval_set_is_said(captioner: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'nope'"):
        make_trainer(captioner, tmp_path).evaluate("nope")
    with pytest.raises(RecipeError, match="'nope'"):
        make_trainer(captioner, tmp_path, eval_dataset="nope")


def test_a_message_names_the_data_set_as_the_user_did(captioner: Path, tmp_path: Path) -> None:
    broken = datasets.Dataset.from_dict({"words": ["a dog"]})
    with pytest.raises(RecipeError, match=r"^eval_dataset\['night'\] has no known column of pictures"):
        make_trainer(captioner, tmp_path, eval_dataset={"day": rows(2), "night": broken})
    with pytest.raises(RecipeError, match=r"^test_dataset has no known column of pictures"):
        make_trainer(captioner, tmp_path).predict(broken)


def test_model_init_may_be_any_callable(captioner: Path, tmp_path: Path) -> None:
    load = partial(BlipForConditionalGeneration.from_pretrained, str(captioner))
    for model_init in (load, lambda name=str(captioner): name, lambda trial: load()):
        trainer = CaptionTrainer(
            args=CaptionTrainingArguments(str(tmp_path), **QUICK),
            train_dataset=rows(4),
            processing_class=load_processor(str(captioner)),
            model_init=model_init,
        )
        trainer.train()
        assert trainer.state.global_step == 2
