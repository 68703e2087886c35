"""`python -m blip_recipe.explain`: the pictures and arrays that it writes, and what it says of wrong inputs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captioners import CAPTIONS, draw_pictures, save_adapter, save_captioner
from commands import run_checked, run_module
from PIL import Image
from retrievers import build_retriever
from transformers import BertConfig
from vqa_models import save_answerer

from blip_recipe import load_explainer
from blip_recipe.errors import RecipeError
from blip_recipe.explain import main
from blip_recipe.models.heatmaps import GAP, LABEL, PANEL, PER_ROW
from blip_recipe.models.processors import save_processor

Explain = Callable[..., dict[str, Any]]


@pytest.fixture
def explain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Explain:
    """Run the command in an empty folder; gives the row that it prints."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["explain", *map(str, arguments), "--device", "cpu"])
        main()
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return draw_pictures(tmp_path / "photos", 3)[2]


def test_a_caption_becomes_a_picture_with_a_panel_a_word_and_arrays(
    explain: Explain, picture: Path, tmp_path: Path
) -> None:
    model = save_captioner(tmp_path / "captioner")
    row = explain(model, picture, CAPTIONS[0], "--output", "maps/row.png", "maps/row.npz", "maps/row.npy")
    words = CAPTIONS[0].split()
    assert (row["text"], row["words"], row["layer"]) == (CAPTIONS[0], words, 1)
    assert row["output"] == ["maps/row.png", "maps/row.npz", "maps/row.npy"]
    arrays = np.load("maps/row.npz", allow_pickle=False)
    assert set(arrays) == {"words", "maps", "scores", "layer", "text"}
    assert arrays["words"].tolist() == words
    assert arrays["maps"].shape == (len(words), 2, 2)
    assert arrays["maps"].dtype == np.float32
    assert arrays["scores"].tolist() == pytest.approx(row["scores"], abs=1e-6)
    assert np.array_equal(np.load("maps/row.npy", allow_pickle=False), arrays["maps"])
    assert np.array_equal(load_explainer(model, device="cpu")(picture, CAPTIONS[0]).maps, arrays["maps"])
    with Image.open("maps/row.png") as drawn:
        drawn.load()
        assert drawn.format == "PNG"
        rows = -(-(1 + len(words)) // PER_ROW)
        assert drawn.size == (GAP + PER_ROW * (PANEL + GAP), GAP + rows * (PANEL + LABEL + GAP))


def test_panels_show_the_picture_and_where_each_word_has_its_weight(explain: Explain, tmp_path: Path) -> None:
    model = save_captioner(tmp_path / "captioner")
    Image.new("RGB", (200, 100), (90, 90, 90)).save("grey.png")
    found = load_explainer(model, device="cpu")("grey.png", "two green circles")
    maps = np.zeros((3, 2, 2), dtype=np.float32)
    maps[0, 0, 1] = 5e-4
    maps[1, 1, 0] = 7.0
    drawn = np.asarray(type(found)(found.image, "two", found.words, maps, found.scores, 1).draw()).astype(int)
    height = PANEL // 2
    panels = [drawn[GAP : GAP + height, GAP + n * (PANEL + GAP) :][:, :PANEL] for n in range(4)]
    assert np.ptp(panels[0]) <= 2
    light = [panel.sum(2) for panel in panels]
    for panel, (top, left) in ((light[1], (True, False)), (light[2], (False, True))):
        row, column = np.unravel_index(panel.argmax(), panel.shape)
        assert (row < height / 2, column < PANEL / 2) == (top, left)
        assert np.ptp(panel) > 200
    assert np.ptp(light[3]) == 0  # a word without weights
    labels = [drawn[GAP + height : GAP + height + LABEL, GAP + n * (PANEL + GAP) :][:, :PANEL] for n in range(4)]
    assert all((label.sum(2) < 300).any() for label in labels)


def test_questions_matches_and_adapters_are_explained_too(explain: Explain, picture: Path, tmp_path: Path) -> None:
    answerer = save_answerer(tmp_path / "answerer")
    row = explain(answerer, picture, "What is it?", "--output", "question.npz")
    assert (row["text"], row["words"], len(row["scores"])) == ("what is it?", ["what", "is", "it", "?"], 1)
    assert str(np.load("question.npz", allow_pickle=False)["answer"]) == row["answer"]
    row = explain(answerer, picture, "what is it", "--answer", "a dark red", "--over", "answer")
    assert (row["words"], row["answer"], len(row["scores"])) == (["a", "dark", "red"], "a dark red", 3)
    assert row["output"] == ["explanation.png"]
    assert Image.open("explanation.png").format == "PNG"

    model, processor = build_retriever()
    model.save_pretrained(tmp_path / "matcher")
    save_processor(processor, tmp_path / "matcher")
    row = explain(tmp_path / "matcher", picture, "Two green circles.", "--words", "Circles", "two", "--layer", "0")
    assert (row["words"], row["layer"]) == (["two", "circles"], 0)

    base = save_captioner(tmp_path / "base")
    explain(base, picture, CAPTIONS[0], "--output", "words.npz")
    phrase = " ".join(CAPTIONS[0].split()[1:3])
    row = explain(base, picture, CAPTIONS[0], "--words", phrase.upper(), phrase.split()[0], "--output", "phrase.npz")
    assert row["words"] == [phrase.split()[0], phrase]
    words, found = (np.load(name, allow_pickle=False) for name in ("words.npz", "phrase.npz"))
    assert found["maps"] == pytest.approx(np.stack([words["maps"][1], words["maps"][1:3].mean(0)]))
    assert found["scores"] == pytest.approx(np.stack([words["scores"][1], words["scores"][1:3].sum()]))
    of_base = explain(base, picture, CAPTIONS[1])
    of_adapter = explain(save_adapter(tmp_path / "adapter", base), picture, CAPTIONS[1])
    assert of_adapter["words"] == of_base["words"]
    assert of_adapter["scores"] != of_base["scores"]
    assert explain(base, picture)["text"]


def test_wrong_arguments_are_explained(explain: Explain, picture: Path, tmp_path: Path) -> None:
    model = save_captioner(tmp_path / "captioner")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path / "bert")
    pickled = save_captioner(tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    wrong: list[tuple[tuple[str | Path, ...], str]] = [
        ((tmp_path / "bert", picture, "a dog"), "a BertModel of type 'bert': expected a BLIP"),
        ((tmp_path / "nowhere", picture, "a dog"), "nowhere' cannot be found"),
        ((pickled, picture, "a dog"), "pickle"),
        ((model, picture, " "), "The text is empty"),
        ((model, "broken.png", "a dog"), r"broken\.png cannot be read as a picture"),
        (
            (model, picture, "a dog", "--words", "dog", "cat"),
            "--words has 'cat', which is not a word of the text: a, d",
        ),
        ((model, picture, "a dog", "--words", "dog a"), "--words has 'dog a', which is not a phrase of the text"),
        ((model, picture, "a dog", "--words", ""), "--words has '', which is not a word of the text"),
        ((model, picture, "a dog", "--layer", "7"), "--layer is 7: expected a number from 0 to 1"),
        (
            (model, picture, "a dog", "--output", "row.jpg"),
            r"--output is 'row\.jpg': expected a name that ends in one of",
        ),
        ((model, picture, "a dog", "--answer", "yes"), "--answer has an effect only with a question answerer"),
    ]
    for arguments, message in wrong:
        with pytest.raises(RecipeError, match=message):
            explain(*arguments)
    assert not (tmp_path / "explanation.png").exists()


def test_the_command_ends_with_2_and_one_message(tmp_path: Path, picture: Path) -> None:
    model = save_captioner(tmp_path / "captioner")
    done = run_module("blip_recipe.explain", model, picture, "a dog", "--words", "cat", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: --words has 'cat'")
    row = json.loads(run_checked("blip_recipe.explain", model, picture, "a dog", cwd=tmp_path).stdout)
    assert row["words"] == ["a", "dog"]
    assert (tmp_path / "explanation.png").is_file()
