"""Write the files of a Space that runs a published model, and link the Space from the model's card."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from blip_recipe.card.rendering import render_template
from blip_recipe.card.retarget import split_card

if TYPE_CHECKING:
    from blip_recipe.models.decoding import DecodingSettings

TAG = "blip_recipe"
"""The tag of our Spaces, by which they are told from those of other people."""

SDK_VERSION = "6.31.0"
"""The version of Gradio that a Space runs on."""

REQUIREMENTS = ("gradio>=6,<7", "pillow", "torch>=2.8,<3", "torchvision>=0.23,<1", "transformers>=5.20,<6")
ADAPTER_REQUIREMENTS = ("peft>=0.20,<0.22",)

LINK = re.compile(r"^\[Try it in a Space\]\(.*\)$", flags=re.MULTILINE)
"""The line of a card that links a Space."""

TITLES = {
    "BlipForConditionalGeneration": "Caption a picture",
    "BlipForQuestionAnswering": "Ask about a picture",
    "BlipForImageTextRetrieval": "Match a picture with texts",
}
"""The heading of the page for each stock class."""


@dataclass(frozen=True)
class SpaceFacts:
    """What the files of a Space say.

    Attributes:
        model: The Hub id of the model.
        url: Its page on the Hub.
        stock_class: The name of its class in transformers.
        is_adapter: Whether it is a LoRA adapter.
        settings: The prompt and decoding that it was scored with.
    """

    model: str
    url: str
    stock_class: str
    is_adapter: bool
    settings: DecodingSettings


def render_space(facts: SpaceFacts) -> dict[str, str]:
    """The files of a Space by name: `README.md`, `app.py` and `requirements.txt`.

    The app needs transformers and Gradio, and not this package.
    """
    title = TITLES[facts.stock_class]
    requirements = [*REQUIREMENTS, *(ADAPTER_REQUIREMENTS if facts.is_adapter else ())]
    settings = facts.settings
    shown = {
        "model": facts.model,
        "url": facts.url,
        "stock_class": facts.stock_class,
        "title": title,
        "prompt": settings.prompt.strip(),
        "decoding": {name: getattr(settings, name) for name in ("num_beams", "max_length", "min_length")}
        | settings.penalties,
    }
    return {
        "README.md": f"---\n{yaml.safe_dump(_metadata(facts, title), sort_keys=False)}---\n\n"
        + render_template("space.md.jinja", shown),
        "app.py": render_template("space_app.py.jinja", shown),
        "requirements.txt": "\n".join(sorted(requirements)) + "\n",
    }


def _metadata(facts: SpaceFacts, title: str) -> dict[str, Any]:
    return {
        "title": title,
        "emoji": "🖼️",
        "colorFrom": "blue",
        "colorTo": "indigo",
        "sdk": "gradio",
        "sdk_version": SDK_VERSION,
        "app_file": "app.py",
        "pinned": False,
        "short_description": f"A BLIP model: {facts.model}"[:60],
        "models": [facts.model],
        "tags": ["blip", TAG],
    }


def link_space(card: str, url: str) -> str:
    """Link a Space from a card: in place of the link that it has, else below its first heading."""
    line = f"[Try it in a Space]({url})"
    if LINK.search(card):
        return LINK.sub(lambda _: line, card, count=1)
    metadata, text = split_card(card)
    heading = re.search(r"^# .*$", text, flags=re.MULTILINE)
    if heading is None:
        return f"{metadata}\n\n{line}\n{text}"
    return f"{metadata}{text[: heading.end()]}\n\n{line}{text[heading.end() :]}"
