"""What the library says of wrong arguments: what was read, what was expected, and what to do."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import datasets
import pytest
from captioners import save_captioner
from coco import captions_of, picture
from peft import IA3Config, LoraConfig, get_peft_model

import blip_recipe
from blip_recipe import (
    CaptionCollator,
    CaptionScorer,
    CaptionTrainer,
    CaptionTrainingArguments,
    RecipeError,
    RetrievalTrainer,
    ScstTrainer,
    VqaTrainer,
    caption_pipeline,
    load_captioner,
    score_captions,
)
from blip_recipe.models.processors import load_processor

QUICK: dict[str, Any] = {
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "generation_num_beams": 1,
    "generation_max_length": 8,
}


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_captioner(tmp_path_factory.mktemp("captioner"))


@pytest.fixture
def arguments(tmp_path: Path) -> CaptionTrainingArguments:
    return CaptionTrainingArguments(str(tmp_path / "out"), **QUICK)


def photos(count: int = 2) -> datasets.Dataset:
    rows = [{"image": picture(number), "captions": captions_of(number)} for number in range(count)]
    return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())


def adapted(captioner: Path, name: str = "default", config: Any = None) -> Any:
    config = config or LoraConfig(r=2, target_modules=["query", "value"])
    model = blip_recipe.BlipForCaptioning.from_pretrained(captioner)
    return get_peft_model(model, config, adapter_name=name)


# What can be given


@pytest.mark.parametrize("trainer", [CaptionTrainer, ScstTrainer, RetrievalTrainer, VqaTrainer])
def test_a_trainer_shows_its_arguments(trainer: Any) -> None:
    names = list(inspect.signature(trainer).parameters)
    assert names[:5] == ["model", "args", "train_dataset", "eval_dataset", "processing_class"]
    assert {"peft_config", "data_collator", "compute_metrics", "model_init", "callbacks"} <= set(names)


# Adapters


def test_an_adapter_of_another_name_trains_and_is_saved_where_it_is_looked_for(captioner: Path, arguments: Any) -> None:
    model = adapted(captioner, "mine")
    trainer = CaptionTrainer(model, arguments, photos(), processing_class=load_processor(str(captioner)))
    trainer.train()
    assert trainer.card.lora is model.peft_config["mine"]
    trainer.save_model()
    assert load_captioner(arguments.output_dir)[0].active_peft_config.r == 2


@pytest.mark.parametrize("config", [{"r": 16}, IA3Config(target_modules=["query"], feedforward_modules=[])])
def test_an_adapter_of_another_kind(config: Any, captioner: Path, arguments: Any) -> None:
    message = rf"{type(config).__name__}: expected LoRA, such as LoraConfig\(r=16\)"
    with pytest.raises(RecipeError, match=f"peft_config is a {message}"):
        CaptionTrainer(str(captioner), arguments, photos(), peft_config=config)
    if not isinstance(config, dict):
        processor = load_processor(str(captioner))
        with pytest.raises(RecipeError, match=f"model is a {message}"):
            CaptionTrainer(adapted(captioner, config=config), arguments, processing_class=processor)


def test_a_second_adapter(captioner: Path, arguments: Any) -> None:
    processor = load_processor(str(captioner))
    with pytest.raises(RecipeError, match="model already has an adapter and peft_config is given"):
        CaptionTrainer(adapted(captioner), arguments, peft_config=LoraConfig(r=2), processing_class=processor)


# Batches


def test_an_unpacked_collator_under_our_trainer(captioner: Path, arguments: Any) -> None:
    collator = CaptionCollator(load_processor(str(captioner)), packed=False)
    with pytest.raises(RecipeError, match="packed=False, which is for the stock Seq2SeqTrainer"):
        CaptionTrainer(str(captioner), arguments, photos(), data_collator=collator)


def test_a_packed_collator_with_rows_of_any_data_set(captioner: Path) -> None:
    collator = CaptionCollator(load_processor(str(captioner)))
    with pytest.raises(RecipeError, match=r"given rows of image, captions: expected .* Set packed=False"):
        collator([photos()[0]])


# Scores


def test_a_name_in_place_of_a_list_of_metrics(tmp_path: Path) -> None:
    message = r"metrics is 'cider': expected a list of names, such as \['cider'\]"
    for refused in (
        lambda: CaptionTrainingArguments(str(tmp_path), metrics="cider"),  # type: ignore[arg-type]
        lambda: CaptionScorer("cider"),
        lambda: score_captions({1: "a"}, {1: ["a"]}, "cider"),
    ):
        with pytest.raises(RecipeError, match=message):
            refused()
    with pytest.raises(RecipeError, match="eval_metrics is 'cider'"):
        CaptionTrainingArguments(str(tmp_path), eval_metrics="cider")  # type: ignore[arg-type]


def test_captions_that_say_nothing_of_their_images() -> None:
    with pytest.raises(RecipeError, match=r"predictions is a list: expected a dictionary by image.*dict\(enumerate"):
        score_captions(["a dog"], [["a dog"]], ["bleu"])  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="references is a list"):
        score_captions({0: "a dog"}, [["a dog"]], ["bleu"])  # type: ignore[arg-type]


def test_a_best_model_by_what_is_not_scored(captioner: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = QUICK | {"save_strategy": "best", "eval_strategy": "steps", "metrics": ["bleu"]}
    arguments = CaptionTrainingArguments(str(tmp_path), **how, metric_for_best_model="meteor")
    with pytest.raises(RecipeError, match=r"metric_for_best_model names 'meteor', which is not scored.*loss, bleu_1"):
        CaptionTrainer(str(captioner), arguments, photos(), photos())


def test_a_best_model_by_scores_of_ones_own(captioner: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = QUICK | {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 1}
    arguments = CaptionTrainingArguments(str(tmp_path), **how, metric_for_best_model="mine")
    own = CaptionTrainer(str(captioner), arguments, photos(), photos(), compute_metrics=lambda _: {"mine": 1.0})
    own.train()
    assert own.state.best_metric == 1.0
    arguments = CaptionTrainingArguments(str(tmp_path), **how, metric_for_best_model="dogs_loss")
    named = CaptionTrainer(str(captioner), arguments, photos(), {"dogs": photos()})
    named.train()
    assert named.state.best_metric == named.state.log_history[-2]["eval_dogs_loss"]


# Models


def test_a_model_that_is_nowhere(arguments: Any) -> None:
    for refused in (lambda: CaptionTrainer("/nowhere/at/all", arguments), lambda: load_captioner("/nowhere/at/all")):
        with pytest.raises(RecipeError, match="The model '/nowhere/at/all' cannot be found"):
            refused()


def test_a_pipeline_of_a_loaded_model(captioner: Path) -> None:
    model: Any = blip_recipe.BlipForCaptioning.from_pretrained(captioner)
    with pytest.raises(
        RecipeError, match=r"model is a BlipForCaptioning: expected .*pipeline\('image-to-text', model="
    ):
        caption_pipeline(model)
