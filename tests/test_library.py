"""The trainers as a library: ten lines of Python with any model and any data set, and the same bytes as a recipe."""

from __future__ import annotations

import ast
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from captioners import save_captioner
from coco import captions_of, picture, publish_base_model, write_image_folder
from commands import CHECKOUT, run_code
from hub_server import WRITE_TOKEN, HubServer, Token
from PIL import Image
from retrievers import build_retriever, load_exactly
from transformers import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipProcessor,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)
from vqa_models import save_answerer

import blip_recipe
from blip_recipe import (
    CaptionCollator,
    CaptionMetrics,
    CaptionTrainer,
    CaptionTrainingArguments,
    PretrainTrainer,
    PretrainTrainingArguments,
    RecipeError,
    RetrievalTrainer,
    RetrievalTrainingArguments,
    ScstTrainer,
    ScstTrainingArguments,
    VqaTrainer,
    VqaTrainingArguments,
    load_captioner,
)
from blip_recipe.finetune import main as finetune
from blip_recipe.models.processors import save_processor

SCRIPT = """
from datasets import load_dataset
from peft import LoraConfig
from blip_recipe import CaptionTrainer, CaptionTrainingArguments

photos = load_dataset("imagefolder", data_dir="my_folder")
trainer = CaptionTrainer(
    model="Salesforce/blip-image-captioning-base",          # or a BlipForConditionalGeneration, ours or stock, or a PeftModel
    args=CaptionTrainingArguments("outputs/mine", num_train_epochs=5, prompt="a picture of ", metrics=["bleu", "cider"]),
    train_dataset=photos["train"],                          # any Dataset or IterableDataset with images and captions
    eval_dataset=photos["validation"],
    peft_config=LoraConfig(r=16),                           # default targets are filled in for BLIP
)
trainer.train()
print(trainer.evaluate())
trainer.push_to_hub("me/my-captioner")                      # one commit: model, card, pictures; verified
"""  # noqa: E501 - word for word

