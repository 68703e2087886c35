"""The tasks that a recipe may name, and what its keys are where it does not say. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from blip_recipe.metrics import METRICS

TaskName = Literal["captioning", "vqa", "retrieval"]


@dataclass(frozen=True)
class TaskKeys:
    """What a recipe must know of a task.

    Attributes:
        place: Module and class of its `Task`.
        metrics: What it can be scored by.
        defaults: Keys whose default is another than captioning's.
        keys: Keys that only this task has.
    """

    place: str
    metrics: tuple[str, ...]
    defaults: dict[str, Any] = field(default_factory=dict)
    keys: tuple[str, ...] = ()


TASKS: dict[TaskName, TaskKeys] = {
    "captioning": TaskKeys(
        "blip_recipe.captioning.task:Captioning",
        tuple(METRICS),
        keys=("stage", "prompt", "cache_image_embeds"),
    ),
    "vqa": TaskKeys(
        "blip_recipe.vqa.task:Answering",
        ("vqa_accuracy", "exact_match"),
        {
            "model_name_or_path": "Salesforce/blip-vqa-base",
            "metrics": ["vqa_accuracy"],
            "generation_min_length": 1,
            "generation_max_length": 10,
        },
        keys=("question_column", "answer_column", "group_questions"),
    ),
    "retrieval": TaskKeys(
        "blip_recipe.retrieval.task:Retrieval",
        ("recall",),
        {
            "model_name_or_path": "Salesforce/blip-itm-base-coco",
            "metrics": ["recall"],
            "captions_per_image": 1,
            "max_caption_length": 35,
            "label_smoothing_factor": 0.0,
        },
        keys=("queue_size", "momentum", "alpha", "negative_all_rank", "rerank_top_k"),
    ),
}

assert set(TASKS) == set(get_args(TaskName))

SCORE_NAMES: dict[str, tuple[str, ...]] = {
    "bleu": ("bleu_1", "bleu_2", "bleu_3", "bleu_4"),
    "recall": (
        *(f"{direction}_recall_{rank}" for direction in ("text", "image") for rank in (1, 5, 10)),
        "recall_mean",
    ),
}
"""Metrics that bring scores of other names than their own."""


@dataclass(frozen=True)
class TaskWords:
    """How a task is spoken of.

    Attributes:
        row, text: What a row of data is, and what is learnt of it, in the singular.
        output: What the model gives, in the singular.
        title: What a card's title begins with.
        label: The task as the Hub's leaderboards name it.
        pipeline_tag: The Hub's own name for it, where it has one.
        tag: What people look for.
    """

    row: str
    text: str
    output: str
    title: str
    label: str
    pipeline_tag: str | None
    tag: str


TASK_WORDS: dict[TaskName, TaskWords] = {
    "captioning": TaskWords(
        "image", "caption", "caption", "BLIP captions", "Image captioning", "image-to-text", "image-captioning"
    ),
    "vqa": TaskWords(
        "question",
        "answer",
        "answer",
        "BLIP answers",
        "Visual question answering",
        "visual-question-answering",
        "visual-question-answering",
    ),
    "retrieval": TaskWords(
        "image", "caption", "match", "BLIP matches", "Image-text retrieval", None, "image-text-retrieval"
    ),
}
