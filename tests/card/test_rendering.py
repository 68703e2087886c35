"""Model cards: true to the run, whole, and readable by the Hub."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from captioners import draw_pictures, save_adapter, save_captioner
from cards import BASE, COCO, COUNTS, PREDICTIONS, SCORES, make_facts, train
from commands import run_code
from hub_server import WRITE_TOKEN, HubServer
from huggingface_hub import HfApi, ModelCard
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from blip_recipe.card.facts import PLACEHOLDER, CardFacts, EnergyFacts, Source, read_source
from blip_recipe.card.merged import merged_card
from blip_recipe.card.rendering import build_metadata, escape_markdown, render_card, write_card
from blip_recipe.card.retarget import retarget_card
from blip_recipe.data.resources import resource_folder
from blip_recipe.errors import PushError
from blip_recipe.hub.publishing import push_folder
from blip_recipe.models.decoding import DecodingSettings
from blip_recipe.recipe.arguments import recorded_task
from blip_recipe.recipe.tasks import find_task

GOLDEN = Path(__file__).parent / "golden"


def metadata(card: str) -> Any:
    """What the Hub's own client reads at the top of a card."""
    return ModelCard(card).data


TINY, SHAPES = Source("tiny"), Source("shapes")
SEVEN = ["قطة سوداء على الطاولة", "一只黑猫坐在木桌上。", *["a cat"] * 5]
SAME = [{"image_id": number, "caption": "a \u0378 cat", "references": SEVEN, "scores": {}} for number in range(2)]


def ranked(score: str) -> list[dict[str, Any]]:
    """Predictions with another score."""
    return [{**each, "scores": {score: each["scores"]["cider"] / 2.5}} for each in PREDICTIONS]


PICTURED = ["clip_score", "itm_score", "self_retrieval", "diversity"]

GOLDEN_CARDS: dict[str, dict[str, Any]] = {
    "full": {"name": "coco_full"},
    "lora": {"name": "coco_qlora_4bit", "words": ["--use_dora=true"]},
    "lora_8bit": {"name": "coco_lora_8bit", "words": ["--prompt=", "--max_eval_samples=3"]},
    "merged": {"name": "coco_lora", "words": ["--merge_adapter=true", "--prompt="]},
    "merged_8bit": {"name": "coco_lora_8bit", "words": ["--merge_adapter=true", "--dataset_config_name=small"]},
    "quickstart": {"name": "shapes_tiny", "base": TINY, "dataset": SHAPES, "repo_id": None},
    "self_critical": {
        "name": "coco_scst",
        "results": {"test_cider": 1.4, "baseline_cider": 1.3, "test_caption_length": 9.5, "baseline_caption_length": 9},
    },
    "pictures": {
        "name": "coco_full",
        "words": ["--metrics", "bleu", "cider", *PICTURED, "--itm_model_name_or_path=Salesforce/blip-itm-base-coco"],
        "results": {f"{role}_{name}": value for role in ("baseline", "test") for name, value in SCORES.items()}
        | {
            "test_clip_score": 0.78,
            "baseline_clip_score": 0.75,
            "test_vocabulary": 1234.0,
            "baseline_vocabulary": 987.0,
        }
        | {"test_itm_score": 0.9, "test_self_recall_1": 0.31, "test_caption_length": 9.5, "test_distinct_1": 0.02},
    },
    "lora_not_scored": {
        "name": "coco_lora",
        "words": ["--generation_no_repeat_ngram_size=3"],
        "results": {},
        "predictions": [],
        "counts": {"train": (10, 50)},
    },
    "nothing_scored": {
        "name": "my_folder",
        "words": ["--freeze_vision=true", "--use_peft=false"],
        "noted": {"best_step": None, "trained_parameters": 137_000_000},
        "results": {},
        "predictions": [],
        "counts": {"train": (10, 50)},
        "base": Source("somebody/blip"),
        "dataset": Source("my_folder"),
    },
    "everything_wrong": {
        "name": "coco_full",
        "words": [
            "--score_tokenizer=char",
            "--generation_repetition_penalty=1.2",
            "--generation_length_penalty=2.0",
            "--generation_length_penalty_counts_prompt=true",
            "--push_report=true",
        ],
        "results": {
            "eval_cider": 0.5,
            "eval_cider_low": 0.1234,
            "eval_cider_high": 0.95678,
            "eval_cider_p_value": 0.7,
            "baseline_cider": 0.6,
            "baseline_cider_low": 0.3,
            "baseline_cider_high": 0.9,
        },
        "predictions": SAME,
        "counts": {"train": (1, 1), "eval": (2, 4)},
        "noted": {"energy": EnergyFacts(kwh=1.234567, co2_kg=0.456789, country="DEU")},
        "skipped_rows": 2,
        "text_notes": [
            "2 of 566,747 training captions (under 0.01%) are cut to their first 30 words (max_words), such as 'a <b>_'"
            ": max_words 41 would keep all of them.",
            "The tokenizer changes 1 of 9 words of the captions (11%), such as '猫' to '[UNK]'.",
        ],
    },
    "pretrain": {"name": "shapes_pretrain"},
    "vqa": {
        "name": "vqav2",
        "words": ["--test_split=test2014"],
        "results": {"test_vqa_accuracy": 0.7823, "baseline_vqa_accuracy": 0.7712},
        "predictions": ranked("vqa_accuracy"),
    },
    "vqa_everything_wrong": {
        "name": "vqav2",
        "words": ["--use_peft=true", "--generation_num_beams=1", "--generation_no_repeat_ngram_size=3"],
        "results": {"eval_vqa_accuracy": 0.5, "baseline_vqa_accuracy": 0.6},
        "predictions": SAME,
        "counts": {"train": (1, 1), "eval": (2, 4)},
    },
    "vqa_not_scored": {"name": "vqav2", "results": {}, "predictions": [], "counts": {"train": (10, 50)}},
    "retrieval": {
        "name": "coco_retrieval",
        "results": {"test_text_recall_1": 0.8123, "baseline_text_recall_1": 0.8, "test_recall_mean": 0.9},
        "predictions": ranked("text_recall_1"),
    },
    "retrieval_everything_wrong": {
        "name": "coco_retrieval",
        "words": ["--use_peft=true"],
        "results": {"eval_recall_mean": 0.5, "baseline_recall_mean": 0.6},
        "predictions": SAME,
        "counts": {"train": (1, 1), "eval": (2, 4)},
    },
}
"""Arguments of `make_facts` by the name of a card in `golden/`: together they fill every place of the templates."""


