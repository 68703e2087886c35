"""`python -m blip_recipe.match`: what it says of texts, and the files of embeddings that it writes."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captioners import draw_pictures
from PIL import Image
from pyarrow import parquet
from retrievers import TEXTS, build_retriever
from safetensors import safe_open
from transformers import AutoProcessor, BlipForImageTextRetrieval

from blip_recipe.errors import RecipeError
from blip_recipe.match import main
from blip_recipe.models.matching import Matcher, tokenize_texts
from blip_recipe.models.processors import save_processor

Match = Callable[..., str]


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("retriever")
    model, processor = build_retriever()
    # As a published checkpoint: saved by the stock class.
    model.save_pretrained(directory)
    save_processor(processor, directory)
    BlipForImageTextRetrieval.from_pretrained(directory).save_pretrained(directory)
    return directory


@pytest.fixture
def match(retriever: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Match:
    """Run the command on arguments; gives its standard output."""

    def run(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["match", str(retriever), "--device", "cpu", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    return run


def stock_says(retriever: Path, picture: Path, texts: list[str]) -> tuple[list[float], list[float]]:
    """Probabilities and cosines of the stock class, by the code that cards show."""
    model = BlipForImageTextRetrieval.from_pretrained(retriever)
    processor = AutoProcessor.from_pretrained(retriever)
    probabilities, cosines = [], []
    for text in texts:
        inputs = processor(images=Image.open(picture), text=text, return_tensors="pt")
        with torch.no_grad():
            cosines.append(model(**inputs, use_itm_head=False).itm_score.item())
            inputs["input_ids"][:, 0] = model.config.text_config.bos_token_id + 1
            probabilities.append(model(**inputs).itm_score.softmax(1)[0, 1].item())
    return probabilities, cosines


def test_every_text_is_judged_as_the_stock_class_judges_it(match: Match, retriever: Path, tmp_path: Path) -> None:
    picture = draw_pictures(tmp_path, 1)[0]
    rows = [json.loads(line) for line in match(picture, *TEXTS).splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    assert {row["image"] for row in rows} == {str(picture)}
    probabilities, cosines = stock_says(retriever, picture, TEXTS)
    assert [row["probability"] for row in rows] == pytest.approx(probabilities, abs=1e-5)
    assert [row["cosine"] for row in rows] == pytest.approx(cosines, abs=1e-5)
    assert len(set(probabilities)) == len(TEXTS)


def test_several_pictures_are_matched_with_each_text(
    match: Match, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = draw_pictures(tmp_path / "photos", 3)
    expected = [line for picture in pictures for line in match(picture, *TEXTS).splitlines()]
    assert len(set(expected)) == 3 * len(TEXTS)
    assert match(*pictures, *TEXTS).splitlines() == expected
    assert match(tmp_path / "photos", *TEXTS).splitlines() == expected
    # What follows the first text is a text, though a folder has its name.
    monkeypatch.chdir(tmp_path)
    rows = [json.loads(line) for line in match(pictures[0], "a dog", "photos").splitlines()]
    assert [row["text"] for row in rows] == ["a dog", "photos"]


def test_a_picture_that_cannot_be_read_does_not_end_the_others(
    match: Match, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = draw_pictures(tmp_path, 1)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    rows = match(tmp_path / "broken.png", tmp_path / "missing.jpg", pictures[0], "a dog").splitlines()
    assert [json.loads(row)["image"] for row in rows] == [str(pictures[0])]
    assert said.getvalue().count("left out: ") == 2
    with pytest.raises(RecipeError, match=r"no picture that could be read.*broken\.png.*missing\.jpg"):
        match(tmp_path / "broken.png", tmp_path / "missing.jpg", "a dog")


def read_embeddings(path: Path) -> dict[str, Any]:
    if path.suffix == ".parquet":
        table = parquet.read_table(path).to_pydict()
        return {
            "ids": table["id"],
            "kinds": table["kind"],
            "texts": table["text"],
            "embeddings": np.array(table["embedding"], dtype=np.float32),
        }
    if path.suffix == ".npz":
        return {name: values if name == "embeddings" else values.tolist() for name, values in np.load(path).items()}
    with safe_open(path, "np") as file:
        return {name: json.loads(values) for name, values in file.metadata().items()} | {
            "embeddings": file.get_tensor("embeddings")
        }


@pytest.mark.parametrize("kind", ["parquet", "npz", "safetensors"])
def test_embeddings_of_folders_and_text_files(
    match: Match, retriever: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = draw_pictures(tmp_path / "photos", 3)
    (tmp_path / "photos" / "zz_broken.png").write_bytes(b"no picture")
    queries = tmp_path / "queries.txt"
    queries.write_text(f"{TEXTS[0]}\n\n{TEXTS[1]}\n", encoding="utf-8")
    out = tmp_path / f"index.{kind}"
    assert match(tmp_path / "photos", queries, "--embeddings", out, "--batch_size", 2).startswith(
        "3 images and 2 texts"
    )
    found = read_embeddings(out)
    assert found["ids"] == [*map(str, pictures), f"{queries}:1", f"{queries}:3"]
    assert found["kinds"] == ["image"] * 3 + ["text"] * 2
    assert found["texts"] == ["", "", "", TEXTS[0], TEXTS[1]]
    vectors = found["embeddings"]
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    _, cosines = stock_says(retriever, pictures[1], TEXTS[:2])
    assert vectors[3:] @ vectors[1] == pytest.approx(cosines, abs=1e-5)


def test_what_is_left_out_is_said(match: Match, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(RecipeError, match="nothing was written"):
        match(tmp_path / "broken.png", "--embeddings", tmp_path / "index.npz")
    assert "broken.png" in capsys.readouterr().err
    assert not (tmp_path / "index.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dog.jpg"], "no text"),
        (["dog.jpg", "cat.jpg"], "'dog.jpg', 'cat.jpg' and no text"),
        (["missing.jpg", "a dog"], "cannot be read as a picture"),
        (["photos", "--embeddings", "index.csv"], "ends in one of"),
    ],
)
def test_wrong_arguments_are_explained(match: Match, arguments: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        match(*arguments)


def test_another_kind_of_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from captioners import save_captioner

    captioner = save_captioner(tmp_path / "captioner")
    monkeypatch.setattr(sys, "argv", ["match", str(captioner), "dog.jpg", "a dog"])
    with pytest.raises(RecipeError, match="BlipForImageTextRetrieval"):
        main()


def test_pairs_are_read_as_in_the_originals_training_and_not_as_in_its_demo(shared: Path) -> None:
    """The demo and the stock class leave `[CLS]` first, where training and evaluation have `[ENC]`."""
    folder = shared / "data" / "parity_retrieval"
    matcher = Matcher.load(str(folder / "model"), device="cpu")
    stock = BlipForImageTextRetrieval.from_pretrained(folder / "model").eval()
    for each in json.loads((folder / "expected.json").read_text())["matches"]:
        pixels = matcher.preprocess(folder / "images" / "test" / each["file_name"])
        assert matcher.match([pixels], [[each["text"]]])[0][0] == pytest.approx(each["probability"], abs=1e-5)
        with torch.no_grad():
            scores = stock(pixel_values=pixels, **tokenize_texts(matcher.processor.tokenizer, [each["text"]])).itm_score
        assert scores.softmax(1)[0, 1].item() == pytest.approx(each["probability_with_cls_first"], abs=1e-5)
