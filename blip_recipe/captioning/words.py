"""The names of captioning and its parts in texts. The module does not import torch."""

from __future__ import annotations

from blip_recipe.card.facts import TaskWords

WORDS = TaskWords(
    name="captioning",
    row="image",
    text="caption",
    output="caption",
    title="BLIP captions",
    label="Image captioning",
    pipeline_tag="image-to-text",
    tag="image-captioning",
    command="caption {model} PICTURE_OR_FOLDER...",
    lora_layers="all linear layers of the text decoder",
)