def golden_facts(golden: str, tmp_path: Path) -> CardFacts:
    arguments = dict(GOLDEN_CARDS[golden])
    if isinstance(data := arguments.get("dataset"), Source) and data.name == "my_folder":
        (tmp_path / "my_folder").mkdir()
        arguments["dataset"] = Source(str(tmp_path / "my_folder"))
    return make_facts(arguments.pop("name"), *arguments.pop("words", ()), **arguments)


MERGED_ADAPTERS: dict[str, dict[str, Any]] = {
    "merged_adapter": {"recipe": {"load_in_4bit": True, "hub_model_id": "lab/blip-coco"}, "adapter": "lab/blip-coco"},
    "merged_adapter_foreign": {"recipe": {}, "adapter": "somebody/adapter"},
    "merged_adapter_vqa": {"recipe": {"task": "vqa"}, "adapter": "lab/blip-vqa"},
    "merged_adapter_retrieval": {"recipe": {"task": "retrieval", "load_in_8bit": True}, "adapter": "lab/blip-matches"},
}
"""Arguments of `merged_card` by the name of a card in `golden/`."""


def make_merged_adapter(golden: str, templates: Path | None = None) -> str:
    own = {"merged_adapter": "card_lora.md", "merged_adapter_retrieval": "card_retrieval_everything_wrong.md"}
    foreign = "# Model Card\n\n## Uses\n"
    old = (GOLDEN / own[golden]).read_text(encoding="utf-8") if golden in own else foreign
    base = {"base_model_name_or_path": BASE.name, "revision": BASE.revision}
    decoding = DecodingSettings(prompt="a picture of ", num_beams=3, max_length=20, min_length=5)
    words = find_task(recorded_task(MERGED_ADAPTERS[golden]["recipe"])).trainer.task
    return merged_card(
        old, adapter_config=base, task=words, decoding=decoding, templates=templates, **MERGED_ADAPTERS[golden]
    )


@pytest.mark.parametrize("golden", [*GOLDEN_CARDS, *MERGED_ADAPTERS])
def test_a_whole_card_of_each_kind(golden: str, tmp_path: Path) -> None:
    path = GOLDEN / f"card_{golden}.md"
    card = make_merged_adapter(golden) if golden in MERGED_ADAPTERS else render_card(golden_facts(golden, tmp_path))
    if "BLIP_RECIPE_WRITE_GOLDEN" in os.environ:
        path.write_text(card, encoding="utf-8")
    assert card == path.read_text(encoding="utf-8")


CODE = re.compile(r"({% ?raw.*?endraw %}|{[{%#].*?[}%#]})", re.DOTALL)
TEXT = re.compile(r'"[^"]*"')


