"""The model card: facts of a run, rendered with the template of its kind of model.

`CardFacts` is all that a template may use. A template that asks for anything else is an error, so that no card is ever
published with a hole in it.
"""

from __future__ import annotations

import html
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from blip_recipe.card.pictures import SAMPLE_FILES
from blip_recipe.data.resources import resource_folder
from blip_recipe.data.storage import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blip_recipe.card.facts import CardFacts, TrainingFacts

FACTS = "card_facts.json"
"""The file of an output directory that holds the facts of its card; it is not published."""


def write_card(facts: CardFacts, output_dir: Path) -> Path:
    """Write `README.md` into an output directory, over one that another tool may have left there.

    Its facts are left beside it in `FACTS`, so that the card of a run can be written anew with another template.
    """
    write_json(output_dir / FACTS, asdict(facts))
    path = output_dir / "README.md"
    path.write_text(render_card(facts), encoding="utf-8", newline="\n")
    return path


def render_card(facts: CardFacts, templates: Path | None = None) -> str:
    """The whole card: a block of metadata, and the text of the template `<kind>.md.jinja`, or `<task>.md.jinja`.

    Args:
        facts: Of the run.
        templates: The folder of templates; default: `model_cards` of the package.

    Raises:
        jinja2.UndefinedError: The template uses what is not among the facts.
    """
    task = facts.task
    template = facts.kind if task.name == "captioning" else task.name
    extra = {"score": facts.score, "words": task, "task": task.name}
    text = render_template(f"{template}.md.jinja", vars(facts) | extra, templates)
    return assemble_card(build_metadata(facts), text)


def render_template(name: str, facts: Mapping[str, Any], templates: Path | None = None) -> str:
    """A template of `model_cards`, filled with `facts`, which must have all that it asks for."""
    environment = Environment(
        loader=FileSystemLoader(templates or resource_folder("model_cards")),
        undefined=StrictUndefined,
        autoescape=False,  # it is Markdown: what people wrote goes through the filter `text`
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"text": escape_markdown, "code": format_code, "quote": quote, "duration": format_duration}
    return environment.get_template(name).render(facts)


def assemble_card(metadata: ModelCardData, text: str) -> str:
    """A card of its block of metadata and its text."""
    return f"---\n{metadata.to_yaml()}\n---\n\n{text.strip()}\n"


def build_metadata(facts: CardFacts) -> ModelCardData:
    """What the Hub reads of a card: task, library, base, data and, in `model-index`, every score unrounded."""
    words = facts.task
    base, dataset, scored, scores = facts.base, facts.dataset, facts.results.scored, facts.results.scores
    results = [
        EvalResult(
            task_type=words.pipeline_tag or words.tag,
            task_name=words.label,
            dataset_type=dataset.name,
            dataset_name=dataset.name,
            dataset_config=facts.dataset_config,
            dataset_split=scored.name,
            dataset_revision=dataset.revision,
            metric_type=score.name,
            metric_name=score.label,
            metric_value=score.value,
        )
        for score in scores
        if scored
    ]
    tags = ["blip", words.tag, "blip_recipe"]
    return ModelCardData(
        language=facts.language,
        license=base.license,
        library_name="peft" if facts.kind == "lora" else "transformers",
        pipeline_tag=words.pipeline_tag,
        tags=tags if facts.kind == "full" else [*tags, "lora"],
        base_model=base.name if base.on_hub else None,
        base_model_relation=("adapter" if facts.kind == "lora" else "finetune") if base.on_hub else None,
        datasets=[dataset.name] if dataset.on_hub else None,
        metrics=list(dict.fromkeys(_hub_metric(score.name) for score in scores if score.name != "loss")) or None,
        widget=[{"src": SAMPLE_FILES[each.title], "example_title": each.title} for each in facts.results.samples]
        or None,
        co2_eq_emissions=_emissions(facts.training),
        model_name=facts.repo_id if results else None,
        eval_results=results or None,
    )


def _emissions(training: TrainingFacts) -> dict[str, Any] | None:
    """The Hub's `co2_eq_emissions`, in grams, with what was measured, in kWh, under codecarbon's name for it."""
    energy = training.energy
    if energy is None:
        return None
    return {
        "emissions": energy.co2_kg * 1000,
        "energy_consumed": energy.kwh,
        "source": "codecarbon",
        "training_type": "fine-tuning",
        "geographical_location": energy.country,
        "hardware_used": training.hardware,
    }


def _hub_metric(score: str) -> str:
    """The Hub's name for the metric that a score belongs to."""
    return "recall" if "recall" in score else re.sub("_.$", "", score)


def escape_markdown(text: str) -> str:
    """Text of people and models as one line that Markdown shows as it is, in tables too."""
    folded = " ".join(text.encode("utf-8", "replace").decode().split())
    return "".join(f"\\{c}" if c in r"\`*_{}[]()#|~$!" else c for c in html.escape(folded, quote=False))


def format_code(text: str) -> str:
    """Text as inline code, with its spaces at the ends, in a fence longer than any run of backticks in it."""
    text = " ".join(text.splitlines())
    fence = "`"
    while fence in text:
        fence += "`"
    # Markdown strips one space from each side where both have one.
    pad = " " if text.startswith(("`", " ")) and text.endswith(("`", " ")) else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def quote(text: str) -> str:
    """Text as a Python string literal, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def format_duration(seconds: float) -> str:
    """`2 h 05 min`, `3 min 20 s` or `12.3 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
