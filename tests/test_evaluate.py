"""`evaluate` gives the original code's losses and captions, from any shape of data, and nothing leaks into captions."""

from __future__ import annotations

import base64
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from commands import run_code, run_module
from PIL import Image
from transformers import BertTokenizer, BlipImageProcessor, BlipProcessor

from blip_recipe.caption import main as caption
from blip_recipe.captioning.modeling import BlipForCaptioning
from blip_recipe.errors import RecipeError
from blip_recipe.evaluate import main
from blip_recipe.models.processors import save_processor
from blip_recipe.models.tiny import tiny_config

QUICK = ["--metrics", "bleu", "cider", "--dataloader_num_workers", "0"]


def evaluate(output_dir: Path, model: Path, *arguments: str | Path) -> tuple[dict[str, float], dict[Any, str]]:
    """The results and the captions by image id."""
    main([*map(str, ["--model", model, "--output_dir", output_dir, *QUICK, *arguments])])
    lines = (output_dir / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    captions = {line["image_id"]: line["caption"] for line in map(json.loads, lines)}
    return json.loads((output_dir / "all_results.json").read_text()), captions


@pytest.fixture(scope="module")
def parity(shared: Path) -> dict[str, Any]:
    folder = shared / "data" / "parity"
    data = ["--dataset_name", folder / "images", "--eval_split", "test", "--image_id_column", "image_id"]
    return {
        "expected": json.loads((folder / "expected.json").read_text()),
        "model": folder / "model",
        "folder": folder / "images" / "test",
        "data": [*data, "--prompt", "a picture of "],
    }


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_loss_and_greedy_captions_are_the_original_codes(
    parity: dict[str, Any], tmp_path: Path, batch_size: int
) -> None:
    options = ["--per_device_eval_batch_size", str(batch_size), "--generation_num_beams", "1"]
    results, captions = evaluate(tmp_path, parity["model"], *parity["data"], *options)
    expected = parity["expected"]
    assert results["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-5)
    assert [captions[image_id] for image_id in expected["image_ids"]] == expected["captions_greedy"]
    results = json.loads((tmp_path / "captions_result.json").read_text(encoding="utf-8"))
    assert results == [{"image_id": image_id, "caption": caption} for image_id, caption in captions.items()]


def test_a_cpu_evaluates_in_bfloat16_where_it_is_asked_for(parity: dict[str, Any], tmp_path: Path) -> None:
    options = ["--generation_num_beams", "1", "--bf16", "true", "--use_cpu", "true"]
    results, captions = evaluate(tmp_path, parity["model"], *parity["data"], *options)
    expected = parity["expected"]
    assert results["eval_loss"] == pytest.approx(expected["eval_loss"], rel=0.01)
    assert results["eval_loss"] != pytest.approx(expected["eval_loss"], abs=1e-5)
    assert [captions[image_id] for image_id in expected["image_ids"]] == expected["captions_greedy"]


def test_beam_captions_are_those_of_todays_library(parity: dict[str, Any], tmp_path: Path) -> None:
    _, captions = evaluate(tmp_path, parity["model"], *parity["data"], "--generation_num_beams", "3")
    expected = parity["expected"]
    assert [captions[image_id] for image_id in expected["image_ids"]] == expected["captions_beam_transformers5"]


@pytest.mark.parametrize("stop", ["never", "false"])
def test_beam_captions_with_the_originals_length_penalty_are_the_original_codes(
    parity: dict[str, Any], tmp_path: Path, stop: str
) -> None:
    """Transformers 4.15 divided the score of a beam by its whole length, prompt included."""
    options = ["--generation_length_penalty_counts_prompt", "true", "--generation_early_stopping", stop]
    _, captions = evaluate(tmp_path, parity["model"], *parity["data"], *options)
    expected = parity["expected"]
    assert [captions[image_id] for image_id in expected["image_ids"]] == expected["captions_beam_original"]
    assert expected["captions_beam_original"] != expected["captions_beam_transformers5"]


def test_the_caption_command_gives_the_original_codes_captions(
    parity: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = parity["expected"]
    rows = map(json.loads, (parity["folder"] / "metadata.jsonl").read_text().splitlines())
    files = {row["image_id"]: str(parity["folder"] / row["file_name"]) for row in rows}
    words = [str(parity["model"]), *(files[image_id] for image_id in expected["image_ids"]), "--device", "cpu"]
    words += ["--prompt", "a picture of ", "--length_penalty_counts_prompt", "--early_stopping"]
    captions = {}
    for stop in ("never", "true"):
        caption([*words, stop])
        lines = map(json.loads, capsys.readouterr().out.splitlines())
        captions[stop] = [line["caption"].removeprefix("a picture of ") for line in lines]
    assert captions["never"] == expected["captions_beam_original"]
    assert captions["true"] != captions["never"]


def test_answers_of_a_search_that_never_stops_early_are_the_original_codes(shared: Path, tmp_path: Path) -> None:
    """In padded batches, though the original was asked one question at a time."""
    folder = shared / "data" / "parity_vqa"
    expected = json.loads((folder / "expected.json").read_text())
    data = ["--task", "vqa", "--dataset_name", folder / "images", "--eval_split", "test", "--use_cpu", "true"]
    found = {}
    for stop in ("never", "false"):
        words = ["--model", folder / "model", *data, "--output_dir", tmp_path / stop]
        main([*map(str, words), "--dataloader_num_workers", "0", "--generation_early_stopping", stop])
        lines = map(json.loads, (tmp_path / stop / "predictions.jsonl").read_text().splitlines())
        answers = {line["question_id"]: line["answer"] for line in lines}
        found[stop] = [answers[question] for question in expected["question_ids"]]
    assert found["never"] == expected["answers_beam_original"]
    assert found["false"] == expected["answers_beam_transformers5"]


@pytest.fixture(scope="module")
def untrained(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP with random weights that knows BERT's words."""
    folder = tmp_path_factory.mktemp("untrained")
    words = (shared / "data" / "bert-base-uncased-vocab.txt").read_text(encoding="utf-8").splitlines()
    tokenizer = BertTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        bos_token="[DEC]",
        additional_special_tokens=["[ENC]"],
    )
    torch.manual_seed(0)
    BlipForCaptioning(tiny_config(tokenizer, 96)).save_pretrained(folder)
    save_processor(BlipProcessor(BlipImageProcessor(size={"height": 96, "width": 96}), tokenizer), folder)
    return folder


def photo_rows(photos: Path) -> list[dict[str, Any]]:
    """Image id, file and captions of the test photographs."""
    lines = (photos / "test" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {"image_id": row["image_id"], "file": photos / "test" / row["file_name"], "captions": row["captions"]}
        for row in map(json.loads, lines)
    ]


def as_imagefolder(photos: Path, _: Path) -> list[str | Path]:
    return ["--dataset_name", photos, "--image_id_column", "image_id"]


def as_karpathy(photos: Path, _: Path) -> list[str | Path]:
    return ["--dataset_name", photos / "annotations" / "dataset_karpathy.json", "--image_root", photos]


def as_coco(photos: Path, folder: Path) -> list[str | Path]:
    """A COCO captions JSON has no splits: write one of the test photographs."""
    captions = json.loads((photos / "annotations" / "captions_coco.json").read_text())
    ids = {row["image_id"] for row in photo_rows(photos)}
    captions["images"] = [image for image in captions["images"] if image["id"] in ids]
    captions["annotations"] = [each for each in captions["annotations"] if each["image_id"] in ids]
    (folder / "captions.json").write_text(json.dumps(captions))
    return ["--dataset_name", folder / "captions.json", "--image_root", photos]


def _write_parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "data").mkdir()
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(folder / "data" / "test.parquet")
    return folder


def as_parquet_of_lists(photos: Path, folder: Path) -> list[str | Path]:
    rows = [{"cocoid": row["image_id"], "image": str(row["file"]), "en": row["captions"]} for row in photo_rows(photos)]
    return ["--dataset_name", _write_parquet(folder, rows), "--image_id_column", "cocoid"]


def as_parquet_of_columns(photos: Path, folder: Path) -> list[str | Path]:
    rows = [
        {"cocoid": row["image_id"], "image": str(row["file"])}
        | {f"caption_{number}": caption for number, caption in enumerate(row["captions"])}
        for row in photo_rows(photos)
    ]
    return ["--dataset_name", _write_parquet(folder, rows), "--image_id_column", "cocoid"]


def as_long_parquet(photos: Path, folder: Path) -> list[str | Path]:
    rows = [
        {"cocoid": row["image_id"], "image": str(row["file"]), "sentences": {"raw": caption}}
        for row in photo_rows(photos)
        for caption in row["captions"]
    ]
    return ["--dataset_name", _write_parquet(folder, rows), "--image_id_column", "cocoid"]


def as_webdataset(photos: Path, folder: Path) -> list[str | Path]:
    with tarfile.open(folder / "test-0000.tar", "w") as tar:
        for row in photo_rows(photos):
            members = {"jpg": row["file"].read_bytes(), "txt": "\n".join(row["captions"]).encode()}
            for extension, content in members.items():
                member = tarfile.TarInfo(f"{row['image_id']}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return [
        "--dataset_name",
        folder,
        "--image_column",
        "jpg",
        "--caption_column",
        "txt",
        "--image_id_column",
        "__key__",
    ]


SHAPES = [
    as_imagefolder,
    as_karpathy,
    as_coco,
    as_parquet_of_lists,
    as_parquet_of_columns,
    as_long_parquet,
    as_webdataset,
]


@pytest.fixture(scope="module")
def reference(shared: Path, untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("reference")
    photos = shared / "data" / "photos"
    return evaluate(folder, untrained, *as_imagefolder(photos, folder), "--eval_split", "test")


def test_an_untrained_model_scores_nothing(reference: tuple[dict[str, float], dict[int, str]]) -> None:
    assert reference[0]["eval_cider"] < 0.05


@pytest.mark.parametrize("shape", SHAPES[1:], ids=lambda shape: shape.__name__)
def test_photographs_give_the_same_loss_and_captions_in_every_shape(
    shared: Path, untrained: Path, reference: tuple[Any, Any], tmp_path: Path, shape: Any
) -> None:
    arguments = shape(shared / "data" / "photos", tmp_path)
    results, captions = evaluate(tmp_path / "out", untrained, *arguments, "--eval_split", "test")
    assert results["eval_loss"] == pytest.approx(reference[0]["eval_loss"], abs=1e-6)
    assert {int(image_id): caption for image_id, caption in captions.items()} == reference[1]


def test_generation_never_sees_the_reference(
    shared: Path, untrained: Path, reference: tuple[Any, Any], tmp_path: Path
) -> None:
    """Other captions change the loss and no generated word."""
    rows = [
        {"cocoid": row["image_id"], "image": str(row["file"]), "text": f"another caption {number}"}
        for number, row in enumerate(photo_rows(shared / "data" / "photos"))
    ]
    data: list[str | Path] = ["--dataset_name", _write_parquet(tmp_path, rows)]
    data += ["--image_id_column", "cocoid", "--eval_split", "test"]
    results, captions = evaluate(tmp_path / "out", untrained, *data)
    assert results["eval_loss"] != pytest.approx(reference[0]["eval_loss"], abs=1e-3)
    assert captions == reference[1]


WRONG: dict[str, tuple[list[str], str]] = {
    "no such split": (["--eval_split", "tests"], "validation"),
    "no such column": (["--eval_split", "test", "--caption_column", "caption"], "captions"),
    "no data set": (["--eval_split", "test", "--dataset_name", "nowhere/at/all"], "nowhere"),
    "no such model": (["--eval_split", "test", "--model", "nowhere/at/all"], "nowhere"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_and_nothing_is_written(
    shared: Path, untrained: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments, expected = WRONG[name]
    with pytest.raises(RecipeError, match=expected):
        evaluate(tmp_path / "out", untrained, "--dataset_name", shared / "data" / "photos", *arguments)
    assert not list(tmp_path.glob("out/*"))


def test_the_command_ends_with_one_line_and_the_exit_code_of_wrong_input(untrained: Path, tmp_path: Path) -> None:
    done = run_module("blip_recipe.evaluate", "--model", untrained, "--output_dir", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: Set dataset_name and eval_split")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("out/*"))


def test_a_part_of_the_images_is_scored_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The output of `caption` against COCO captions of more images."""
    names = {
        42: "COCO_val2014_000000000042.jpg",
        7: "COCO_val2014_000000000007.jpg",
        9: "COCO_val2014_000000000009.jpg",
    }
    references = {
        "images": [{"id": image_id, "file_name": name} for image_id, name in names.items()],
        "annotations": [{"image_id": image_id, "caption": f"a picture of {image_id}"} for image_id in names],
    }
    (tmp_path / "captions_val2014.json").write_text(json.dumps(references))
    lines = [{"image": f"photos/{names[image_id]}", "caption": f"a picture of {image_id}"} for image_id in (9, 42)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photos" / names[42])  # the picture of 9 is elsewhere
    files = ["--predictions", tmp_path / "captions.jsonl", "--references", tmp_path / "captions_val2014.json"]
    arguments = [*map(str, files), "--output_dir", str(tmp_path / "out"), "--metrics", "bleu"]
    with pytest.raises(RecipeError, match=r"there is no caption for image 7: .*set subset to true"):
        main(arguments)
    assert not (tmp_path / "out").exists()
    main([*arguments, "--subset", "true"])
    assert "scored 2 of 3 images with references" in capsys.readouterr().out.splitlines()
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["eval_bleu_4"] == pytest.approx(1, abs=1e-6)
    written = map(json.loads, (tmp_path / "out" / "predictions.jsonl").read_text().splitlines())
    assert [(line["image_id"], line["references"]) for line in written] == [
        (9, ["a picture of 9"]),
        (42, ["a picture of 42"]),
    ]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    first, second = json.loads(re.findall(r'id="pictures">(.*?)</script>', page)[0])
    assert first == ""
    assert Image.open(io.BytesIO(base64.b64decode(second))).size == (40, 30)
    main([*arguments, "--subset", "true", "--report", "false"])
    assert not (tmp_path / "out" / "report.html").exists()


def test_files_are_scored_without_torch(tmp_path: Path) -> None:
    lines = [{"image_id": number, "caption": "a dog", "references": ["a dog"]} for number in range(3)]
    (tmp_path / "captions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    words = ["--predictions", "captions.jsonl", "--output_dir", "out", "--metrics", "exact_match"]
    code = f"""
import sys
from blip_recipe.evaluate import main
main({words})
print(sorted({{"torch", "datasets", "pandas", "peft"}} & set(sys.modules)))
"""
    done = run_code(code, cwd=tmp_path, cold=True)
    score, imported = done.stdout.splitlines()
    assert score.startswith("exact_match  1.0000  ("), done.stderr
    assert imported == "[]"
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"output_dir is .*out, but .*file is a file: name another directory"):
        main([*words[:2], "--output_dir", str(tmp_path / "file/out")])
    with pytest.raises(RecipeError, match="metrics names 'blue', which this task does not have"):
        main([*words[:2], "--metrics", "blue"])
    with pytest.raises(RecipeError, match="references"):
        main([*words[:2], "--referenses", "x"])


def test_a_run_imports_bitsandbytes_when_it_is_used() -> None:
    code = """
import sys
import blip_recipe
import peft, peft.helpers
assert not {"bitsandbytes", "torch._inductor.compile_fx"} & set(sys.modules)
assert peft.import_utils.is_bnb_available()
assert peft.helpers.bnb.functional.dequantize_4bit is not None
import bitsandbytes
assert peft.helpers.bnb.nn is bitsandbytes.nn
"""
    done = run_code(code, cold=True)
    assert done.returncode == 0, done.stderr