def test_every_word_of_the_templates_stands_on_a_golden_card(tmp_path: Path) -> None:
    """So whichever word of a template is changed, a card is no longer the golden one."""
    folder = tmp_path / "model_cards"
    folder.mkdir()
    marks: dict[str, str] = {}

    def mark(word: re.Match[str]) -> str:
        name = f"⟦{len(marks)}⟧"
        marks[name] = f"{template.name}: {word[0]}"
        return word[0] + name

    templates = [each for each in resource_folder("model_cards").glob("*.jinja") if not each.name.startswith("space")]
    for template in templates:
        # A text in code is a phrase of the card where it has a space.
        pieces = [
            TEXT.sub(lambda text: re.sub("[a-zA-Z]+", mark, text[0]) if " " in text[0] else text[0], piece)
            if number % 2
            else re.sub(r"\w+", mark, piece)
            for number, piece in enumerate(CODE.split(template.read_text(encoding="utf-8")))
        ]
        (folder / template.name).write_text("".join(pieces), encoding="utf-8")
    cards = [render_card(golden_facts(golden, tmp_path), folder) for golden in GOLDEN_CARDS]
    cards += [make_merged_adapter(golden, folder) for golden in MERGED_ADAPTERS]
    seen = set(re.findall("⟦[0-9]+⟧", "".join(cards)))
    unseen = [where for name, where in marks.items() if name not in seen]
    assert not unseen, "\n".join(unseen)


def test_metadata_is_what_the_hub_reads(tmp_path: Path) -> None:
    facts = make_facts("coco_qlora_4bit")
    data = metadata(write_card(facts, tmp_path).read_text(encoding="utf-8"))
    assert data.to_dict() == build_metadata(facts).to_dict()
    assert data.base_model == BASE.name
    assert data.base_model_relation == "adapter"
    assert (data.library_name, data.pipeline_tag, data.license) == ("peft", "image-to-text", "bsd-3-clause")
    assert (data.language, data.datasets) == ("en", [COCO.name])
    assert data.model_name == "lab/blip-coco"


def test_the_model_index_holds_every_score_of_the_test_split_unrounded() -> None:
    data = metadata(render_card(make_facts("coco_full")))
    assert {each.metric_type: each.metric_value for each in data.eval_results} == SCORES
    assert {(each.dataset_type, each.dataset_split, each.dataset_revision) for each in data.eval_results} == {
        (COCO.name, "test", COCO.revision)
    }


def test_every_number_of_the_score_table_is_in_the_results() -> None:
    rows = re.findall(
        r"^\| [\w-]+ \| (\d\.\d+) \| \*\*(\d\.\d+)\*\* \|$", render_card(make_facts("coco_full")), re.MULTILINE
    )
    assert sorted(rows) == sorted((f"{value / 2:.4f}", f"{value:.4f}") for value in SCORES.values())


def test_without_a_test_split_the_card_shows_the_evaluation_split_and_says_so() -> None:
    results = {f"eval_{key}": value for key, value in SCORES.items()}
    counts = {role: COUNTS[role] for role in ("train", "eval")}
    card = render_card(make_facts("coco_full", results=results, counts=counts))
    assert "There was no test split" in card
    assert "| score | this model |" in card
    assert metadata(card).eval_results[0].dataset_split == "val"


def test_a_run_without_any_split_to_score_claims_nothing() -> None:
    card = render_card(make_facts("coco_full", results={}, counts={"train": (10, 50)}, predictions=[]))
    assert "the quality of the model is unknown" in card
    assert "samples/" not in card
    assert metadata(card).eval_results is None


def test_a_model_whose_captions_all_agree_is_called_out() -> None:
    warning = "the same caption, “a dog”: it does not describe the picture"
    same = [each | {"caption": "a dog"} for each in PREDICTIONS]
    assert warning in render_card(make_facts("coco_full", predictions=same))
    assert "the same caption" not in render_card(make_facts("coco_full"))


SURE = {
    f"{role}_cider{end}": value
    for role, start in (("test", 1.3), ("baseline", 1.2))
    for end, value in (("", start), ("_low", start - 0.0504), ("_high", start + 0.06))
}


