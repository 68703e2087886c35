"""Stand-ins for what recipes of all tasks name: tiny models of the Hub, and published files in folders of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from coco import COLOURS, captions_of, picture
from hub_server import HubServer

from blip_recipe.data.images import open_image
from blip_recipe.models.processors import save_processor
from blip_recipe.recipe.arguments import TaskName
from blip_recipe.recipe.tasks import find_task

DOMAINS = ("in-domain", "near-domain", "out-domain")
GAIN = 2.0
"""Weights this much larger than fresh ones make an untrained model look at its picture."""
QUESTIONS = ("What colour is the square?", "Is the square on the left?", "How many squares are there?")


def publish_tiny(hub: HubServer, task: TaskName, name: str, texts: Sequence[str], folder: Path, size: int = 96) -> None:
    """Publish an untrained tiny model of a task under the name of a real one; a captioner writes words of `texts`."""
    torch.manual_seed(0)
    model, processor = find_task(task).build_tiny(texts, size)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(GAIN if weights.ndim > 1 else 1.0)
        if task == "captioning":
            ids = processor.tokenizer([*texts], add_special_tokens=False).input_ids
            kept = {processor.tokenizer.sep_token_id, *(each for text in ids for each in text)}
            bias = model.text_decoder.cls.predictions.bias
            bias[[each for each in range(len(bias)) if each not in kept]] = -30.0
    model.save_pretrained(folder)
    save_processor(processor, folder)
    hub.publish_model(name, folder)


def write_nocaps(folder: Path, size: int) -> None:
    """The file of NoCaps' validation captions, with ten of each image, and its pictures."""
    (folder / "val").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(size):
        open_id = f"{0x13EA2087020901 + number:016x}"
        open_image(picture(number)).save(folder / "val" / f"{open_id}.jpg", quality=95)
        images.append(
            {
                "license": 0,
                "file_name": f"{open_id}.jpg",
                "coco_url": f"https://images.invalid/val/{open_id}.jpg",
                "height": 64,
                "width": 80,
                "date_captured": "2018-11-06 11:04:33",
                "id": number,
                "open_images_id": open_id,
                "domain": DOMAINS[number % 3],
            }
        )
        for caption in (*captions_of(number), *captions_of(number + len(COLOURS))):
            annotations.append({"image_id": number, "id": len(annotations), "caption": caption})
    content = {"licenses": [], "info": {"version": "1.0"}, "images": images, "annotations": annotations}
    (folder / "nocaps_val_4500_captions.json").write_text(json.dumps(content))


def write_vqav2(folder: Path, subset: str, numbers: range) -> None:
    """VQAv2's files of a subset in `vqav2`, and its pictures in `coco`, named as COCO's."""
    (folder / "vqav2").mkdir(parents=True, exist_ok=True)
    (folder / "coco" / subset).mkdir(parents=True)
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in numbers:
        open_image(picture(number)).save(folder / "coco" / subset / f"COCO_{subset}_{number:012}.jpg", quality=95)
        is_left = number // len(COLOURS) % 2 == 0
        answers = (COLOURS[number % len(COLOURS)], "yes" if is_left else "no", "1")
        for place, (question, answer) in enumerate(zip(QUESTIONS, answers, strict=True)):
            facts = {"image_id": number, "question_id": 1000 * number + place}
            questions.append({**facts, "question": question})
            annotations.append(
                {
                    **facts,
                    "question_type": " ".join(question.lower().split()[:2]),
                    "multiple_choice_answer": answer,
                    "answer_type": ("other", "yes/no", "number")[place],
                    # Two of ten people answered otherwise.
                    "answers": [
                        {"answer": answer if each < 8 else "blue", "answer_confidence": "yes", "answer_id": each + 1}
                        for each in range(10)
                    ],
                }
            )
    head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": subset}
    asked = {**head, "task_type": "Open-Ended", "questions": questions}
    (folder / "vqav2" / f"v2_OpenEnded_mscoco_{subset}_questions.json").write_text(json.dumps(asked))
    (folder / "vqav2" / f"v2_mscoco_{subset}_annotations.json").write_text(
        json.dumps({**head, "annotations": annotations})
    )
