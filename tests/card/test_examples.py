"""The example cards in the repository: of real runs, as today's templates write them, true to the last digit."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from commands import CHECKOUT
from huggingface_hub import EvalResult, ModelCard
from make_examples import BASE, BASE_LICENSE, EXAMPLES, FOLDER, FROM_BASE, KEPT, read_facts
from PIL import Image

from blip_recipe.card.pictures import WIDTH
from blip_recipe.card.rendering import render_card
from blip_recipe.data.storage import read_json

LARGEST_FILE = 250_000


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_what_the_templates_make_of_its_run(name: str) -> None:
    """Where a template changed: `python tests/make_examples.py --render`."""
    assert (FOLDER / name / "README.md").read_text(encoding="utf-8") == render_card(read_facts(name))


@pytest.mark.parametrize("name", EXAMPLES)
def test_scores_agree_in_text_metadata_and_results(name: str) -> None:
    card = ModelCard.load(FOLDER / name / "README.md")
    results = read_json(FOLDER / name / "all_results.json")
    indexed: list[EvalResult] = card.data.eval_results or []
    measured = {key.removeprefix("test_"): value for key, value in results.items() if key.startswith("test_")}
    assert {each.metric_type: each.metric_value for each in indexed}.items() <= measured.items()
    labels = {each.metric_name: each.metric_type for each in indexed}
    rows = list(score_rows(card.text))
    assert [label for label, *_ in rows] == list(labels)
    for label, baseline, value in rows:
        assert value == f"{results[f'test_{labels[label]}']:.4f}"
        assert baseline == f"{results[f'baseline_{labels[label]}']:.4f}"
    shown = re.findall(r"([\w-]+) \*\*([\d.]+)\*\* \(untouched base model: ([\d.]+)\)", card.text)
    assert [label for label, *_ in shown] == ["CIDEr", "BLEU-4"]
    assert set(shown) <= {(label, value, baseline) for label, baseline, value in rows}


def score_rows(text: str) -> Iterator[tuple[str, str, str]]:
    """(label, base model's value, this model's value) of each row of the score table."""
    table = text.split("\n## Scores\n")[1].split("\n## ")[0]
    for row in re.finditer(r"^\| (.+) \| ([\d.]+) \| \*\*([\d.]+)\*\* \|$", table, re.MULTILINE):
        yield row[1], row[2], row[3]


@pytest.mark.parametrize("name", FROM_BASE)
def test_an_example_names_its_base_with_its_licence_and_how_it_came_from_it(name: str) -> None:
    data = ModelCard.load(FOLDER / name / "README.md").data.to_dict()
    lora = name in ("shapes_lora", "shapes_lora_8bit")
    assert (data["base_model"], data["license"]) == (BASE, BASE_LICENSE)
    assert data["base_model_relation"] == ("adapter" if lora else "finetune")
    assert data["library_name"] == ("peft" if lora else "transformers")
    recipe = read_json(FOLDER / name / "recipe.json")
    assert f"`{recipe['model_revision']}`" in (FOLDER / name / "README.md").read_text(encoding="utf-8")
    assert data["model-index"][0]["name"] == recipe["hub_model_id"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_whole_small_and_tells_of_no_machines_folders(name: str) -> None:
    folder = FOLDER / name
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.relative_to(folder).as_posix() for path in files} == set(KEPT)
    assert all(path.stat().st_size < LARGEST_FILE for path in files)
    assert Image.open(folder / "training_curves.png").width == WIDTH
    texts = [path.read_text(encoding="utf-8") for path in files if path.suffix not in (".png", ".jpg")]
    told = "".join(texts)
    assert str(CHECKOUT.parent) not in told
    assert not re.search(r"(?<![\w/.:])/(home|root|tmp|Users)/|hf_[A-Za-z]{20}", told)