def test_a_score_has_its_interval_and_its_test_in_text_and_metadata() -> None:
    results = SURE | {"test_cider_p_value": 0.0309, "test_cider_very_low": 0.5, "baseline_cider_very_low": 0.4}
    card = render_card(make_facts("coco_full", results=results))
    assert "| CIDEr | 1.2000 (1.1496 to 1.2600) | **1.3000** (1.2496 to 1.3600) | +0.1000 (p = 0.031) |" in card
    assert "| CIDEr of very_low | 0.4000 | **0.5000** |  |" in card
    assert "may be chance" not in card
    (metric,) = metadata(card).to_dict()["model-index"][0]["results"][0]["metrics"]
    assert metric["args"] == {
        "confidence_interval_95": [results["test_cider_low"], results["test_cider_high"]],
        "p_value_against_base_model": 0.0309,
    }


@pytest.mark.parametrize(("images", "p_value", "notes"), [(49, 0.0501, 2), (50, 0.05, 1), (50, 0.049, 0), (2, None, 1)])
def test_an_evaluation_that_is_too_small_to_tell_is_called_out(images: int, p_value: float | None, notes: int) -> None:
    results = SURE | ({} if p_value is None else {"test_cider_p_value": p_value})
    counts = {"train": (10, 50), "eval": (5, 5), "test": (images, 5 * images)}
    card = render_card(make_facts("coco_full", results=results, counts=counts))
    assert card.count("[!NOTE]") == notes
    assert ("may be chance (p = 0.051)" in card) == (p_value == 0.0501)
    assert (f"{images} images are too few to tell" in card) == (images < 50)


def test_a_model_worse_than_its_base_is_called_out() -> None:
    results = {f"{role}_cider": value for role, value in (("test", 0.5), ("baseline", 0.6))}
    assert "is lower than that of the base model" in render_card(make_facts("coco_full", results=results))
    assert "is lower than that of the base model" not in render_card(make_facts("coco_full"))


def test_local_names_are_shown_without_their_place(tmp_path: Path) -> None:
    model, folder = tmp_path / "secret" / "my_model", tmp_path / "secret" / "my_folder"
    model.mkdir(parents=True)
    folder.mkdir()
    card = render_card(make_facts("coco_full", base=Source(str(model)), dataset=Source(f"{folder}/")))
    assert "`my_model`" in card
    assert "`my_folder` (local)" in card
    assert "secret" not in card
    data = metadata(card)
    assert data.base_model is None
    assert data.datasets is None
    assert data.license == "unknown"


def test_the_embedded_model_and_data_need_no_source() -> None:
    assert read_source("tiny", "model") == Source("tiny")
    # Its captions may be without a single word that gives English away.
    terse = [each | {"references": ["red circle"]} for each in PREDICTIONS]
    assert make_facts("shapes_tiny", dataset=read_source("shapes", "dataset"), predictions=terse).language == "en"
    facts = make_facts("shapes_tiny", base=Source("tiny"), dataset=Source("shapes"))
    card = render_card(facts)
    assert "a tiny BLIP with new weights" in card
    assert "scenes drawn by `blip_recipe` itself" in card
    assert not facts.base.on_hub


READ_SOURCE = """
import logging
logging.basicConfig()
from blip_recipe.card.facts import read_source
source = read_source("lab/base", "model")
print(source.revision, source.license, source.card.get("language"))
"""


def test_licence_and_commit_are_read_from_the_hub() -> None:
    with HubServer() as hub:
        readme = b"---\nlicense: bsd-3-clause\nlanguage: en\n---\n# Base\n"
        commit = hub.publish_model("lab/base", {"README.md": readme, "config.json": b"{}"})
        assert run_python(READ_SOURCE, hub.environment()).stdout.split() == [commit, "bsd-3-clause", "en"]


def test_a_hub_that_does_not_know_the_base_costs_the_licence_and_not_the_card() -> None:
    with HubServer() as hub:
        done = run_python(READ_SOURCE, hub.environment())
    assert done.stdout.split() == ["None", "unknown", "None"]
    assert "The card of lab/base cannot be read" in done.stderr


