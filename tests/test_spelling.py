"""Generated texts are spelt as their references: `don't`, not `don ' t`, as the original decoded them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from captioners import SPELT, draw_pictures, learn, save_speller
from datasets import Dataset
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipForQuestionAnswering, BlipProcessor
from transformers import pipeline as typed_pipeline

import blip_recipe
from blip_recipe import CaptionMetrics, ScstTrainer, ScstTrainingArguments
from blip_recipe.answer import main as answer
from blip_recipe.capfilt.arguments import CapFiltArguments
from blip_recipe.capfilt.sampling import sample_captions
from blip_recipe.caption import main as caption
from blip_recipe.evaluate import main as evaluate
from blip_recipe.models.processors import load_processor, save_processor
from blip_recipe.models.text import decode_texts
from blip_recipe.vqa.tiny import build_tiny_answerer

pipeline: Any = typed_pipeline
PROMPT = "today's child's view of "
QUESTIONS = ["what's the time?", "who can't see it?", "what's said?", "is it the lady's?", "what colour is it?"]
ANSWERS = ["o'clock", "they don't know", "it's no, thanks", "can't tell", "red"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw_pictures(tmp_path_factory.mktemp("pictures"), len(SPELT))


@pytest.fixture(scope="module", params=["", PROMPT], ids=["without a prompt", "with a prompt"])
def prompt(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def speller(tmp_path_factory: pytest.TempPathFactory, pictures: list[Path], prompt: str) -> Path:
    return save_speller(tmp_path_factory.mktemp("speller"), pictures, prompt=prompt)


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory, pictures: list[Path]) -> Path:
    """An answering model that learnt one answer for each picture."""
    directory = tmp_path_factory.mktemp("answerer")
    torch.manual_seed(0)
    model, processor = build_tiny_answerer([*QUESTIONS, *ANSWERS])
    asked, told = (processor.tokenizer(texts, padding=True, return_tensors="pt") for texts in (QUESTIONS, ANSWERS))
    told.input_ids[:, 0] = processor.tokenizer.bos_token_id
    learn(
        model,
        pixel_values=processor.image_processor(opened(pictures), return_tensors="pt").pixel_values,
        **asked,
        decoder_input_ids=told.input_ids,
        decoder_attention_mask=told.attention_mask,
        labels=told.input_ids.masked_fill(told.attention_mask == 0, -100),
    )
    model.save_pretrained(directory)
    save_processor(processor, directory)
    (directory / "recipe.json").write_text('{"task": "vqa"}')
    return directory


def opened(pictures: list[Path]) -> list[Image.Image]:
    return [Image.open(path) for path in pictures]


def write_folder(folder: Path, pictures: list[Path], rows: list[dict[str, Any]]) -> Path:
    """An imagefolder of the pictures with a row for each."""
    (folder / "test").mkdir(parents=True)
    for path in pictures:
        (folder / "test" / path.name).write_bytes(path.read_bytes())
    lines = [json.dumps({"file_name": path.name, **row}) for path, row in zip(pictures, rows, strict=True)]
    (folder / "test" / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_captions_are_given_back_letter_for_letter_by_evaluate(
    speller: Path, pictures: list[Path], tmp_path: Path
) -> None:
    """With the scores of captions that equal their references."""
    folder = write_folder(tmp_path / "photos", pictures, [{"text": text} for text in SPELT])
    words = ["--model", speller, "--dataset_name", folder, "--eval_split", "test", "--output_dir", tmp_path / "out"]
    evaluate([*map(str, words), "--metrics", "cider", "exact_match", "--use_cpu", "true"])
    lines = json_lines((tmp_path / "out" / "predictions.jsonl").read_text())
    assert [(line["caption"], line["references"]) for line in lines] == [(text, [text]) for text in SPELT]
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["eval_exact_match"] == 1


def test_captions_are_given_back_by_the_command_and_the_pipelines(
    speller: Path, prompt: str, pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A given prompt is part of them as written, apostrophes too."""
    names = [*map(str, pictures)]
    caption([str(speller), *names, "--device", "cpu"])
    assert [row["caption"] for row in json_lines(capsys.readouterr().out)] == SPELT
    pipe = blip_recipe.caption_pipeline(speller, device="cpu")
    assert [result[0]["generated_text"] for result in pipe(names)] == SPELT
    registered = pipeline("image-to-text", model=str(speller), device="cpu")
    assert [result[0]["generated_text"] for result in registered(names)] == SPELT
    given = pipe(names, prompt=prompt)
    assert [result[0]["generated_text"] for result in given] == [prompt + text for text in SPELT]


def test_captions_are_given_back_by_plain_transformers(speller: Path, prompt: str, pictures: list[Path]) -> None:
    """By the class and the processor, and by the pipeline that version 5 has; `tests/compatibility` has version 4."""
    model, processor = BlipForConditionalGeneration.from_pretrained(speller), BlipProcessor.from_pretrained(speller)
    expected = [prompt + text for text in SPELT]
    inputs = processor(images=opened(pictures), text=[prompt] * len(pictures), return_tensors="pt")
    ids = model.generate(**inputs, max_length=40, num_beams=3)
    assert processor.batch_decode(ids, skip_special_tokens=True) == expected
    pipe = pipeline("image-text-to-text", model=str(speller), device="cpu")
    text = prompt.rstrip()  # the pipeline puts a space between it and the rest
    results = [pipe(images=str(path), text=text, generate_kwargs={"max_length": 40}) for path in pictures]
    assert [result[0]["generated_text"].strip() for result in results] == expected


