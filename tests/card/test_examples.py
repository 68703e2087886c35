"""The example cards in the repository: of real runs, as today's templates write them, true to the last digit."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import pytest
from commands import CHECKOUT
from huggingface_hub import EvalResult, ModelCard
from make_examples import BASE, BASE_LICENSE, EXAMPLES, FOLDER, FROM_BASE, KEPT, QUICKSTART, read_facts
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
    assert [row[0] for row in rows] == list(labels)
    for label, *cells in rows:
        assert cells == score_cells(results, labels[label])
        low, high = (results.get(f"test_{labels[label]}_{end}", 0.0) for end in ("low", "high"))
        assert low <= results[f"test_{labels[label]}"] <= high or label == "Loss"
    shown = re.findall(r"([\w-]+) \*\*([\d.]+)\*\* \(untouched base model: ([\d.]+)\)", card.text)
    assert [label for label, *_ in shown] == ["CIDEr", "BLEU-4"]
    assert set(shown) <= {(label, value.split("*")[2], baseline.split()[0]) for label, baseline, value, _ in rows}


def score_rows(text: str) -> Iterator[list[str]]:
    """The cells of each row of the score table: label, base model's value, this model's value, change."""
    table = text.split("\n## Scores\n")[1].split("\n## ")[0]
    for row in re.findall(r"^\|(.+)\|$", table, re.MULTILINE)[2:]:
        yield [cell.strip() for cell in row.split("|")]


def score_cells(results: dict[str, float], name: str) -> list[str]:
    """The cells of a score that results make: the base model's value, this model's value, and the change."""
    values = []
    for role in ("baseline", "test"):
        ends = [f"{results[key]:.4f}" for end in ("low", "high") if (key := f"{role}_{name}_{end}") in results]
        value = f"{results[f'{role}_{name}']:.4f}"
        values.append(
            " ".join([value if role == "baseline" else f"**{value}**", *([f"({' to '.join(ends)})"] if ends else [])])
        )
    if f"test_{name}_p_value" not in results:
        return [*values, ""]
    p_value = math.ceil(1000 * results[f"test_{name}_p_value"]) / 1000
    return [*values, f"{results[f'test_{name}'] - results[f'baseline_{name}']:+.4f} (p = {p_value:.3f})"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_captions_before_and_after_are_side_by_side(name: str) -> None:
    text = (FOLDER / name / "README.md").read_text(encoding="utf-8")
    assert "| | caption, untouched base model | caption, this model | CIDEr | references |" in text
    samples = read_facts(name).results.samples
    assert [each.title for each in samples] == ["best", "median", "worst"]
    for each in samples:
        assert f"<br>{each.title} | {each.before} | {each.caption} | {each.score} |" in text
        assert each.before != each.caption


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_pages_show_the_captions_of_the_quickstart(page: str) -> None:
    captions = " | ".join(each.caption for each in read_facts(QUICKSTART).results.samples)
    assert f"\n| {captions} |\n" in (CHECKOUT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_pages_tell_the_quickstarts_share_of_exact_captions(page: str) -> None:
    share = read_json(FOLDER / QUICKSTART / "all_results.json")["test_exact_match"]
    text = (CHECKOUT / page).read_text(encoding="utf-8")
    assert f"; {100 * share:g}% in the [example card]" in text or f"/README.md) reports {100 * share:g}%." in text


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