def run_python(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    done = run_code(code, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_only_the_first_images_of_a_split_are_said_to_be_the_first() -> None:
    card = render_card(make_facts("coco_full", "--max_eval_samples=3"))
    assert "on the first 3 images with 6 reference captions" in card
    assert "| test | `test` | the first 3 | 6 |" in card


def test_rows_that_were_skipped_are_counted_on_the_card() -> None:
    card = render_card(make_facts("coco_full", skipped_rows=3))
    assert "3 rows with no readable picture or no caption were left out" in card
    assert "were left out" not in render_card(make_facts("coco_full"))


def test_the_language_is_read_off_columns_cards_or_words() -> None:
    german = Source("lab/bilder", None, {"language": ["de"]})
    assert make_facts("flickr8k_lora", dataset=german).language == "de"
    unknown = Source("lab/pictures")
    assert make_facts("flickr8k_lora", dataset=unknown).language == "en"
    words = [each | {"references": ["ein hund am strand"]} for each in PREDICTIONS]
    assert make_facts("flickr8k_lora", dataset=unknown, predictions=words).language is None


@pytest.mark.parametrize("recipe", ["coco_full", "coco_lora"])
def test_a_card_can_be_made_to_speak_of_another_repository(recipe: str) -> None:
    card = retarget_card(render_card(make_facts(recipe, repo_id=None)), PLACEHOLDER, "org/captioner")
    assert card == render_card(make_facts(recipe, repo_id="org/captioner"))


def test_metadata_that_the_hub_refuses_are_reported_and_nothing_is_pushed(tmp_path: Path) -> None:
    write_card(make_facts("coco_full"), tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    push: dict[str, Any] = {"private": None, "message": "Upload", "waits": []}
    with HubServer() as hub:
        api = HfApi(endpoint=hub.url, token=WRITE_TOKEN)
        hub.inject("POST .*/validate-yaml", status=400)
        with pytest.raises(PushError, match=r"(?s)metadata.*finish with"):
            push_folder(tmp_path, "lab/captioner", api=api, **push)
        assert len(hub.commits("lab/captioner")) == 1  # the Hub's own
        push_folder(tmp_path, "lab/captioner", api=api, **push)
        assert len(hub.commits("lab/captioner")) == 2


def test_captions_cannot_break_the_card() -> None:
    wild = [each | {"caption": "``` | <img src=x> {{ repo_id }}\n---\n# title \ud800"} for each in PREDICTIONS]
    card = render_card(make_facts("coco_full", predictions=wild))
    assert "\n# title" not in card
    assert "<img" not in card
    assert "\n---\n" not in card.split("\n---\n", 1)[1]
    card.encode()
    assert r"\{\{ repo\_id \}\}" in card


@given(st.text())
def test_a_caption_of_any_text_stays_in_its_cell(caption: str) -> None:
    cell = escape_markdown(caption)
    assert len(cell.splitlines()) <= 1
    assert not re.search(r"(?<!\\)(\\\\)*[|`\[]|<", cell)
    assert not re.search(r"(?<!\\)(\\\\)*\\$", cell)


def test_a_template_that_asks_for_more_than_the_facts_is_an_error(tmp_path: Path) -> None:
    folder = shutil.copytree(resource_folder("model_cards"), tmp_path / "model_cards")
    with (folder / "base.md.jinja").open("a") as file:
        file.write("{{ carbon_footprint }}")
    with pytest.raises(UndefinedError, match="carbon_footprint"):
        render_card(make_facts("coco_full"), folder)


@pytest.mark.parametrize("prompt", ["", "a picture of "])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_calls_that_a_card_names_caption_a_picture(
    kind: str, prompt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each block of Python on the card, word for word, beside a photo."""
    keys: dict[str, Any] = {
        "prompt": prompt,
        "generation_num_beams": 3,
        "generation_max_length": 20,
        "generation_min_length": 5,
    }
    repository = save_captioner(tmp_path / "model", **keys)
    if kind == "lora":
        repository = save_adapter(tmp_path / "adapter", repository, **keys)
    draw_pictures(tmp_path, 1)[0].rename(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    card = render_card(make_facts(f"coco_{kind}", f"--prompt={prompt}", repo_id=str(repository)))
    captions = []
    for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        capsys.readouterr()
        exec(block, {})
        captions.append(capsys.readouterr().out.strip())
    portable, own = captions
    assert own
    # An untrained model begins with a piece of a word, which sticks to the prompt.
    assert portable.removeprefix(prompt.strip()).strip(" #") == own.strip(" #")


@pytest.mark.parametrize("words", [[], ["--freeze_vision=true"]])
def test_the_callback_counts_all_sessions_of_a_resumed_training(words: list[str], tmp_path: Path) -> None:
    first, second = (train(tmp_path, steps, *words) for steps in (2, 4))
    assert (first.steps, second.steps) == (2, 4)
    assert 0 < first.trained_parameters <= first.parameters
    assert (first.trained_parameters < first.parameters) == bool(words)
    assert first.image_size == 96
    assert first.peak_memory is not None
    assert second.seconds > first_session(tmp_path) > 0
    assert [entry["step"] for entry in second.log_history if "loss" in entry] == [1, 2, 3, 4]
    assert second.hardware.endswith("cores)")


def first_session(folder: Path) -> float:
    """Seconds that the first checkpoint counted."""
    state = json.loads((folder / "checkpoint-2" / "trainer_state.json").read_text())
    return state["stateful_callbacks"]["CardCallback"]["attributes"]["seconds"]