def test_capfilt_and_a_stock_trainers_metrics_spell_alike(speller: Path, prompt: str, pictures: list[Path]) -> None:
    model, processor, settings = blip_recipe.load_captioner(str(speller))
    assert settings.prompt == prompt
    pixels = processor.image_processor(opened(pictures), return_tensors="pt").pixel_values
    keys = CapFiltArguments(top_p=0.01, repetition_penalty=1.0, max_length=40, min_length=1)
    contents = [path.read_bytes() for path in pictures]
    found = sample_captions(model, processor.tokenizer, pixels, contents, prompt, keys)
    assert found == [[text] for text in SPELT]
    keys = CapFiltArguments(temperature=0.01, repetition_penalty=1.0, max_length=40, no_repeat_ngram_size=1)
    found = sample_captions(model, processor.tokenizer, pixels, contents, prompt, keys)
    assert found[0] != [SPELT[0]], "an apostrophe occurs twice in it"
    assert found[4] == [SPELT[4]], "at a low temperature, a caption that was learnt"
    rows = Dataset.from_dict({"image": [*map(str, pictures)], "text": SPELT})
    metrics = CaptionMetrics(model, processor, rows, metrics=["exact_match"], prompt=prompt, max_length=40)
    assert metrics() == {"exact_match": 1.0}


def test_self_critical_training_rewards_the_spelling(speller: Path, prompt: str, pictures: list[Path]) -> None:
    rows = Dataset.from_dict({"image": [*map(str, pictures)], "text": SPELT})
    keys: dict[str, Any] = {
        **{"prompt": prompt, "max_steps": 1, "learning_rate": 0.0, "per_device_train_batch_size": len(SPELT)},
        **{"augmentation": "none", "use_cpu": True, "report_to": [], "save_strategy": "no", "logging_steps": 1},
        **{"normalize_captions": False, "generation_max_length": 40, "dataloader_num_workers": 0},
    }
    args = ScstTrainingArguments("outputs/unused", **keys)
    trainer = ScstTrainer(str(speller), args, rows)
    trainer.train()
    logged = next(line["reward"] for line in trainer.state.log_history if "reward" in line)
    assert logged > 9, "CIDEr-D of a caption that equals its only reference is 10"


def test_answers_are_given_back_letter_for_letter(
    answerer: Path, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": question, "answers": [text]} for question, text in zip(QUESTIONS, ANSWERS, strict=True)]
    folder = write_folder(tmp_path / "photos", pictures, rows)
    words = ["--model", answerer, "--dataset_name", folder, "--eval_split", "test", "--output_dir", tmp_path / "out"]
    evaluate([*map(str, words), "--metrics", "exact_match", "--use_cpu", "true"])
    lines = json_lines((tmp_path / "out" / "predictions.jsonl").read_text())
    assert [line["answer"] for line in lines] == ANSWERS
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["eval_exact_match"] == 1
    capsys.readouterr()
    answer([str(answerer), str(pictures[1]), QUESTIONS[1], "--device", "cpu"])
    assert json_lines(capsys.readouterr().out)[0]["answer"] == ANSWERS[1]
    pipe = blip_recipe.answer_pipeline(answerer, device="cpu")
    asked = [{"image": str(path), "question": text} for path, text in zip(pictures, QUESTIONS, strict=True)]
    assert [result[0]["answer"] for result in pipe(asked)] == ANSWERS
    stock, processor = BlipForQuestionAnswering.from_pretrained(answerer), BlipProcessor.from_pretrained(answerer)
    for path, question, expected in zip(pictures, QUESTIONS, ANSWERS, strict=True):
        inputs = processor(images=Image.open(path), text=question, return_tensors="pt")
        ids = stock.generate(inputs.input_ids, inputs.pixel_values, max_length=20)
        assert processor.decode(ids[0], skip_special_tokens=True) == expected


ENGLISH = ["n't", "'m", "'s", "'ve", "'re"]
"""The endings whose space the original takes out, wherever an apostrophe has one left."""


@pytest.mark.parametrize(
    ("written", "decoded"),
    [
        ("the dogs' bowls", "the dogs'bowls"),
        ('a "stop" sign (red)', 'a " stop " sign ( red )'),
        ("a well-known man", "a well - known man"),
        ("3.5 or 1,000", "3. 5 or 1, 000"),
        ("what? no! yes.", "what? no! yes."),
    ],
)
def test_other_punctuation_is_spelt_as_by_the_original(written: str, decoded: str) -> None:
    """Not always as it was written: only these spaces are taken out."""
    _, processor = build_tiny_answerer([written])
    ids = torch.tensor([processor.tokenizer(written).input_ids])
    assert decode_texts(processor.tokenizer, ids) == [decoded]
    pieces = processor.tokenizer.convert_ids_to_tokens(ids[0].tolist()[1:-1])
    assert clean_up(" ".join(pieces).replace(" ##", "")) == decoded


def clean_up(text: str) -> str:
    """The clean-up of transformers 4.15, in its order."""
    steps = [(f" {mark}", mark) for mark in ".?!,"] + [(" ' ", "'")] + [(f" {end}", end) for end in ENGLISH]
    for old, new in steps:
        text = text.replace(old, new)
    return text


def test_the_setting_is_saved_and_read_for_every_model(tmp_path: Path, speller: Path) -> None:
    """Files that say otherwise, such as those of published checkpoints, do not change it."""
    config = speller / "tokenizer_config.json"
    assert json.loads(config.read_text())["clean_up_tokenization_spaces"] is True
    processor = load_processor(str(speller))
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(saved | {"clean_up_tokenization_spaces": False}))
    again = load_processor(str(tmp_path)).tokenizer
    ids = again(SPELT[0]).input_ids
    assert again.decode(ids, skip_special_tokens=True) == SPELT[0]
