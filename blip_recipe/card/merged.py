"""Write the card of a merged model: a new summary and usage, followed by the adapter's own card."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers.utils.hub import cached_file

from blip_recipe.card.facts import PLACEHOLDER, Source, TaskWords
from blip_recipe.card.pictures import SAMPLE_FILES
from blip_recipe.card.rendering import assemble_card, render_template
from blip_recipe.card.retarget import retarget_card
from blip_recipe.models.adapters import recorded_quantization
from blip_recipe.models.decoding import DecodingSettings

CARRIED_FILES = ("all_results.json", "training_curves.png", *SAMPLE_FILES.values())
OUR_TAG = "blip_recipe"

SECTION = re.compile(r"^## (?P<title>.*)\n", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def merge_card(
    adapter: str,
    adapter_config: dict[str, Any],
    recipe: dict[str, Any],
    task: TaskWords,
    decoding: DecodingSettings | None,
    out: Path,
) -> None:
    """Write the card of a merged model, and copy the scores and pictures of the adapter's card.

    Args:
        adapter: Directory or Hub id of the adapter.
        adapter_config: Its `adapter_config.json`.
        recipe: Its `recipe.json`, or an empty dictionary.
        task: Its task.
        decoding: Its settings of generation.
        out: The directory of the merged model.
    """
    readme = repository_file(adapter, "README.md")
    card = readme.read_text(encoding="utf-8") if readme else ""
    shown = recipe.get("hub_model_id") or Path(adapter).name if Path(adapter).exists() else adapter
    text = merged_card(card, shown, adapter_config, recipe, task, decoding)
    (out / "README.md").write_text(text, encoding="utf-8", newline="\n")
    for name in CARRIED_FILES if is_ours(card) else ():
        if path := repository_file(adapter, name):
            (out / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, out / name)


def merged_card(
    card: str,
    adapter: str,
    adapter_config: dict[str, Any],
    recipe: dict[str, Any],
    task: TaskWords,
    decoding: DecodingSettings | None,
    templates: Path | None = None,
) -> str:
    """Build the card of a merged model.

    Args:
        card: The adapter's card. It is ignored if `blip_recipe` did not write it.
        adapter: The adapter's name.
        adapter_config, recipe, task, decoding: As for `merge_card`.
        templates: As for `render_card`.
    """
    tag = f"pipeline_tag: {task.pipeline_tag}\n" if task.pipeline_tag else ""
    old = ModelCard(card if is_ours(card) else f"---\n{tag}---\n")
    metadata: Any = old.data  # its class does not declare base_model_relation
    base = Source(adapter_config["base_model_name_or_path"], adapter_config.get("revision")).facts()
    facts = {
        "task": task.name,
        "words": task,
        "kind": "merged",
        "repo_id": PLACEHOLDER,
        "title": find_title(old.text) or task.title,
        "adapter": adapter,
        "base": base,
        "quantization": recorded_quantization(recipe),
        "decoding": decoding,
        "carried": retarget_card(drop_section(old.text, "Use"), recipe.get("hub_model_id") or PLACEHOLDER, PLACEHOLDER),
    }
    metadata.library_name = "transformers"
    if metadata.eval_results:
        metadata.model_name = PLACEHOLDER
    metadata.tags = list(dict.fromkeys([*(metadata.tags or []), "blip", task.tag, OUR_TAG, "lora"]))
    if base.on_hub:
        metadata.base_model, metadata.base_model_relation = base.name, "finetune"
    return assemble_card(metadata, render_template("merged_adapter.md.jinja", facts, templates))


def is_ours(card: str) -> bool:
    """Whether `blip_recipe` wrote a card, by its tag. peft writes an empty template."""
    return f"\n- {OUR_TAG}\n" in card.partition("\n---\n")[0]


def repository_file(name: str, filename: str) -> Path | None:
    """The local path of a file of a directory or Hub repository, or None if it has no such file."""
    path = cached_file(name, filename, _raise_exceptions_for_missing_entries=False)
    return Path(path) if path else None


def find_title(text: str) -> str | None:
    """The title of an adapter's card without the suffix "(LoRA adapter)", or None."""
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    return title[1].removesuffix(" (LoRA adapter)") if title else None


def drop_section(text: str, title: str) -> str:
    """The sections of a card from the first second-level heading on, without the section `title`."""
    code = [block.span() for block in FENCE.finditer(text)]
    headings = [each for each in SECTION.finditer(text) if not any(start <= each.start() < end for start, end in code)]
    ends = [*(each.start() for each in headings), len(text)][1:]
    return "".join(
        text[each.start() : end] for each, end in zip(headings, ends, strict=False) if each["title"].strip() != title
    ).strip()
