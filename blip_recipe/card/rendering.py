"""Render the model card from the facts of a run with a Jinja template.

Templates may use only `CardFacts`. An unknown variable is an error, so no card is published with gaps.
"""

from __future__ import annotations

import html
import json
import math
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

    from blip_recipe.card.facts import CardFacts, ScoreFacts, TrainingFacts

FACTS = "card_facts.json"
"""File in the output directory with the facts of the card. It is not published."""


def write_card(facts: CardFacts, output_dir: Path) -> Path:
    """Write the card as `README.md` into an output directory, replacing any other one.

    The facts are written to the file `FACTS`, so the card can be rendered again with another template.
    """
    write_json(output_dir / FACTS, asdict(facts))
    path = output_dir / "README.md"
    path.write_text(render_card(facts), encoding="utf-8", newline="\n")
    return path


def render_card(facts: CardFacts, templates: Path | None = None) -> str:
    """Render a card: the metadata, then the template `<kind>.md.jinja` (captioning) or `<task>.md.jinja`.

    Args:
        facts: The facts of the run.
        templates: The folder of templates. Default: the packaged `model_cards`.

    Raises:
        jinja2.UndefinedError: The template uses an unknown variable.
    """
    task = facts.task
    template = facts.kind if task.name == "captioning" else task.name
    extra = {"score": facts.score, "words": task, "task": task.name}
    text = render_template(f"{template}.md.jinja", vars(facts) | extra, templates)
    return assemble_card(build_metadata(facts), text)


def render_template(name: str, facts: Mapping[str, Any], templates: Path | None = None) -> str:
    """Render a template of `model_cards` with `facts`. Unknown variables raise an error."""
    environment = Environment(
        loader=FileSystemLoader(templates or resource_folder("model_cards")),
        undefined=StrictUndefined,
        autoescape=False,  # it is Markdown; the filter `text` escapes foreign texts
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "text": escape_markdown,
        "code": format_code,
        "quote": quote,
        "duration": format_duration,
        "score": format_score,
        "p_value": format_p_value,
    }
    return environment.get_template(name).render(facts)


def assemble_card(metadata: ModelCardData, text: str) -> str:
    """Join the metadata and the text of a card."""
    return f"---\n{metadata.to_yaml()}\n---\n\n{text.strip()}\n"


def build_metadata(facts: CardFacts) -> ModelCardData:
    """Build the metadata for the Hub: task, library, base model, data and, in `model-index`, unrounded scores."""
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
            metric_args=_how_sure(score),
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


def _how_sure(score: ScoreFacts) -> dict[str, Any] | None:
    """The interval and the p-value of a score. `model-index` has no fields of its own for them."""
    found: dict[str, Any] = {"confidence_interval_95": list(score.interval)} if score.interval else {}
    return (found | ({} if score.p_value is None else {"p_value_against_base_model": score.p_value})) or None


def _emissions(training: TrainingFacts) -> dict[str, Any] | None:
    """Build the Hub's `co2_eq_emissions` in grams, with the energy in kWh under codecarbon's name."""
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
    """The Hub's name of a score's metric."""
    return "recall" if "recall" in score else re.sub("_.$", "", score)


def escape_markdown(text: str) -> str:
    """Put a text on one line, and escape it for Markdown and its tables."""
    folded = " ".join(text.encode("utf-8", "replace").decode().split())
    return "".join(f"\\{c}" if c in r"\`*_{}[]()#|~$!" else c for c in html.escape(folded, quote=False))


def format_code(text: str) -> str:
    """Format a text as inline code. Backticks and spaces at the ends are preserved."""
    text = " ".join(text.splitlines())
    fence = "`"
    while fence in text:
        fence += "`"
    # Markdown strips one space from each side where both have one.
    pad = " " if text.startswith(("`", " ")) and text.endswith(("`", " ")) else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def format_p_value(value: float) -> str:
    """Format a p-value with three decimals, rounded up, so that it is never shown as smaller than it is."""
    return f"{math.ceil(value * 1000 - 1e-9) / 1000:.3f}"


def quote(text: str) -> str:
    """Format a text as a Python string literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def format_score(value: float) -> str:
    """Format a score with four decimals, and a count, such as that of a vocabulary, without."""
    return f"{value:,.0f}" if value >= 10 and value == int(value) else f"{value:.4f}"


def format_duration(seconds: float) -> str:
    """Format seconds as `2 h 05 min`, `3 min 20 s` or `12.3 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