QUICK: dict[str, Any] = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "generation_num_beams": 1,
    "generation_max_length": 12,
}


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny captioner that knows the words of `coco.captions_of`."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("captioner")
    return save_captioner(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An imagefolder with three splits."""
    return write_image_folder(tmp_path_factory.mktemp("photos") / "my_folder")


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"image": picture(first + number), "captions": captions_of(first + number)} for number in range(count)]


def table(records: list[dict[str, Any]]) -> datasets.Dataset:
    return datasets.Dataset.from_list(records).cast_column("image", datasets.Image())


# The script


def test_the_script_word_for_word_trains_scores_and_publishes(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "my_folder")
    with HubServer({WRITE_TOKEN: Token("me")}) as hub:
        publish_base_model(hub, tmp_path / "base")
        done = run_code(SCRIPT, env=hub.environment(), cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "'eval_cider'" in done.stdout
        published = hub.files("me/my-captioner")
        output = tmp_path / "outputs" / "mine"
        assert all(content == (output / name).read_bytes() for name, content in published.items() if name[0] != ".")
        assert {"adapter_model.safetensors", "README.md", "recipe.json", "training_curves.png"} <= published.keys()
        assert {"samples/best.jpg", "samples/worst.jpg"} <= published.keys()
        assert len(hub.commits("me/my-captioner")) == 2
        card = published["README.md"].decode()
    assert "Salesforce/blip-image-captioning-base" in card
    assert "me/my-captioner" in card
    assert "CIDEr" in card
    recipe = json.loads(published["recipe.json"])
    assert (recipe["prompt"], recipe["use_peft"], recipe["lora_r"]) == ("a picture of ", True, 16)


def test_the_readme_shows_the_same_script() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (CHECKOUT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert ast.dump(ast.parse(SCRIPT)) in [ast.dump(ast.parse(block)) for block in blocks]


def model_forms() -> dict[str, Any]:
    """A model in each form that a trainer takes, by name: made from a directory."""

    def adapted(path: Path, model_class: Any) -> Any:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=2, target_modules=r"text_decoder\.bert\..*\.(query|value)", task_type=None)
        return get_peft_model(model_class.from_pretrained(path), config)

    return {
        "directory": str,
        "path": lambda path: path,
        "stock model": BlipForConditionalGeneration.from_pretrained,
        "our model": blip_recipe.BlipForCaptioning.from_pretrained,
        "PeftModel of a stock model": lambda path: adapted(path, BlipForConditionalGeneration),
        "PeftModel of our model": lambda path: adapted(path, blip_recipe.BlipForCaptioning),
    }


@pytest.mark.parametrize("form", model_forms())
def test_any_form_of_a_model_learns_and_scores_the_same(form: str, captioner: Path, tmp_path: Path) -> None:
    model = model_forms()[form](captioner)
    arguments = CaptionTrainingArguments(str(tmp_path / "out"), **QUICK)
    trainer = CaptionTrainer(model, arguments, table(rows(6)), table(rows(3, first=6)))
    before = trainer.evaluate()
    plain = CaptionTrainer(str(captioner), arguments, eval_dataset=table(rows(3, first=6)))
    assert before["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], abs=1e-5)
    assert [each["caption"] for each in trainer.predictions] == [each["caption"] for each in plain.predictions]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before["eval_loss"]
    trainer.save_model()
    saved, processor, _ = load_captioner(str(tmp_path / "out")) if "Peft" not in form else (None, None, None)
    if saved is not None:
        again = CaptionTrainer(saved, arguments, eval_dataset=table(rows(3, first=6)), processing_class=processor)
        assert again.evaluate()["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], abs=1e-6)


def test_a_stock_model_shares_its_weights_with_the_one_that_is_trained(captioner: Path, tmp_path: Path) -> None:
    stock = BlipForConditionalGeneration.from_pretrained(captioner)
    trainer = CaptionTrainer(stock, CaptionTrainingArguments(str(tmp_path), **QUICK), table(rows(4)))
    before = {name: weight.clone() for name, weight in stock.named_parameters()}
    trainer.train()
    assert any(not torch.equal(before[name], weight) for name, weight in stock.named_parameters())
    assert type(stock) is BlipForConditionalGeneration
    assert stock.config.architectures == ["BlipForConditionalGeneration"]


class TorchPhotos(torch.utils.data.Dataset[dict[str, Any]]):
    """A torch data set that opens its pictures itself."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= len(self):
            raise IndexError(index)
        return {"image": Image.open(io.BytesIO(picture(index)["bytes"])), "captions": captions_of(index)}


def data_forms(folder: Path) -> dict[str, Any]:
    """The same six images and captions in each form of a data set."""
    records = rows(6)
    long = [{**row, "image_id": number, "text": text} for number, row in enumerate(records) for text in row["captions"]]
    return {
        "list column": table(records),
        "several columns": table(
            [{"image": r["image"], **{f"caption_{i}": c for i, c in enumerate(r["captions"])}} for r in records]
        ),
        "a row a caption": table([{key: row[key] for key in ("image", "image_id", "text")} for row in long]),
        "structs": table([{"image": r["image"], "sentences": [{"raw": c} for c in r["captions"]]} for r in records]),
        "IterableDataset": table(records).to_iterable_dataset(num_shards=2),
        "IterableDataset of a generator": datasets.IterableDataset.from_generator(lambda: iter(records)),
        "torch data set": TorchPhotos(),
    }


DATA_FORMS = (
    *("list column", "several columns", "a row a caption", "structs"),
    *("IterableDataset", "IterableDataset of a generator", "torch data set"),
)


@pytest.mark.parametrize("form", DATA_FORMS)
def test_any_form_of_a_data_set_gives_the_same_scores_and_is_trained_on(
    form: str, captioner: Path, folder: Path, tmp_path: Path
) -> None:
    data = data_forms(folder)[form]
    arguments = CaptionTrainingArguments(str(tmp_path / "out"), **QUICK)
    trainer = CaptionTrainer(str(captioner), arguments, data, data)
    expected = CaptionTrainer(str(captioner), arguments, eval_dataset=table(rows(6)))
    scores, wanted = trainer.evaluate(), expected.evaluate()
    assert scores["eval_loss"] == pytest.approx(wanted["eval_loss"], abs=1e-6)
    assert scores["eval_cider"] == pytest.approx(wanted["eval_cider"], abs=1e-12)
    assert [each["references"] for each in trainer.predictions] == [each["references"] for each in expected.predictions]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < scores["eval_loss"]


def test_an_imagefolder_and_a_hub_data_set_with_image_and_text(captioner: Path, folder: Path, tmp_path: Path) -> None:
    photos = datasets.load_dataset("imagefolder", data_dir=str(folder))
    plain = table([{"image": picture(number), "text": captions_of(number)[0]} for number in range(4)])
    arguments = CaptionTrainingArguments(str(tmp_path / "out"), **QUICK)
    trainer = CaptionTrainer(str(captioner), arguments, photos["train"], plain)
    trainer.train()
    assert [each["references"] for each in trainer.predictions] == []
    trainer.evaluate()
    assert [each["references"] for each in trainer.predictions] == [[captions_of(n)[0].strip()] for n in range(4)]


def test_what_no_trainer_takes_is_said(captioner: Path, tmp_path: Path) -> None:
    arguments = CaptionTrainingArguments(str(tmp_path / "out"), **QUICK)
    unknown = datasets.Dataset.from_list([{"picture_of": picture(0), "words": "a"}])
    with pytest.raises(RecipeError, match="train_dataset has no known column of pictures: rename it to 'image'"):
        CaptionTrainer(str(captioner), arguments, unknown)
    answerer = BlipForQuestionAnswering(BlipForConditionalGeneration.from_pretrained(captioner).config)
    with pytest.raises(RecipeError, match="model is a BlipForQuestionAnswering: CaptionTrainer expects"):
        CaptionTrainer(answerer, arguments, processing_class=BlipProcessor.from_pretrained(captioner))
    answerer.config._name_or_path = ""
    with pytest.raises(RecipeError, match="processing_class is missing"):
        CaptionTrainer(BlipForConditionalGeneration(answerer.config), arguments)
    with pytest.raises(RecipeError, match="metrics names 'recall'"):
        CaptionTrainingArguments(str(tmp_path / "out"), metrics=["recall"])
    with pytest.raises(RecipeError, match="must not hold a token"):
        CaptionTrainingArguments(str(tmp_path / "out"), hub_token="hf_secret")


# The same as a recipe


def test_a_recipe_and_the_same_script_end_with_the_same_bytes(captioner: Path, folder: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "prompt": "a picture of ",
        "metrics": ["bleu", "cider"],
        "captions_per_image": 2,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "bleu_4+cider",
        "generation_num_beams": 2,
        "use_cpu": True,
        "report_to": [],
        "logging_steps": 1,
        "seed": 5,
    }
    recipe = {
        **{key: value for key, value in keys.items() if key != "report_to"},
        "model_name_or_path": str(captioner),
        "dataset_name": str(folder),
        "eval_split": "validation",
        "test_split": "test",
        "use_peft": True,
        "lora_r": 4,
        "lora_alpha": 8,
        "report_to": "none",
        "output_dir": str(tmp_path / "recipe"),
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    finetune([str(tmp_path / "recipe.json")])

    from peft import LoraConfig

    photos = datasets.load_dataset("imagefolder", data_dir=str(folder))
    trainer = CaptionTrainer(
        str(captioner),
        CaptionTrainingArguments(str(tmp_path / "script"), **keys),
        photos["train"],
        photos["validation"],
        peft_config=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05),
    )
    trainer.train()
    trainer.save_model()
    scores = trainer.evaluate(photos["test"], metric_key_prefix="test")
    weights = [(tmp_path / run / "adapter_model.safetensors").read_bytes() for run in ("recipe", "script")]
    assert weights[0] == weights[1]
    results = json.loads((tmp_path / "recipe" / "all_results.json").read_text())
    same = ("test_loss", "test_cider", *(f"test_bleu_{n}" for n in range(1, 5)))
    assert {name: scores[name] for name in same} == {name: results[name] for name in same}


# The stock trainer


def test_a_script_is_told_of_images_to_train_on_and_to_score(captioner: Path, tmp_path: Path) -> None:
    arguments = CaptionTrainingArguments(str(tmp_path / "out"), **QUICK)
    several = {"seen": table(rows(3, first=2)), "new": table(rows(3, first=10))}
    trainer = CaptionTrainer(str(captioner), arguments, table(rows(4)), several)
    told = [note for note in trainer.args.text_notes or [] if "train_dataset" in note]
    assert len(told) == 1
    assert told[0].startswith("2 of the 3 images of seen are also images of train_dataset")


def test_the_stock_trainer_with_our_collator_and_metrics_has_our_loss_captions_and_scores(
    captioner: Path, tmp_path: Path
) -> None:
    prompt, train, held_out = "a picture of ", table(rows(6)), table(rows(3, first=6))
    stock = BlipForConditionalGeneration.from_pretrained(captioner)
    processor = BlipProcessor.from_pretrained(captioner)
    metrics = CaptionMetrics(stock, processor, held_out, prompt=prompt, num_beams=2, max_length=14)
    trainer = Seq2SeqTrainer(
        model=stock,
        args=Seq2SeqTrainingArguments(
            str(tmp_path / "stock"), remove_unused_columns=False, use_cpu=True, report_to=[], max_steps=2
        ),
        data_collator=CaptionCollator(processor, prompt, packed=False),
        train_dataset=train,
        eval_dataset=held_out,
        compute_metrics=metrics,
        preprocess_logits_for_metrics=CaptionMetrics.drop_logits,
    )
    theirs = trainer.evaluate()
    arguments = CaptionTrainingArguments(
        str(tmp_path / "ours"), prompt=prompt, label_smoothing_factor=0.0, use_cpu=True, report_to=[],
        generation_num_beams=2, generation_max_length=14,
    )  # fmt: skip
    ours = CaptionTrainer(str(captioner), arguments, eval_dataset=held_out)
    scores = ours.evaluate()
    assert theirs["eval_loss"] == pytest.approx(scores["eval_loss"], abs=1e-6)
    assert [each["caption"] for each in metrics.predictions] == [each["caption"] for each in ours.predictions]
    assert metrics.predictions == ours.predictions
    for name in ("bleu_4", "cider"):
        assert theirs[f"eval_{name}"] == scores[f"eval_{name}"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < theirs["eval_loss"]


def test_unpacked_batches_are_rows_of_the_stock_class(captioner: Path) -> None:
    processor = BlipProcessor.from_pretrained(captioner)
    batch = CaptionCollator(processor, "a picture of ", packed=False)(list(table(rows(2))))
    assert sorted(batch) == ["attention_mask", "input_ids", "labels", "pixel_values"]
    assert {len(values) for values in batch.values()} == {10}
    pixels = processor.image_processor([each["image"] for each in table(rows(2))], return_tensors="pt").pixel_values
    assert torch.equal(batch["pixel_values"][::5], pixels)
    assert (batch["input_ids"][:, 0] == processor.tokenizer.bos_token_id).all()
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    # [DEC] and the three words of the prompt are not predicted.
    assert ((batch["labels"] != -100).sum(1) == batch["attention_mask"].sum(1) - 4).all()


# What users of Trainer do


def test_metrics_of_ones_own_see_predictions_and_references(captioner: Path, tmp_path: Path) -> None:
    seen: list[Any] = []

    def lengths(prediction: Any) -> dict[str, float]:
        seen.append(prediction)
        return {"words": float(np.mean([(row > 0).sum() for row in prediction.predictions]))}

    arguments = CaptionTrainingArguments(str(tmp_path), **QUICK)
    data = table(rows(3))
    trainer = CaptionTrainer(str(captioner), arguments, eval_dataset=data, compute_metrics=lengths)
    scores = trainer.evaluate()
    assert {"eval_loss", "eval_words"} <= scores.keys()
    assert "eval_cider" not in scores
    tokenizer = trainer.processor.tokenizer
    labels = np.where(seen[0].label_ids == -100, tokenizer.pad_token_id, seen[0].label_ids)
    references = tokenizer.batch_decode(labels, skip_special_tokens=True)
    assert [text.replace(" ", "") for text in references] == [
        captions_of(number)[0].lower().strip(" .").replace(" ", "") for number in range(3)
    ]


def test_a_dictionary_of_eval_sets_predict_callbacks_and_resumption(captioner: Path, tmp_path: Path) -> None:
    class Steps(TrainerCallback):
        seen = 0

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            Steps.seen += 1

    splits = datasets.DatasetDict({"easy": table(rows(2)), "hard": table(rows(2, first=6))})
    arguments = CaptionTrainingArguments(
        str(tmp_path / "out"),
        **{**QUICK, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "report_to": ["tensorboard"]},
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_hard_loss",
        greater_is_better=False,
        early_stopping_patience=5,
    )
    trainer = CaptionTrainer(str(captioner), arguments, table(rows(4)), splits, callbacks=[Steps()])
    trainer.train()
    assert Steps.seen == 4
    assert trainer.state.best_metric == min(
        entry["eval_hard_loss"] for entry in trainer.state.log_history if "eval_hard_loss" in entry
    )
    assert list((tmp_path / "out").rglob("events.out.tfevents.*"))
    output = trainer.predict(table(rows(3)))
    assert output.predictions.shape[0] == len(trainer.predictions) == 3
    assert output.metrics["test_cider"] >= 0
    again = CaptionTrainer(str(captioner), arguments, table(rows(4)), splits)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    theirs, ours = trainer.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_hyperparameters_are_searched_with_a_new_model_each(captioner: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    built: list[Any] = []

    def model_init() -> Any:
        built.append(BlipForConditionalGeneration.from_pretrained(captioner))
        return built[-1]

    once = {**QUICK, "max_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    arguments = CaptionTrainingArguments(str(tmp_path), **once)
    trainer = CaptionTrainer(
        args=arguments, train_dataset=table(rows(4)), eval_dataset=table(rows(2, first=6)), model_init=model_init
    )
    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True)},
        compute_objective=lambda metrics: metrics["eval_loss"],
        n_trials=2,
        backend="optuna",
    )
    assert 1e-5 <= best.hyperparameters["learning_rate"] <= 1e-2
    assert len(built) >= 3


def test_generation_may_be_changed_for_an_evaluation(captioner: Path, tmp_path: Path) -> None:
    arguments = CaptionTrainingArguments(str(tmp_path), **QUICK)
    trainer = CaptionTrainer(str(captioner), arguments, eval_dataset=table(rows(3)))
    trainer.evaluate(max_length=7, min_length=7)
    short = [len(each["caption"].split()) for each in trainer.predictions]
    trainer.evaluate()
    assert max(short) <= 6
    assert [len(each["caption"].split()) for each in trainer.predictions] != short


# The other tasks


def questions() -> datasets.Dataset:
    return table(
        [
            {"image": picture(number), "question": "What colour is it?", "answers": [captions_of(number)[0].split()[1]]}
            for number in range(4)
        ]
    )


@pytest.mark.parametrize("form", ["directory", "stock model"])
def test_questions_in_ten_lines(form: str, tmp_path: Path) -> None:
    base = save_answerer(tmp_path / "base")
    model: Any = str(base) if form == "directory" else BlipForQuestionAnswering.from_pretrained(base)
    quick = {key: value for key, value in QUICK.items() if key != "generation_max_length"}
    arguments = VqaTrainingArguments(str(tmp_path / "out"), **quick)
    trainer = VqaTrainer(model, arguments, questions(), questions())
    before = trainer.evaluate()
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before["eval_loss"]
    assert trainer.predictions[0].keys() >= {"question", "answer", "answers", "scores"}
    trainer.save_model()
    assert "BLIP answers" in trainer.create_model_card().read_text()


@pytest.mark.parametrize("form", ["directory", "stock model"])
def test_retrieval_in_ten_lines(form: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    built, processor = build_retriever()
    built.save_pretrained(base)
    save_processor(processor, base)
    model: Any = str(base) if form == "directory" else BlipForImageTextRetrieval.from_pretrained(base)
    quick = {key: value for key, value in QUICK.items() if not key.startswith("generation")}
    arguments = RetrievalTrainingArguments(str(tmp_path / "out"), **quick, queue_size=4)
    trainer = RetrievalTrainer(model, arguments, table(rows(6)), table(rows(4)))
    trainer.train()
    scores = trainer.evaluate()
    assert 0 <= scores["eval_recall_mean"] <= 1
    trainer.save_model()
    assert "BLIP matches" in trainer.create_model_card().read_text()


@pytest.mark.parametrize("form", ["directory of a captioner", "stock matcher"])
def test_pretraining_in_ten_lines(form: str, captioner: Path, tmp_path: Path) -> None:
    model: Any = str(captioner)
    if form == "stock matcher":
        built, processor = build_retriever()
        built.save_pretrained(tmp_path / "base")
        save_processor(processor, tmp_path / "base")
        model = BlipForImageTextRetrieval.from_pretrained(tmp_path / "base")
    arguments = PretrainTrainingArguments(str(tmp_path / "out"), **QUICK, queue_size=4)
    trainer = PretrainTrainer(model, arguments, table(rows(6)), table(rows(4)))
    before = trainer.evaluate()
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before["eval_loss"]
    assert trainer.predictions[0].keys() >= {"caption", "references", "scores"}
    trainer.save_model()
    assert "BLIP, pre-trained" in trainer.create_model_card().read_text()
    saved = load_exactly(BlipForConditionalGeneration, tmp_path / "out").state_dict()
    assert all(torch.equal(values, trainer.model.state_dict()[name]) for name, values in saved.items())
    load_exactly(BlipForImageTextRetrieval, tmp_path / "out/matcher")


def test_self_critical_training_in_ten_lines(captioner: Path, tmp_path: Path) -> None:
    arguments = ScstTrainingArguments(
        str(tmp_path / "out"), **QUICK, logging_steps=1, captions_per_image=1, kl_coef=0.01
    )
    trainer = ScstTrainer(str(captioner), arguments, table(rows(4)), table(rows(2)))
    trainer.train()
    assert {"reward", "kl"} <= set().union(*trainer.state.log_history)
    assert "eval_repeated_ngrams" in trainer.evaluate()
    stream = table(rows(4)).to_iterable_dataset()
    with pytest.raises(RecipeError, match="train_dataset is a stream"):
        ScstTrainer(str(captioner), arguments, stream).train()


# The public names


def test_every_public_name_is_there_and_documented() -> None:
    for name in blip_recipe.__all__:
        doc = getattr(blip_recipe, name).__doc__
        assert doc, name
        if name.endswith(("Trainer", "Arguments", "Collator", "Metrics", "_pipeline", "load_captioner")):
            assert {"Args:", "Raises:", "Example:"} <= set(doc.split()), name
    assert (Path(blip_recipe.__file__).parent / "py.typed").exists()


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, blip_recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    """Trainers change the random state."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
