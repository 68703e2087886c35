"""Write the README of an exported folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

USES = {
    "captioning": ("caption", "photo.jpg", "caption pictures"),
    "vqa": ("answer", 'photo.jpg "What is it?"', "answer questions about pictures"),
    "retrieval": ("match", 'photo.jpg "a dog" "two cats"', "score how well texts match pictures"),
}
"""The command of each task, its arguments, and what it does."""

PIPELINES = {"captioning": "image-to-text", "vqa": "visual-question-answering", "retrieval": "image-text-to-text"}
"""The Hub's task of each task."""


def write_readme(folder: Path, record: dict[str, Any]) -> None:
    """Write `README.md`: how to run the model, what it was made with, and how it compares with torch."""
    command, arguments, does = USES[record["task"]]
    metadata = ["---", "library_name: onnx", f"pipeline_tag: {PIPELINES[record['task']]}", "tags:", "- onnx", "- blip"]
    lines = [
        *metadata,
        "- blip_recipe",
        "---",
        "",
        f"# {record['source']} for ONNX Runtime",
        "",
        f"A BLIP to {does}, exported by [blip_recipe](https://pypi.org/project/blip-recipe). It runs without torch:",
        "",
        "```bash",
        "pip install numpy pillow tokenizers onnxruntime",
        "pip install --no-deps blip-recipe",
        f"python -m blip_recipe.{command} FOLDER {arguments}",
        "```",
        "",
        *check_lines(record),
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def check_lines(record: dict[str, Any]) -> list[str]:
    """What was measured, as lines of a list."""
    found, versions = record["check"], record["versions"]
    names = {
        "greedy": "equal token ids, greedy search",
        "beams": "equal token ids, 3 beams",
        "texts": "equal results with the runner's own pixels",
    }
    return [
        f"- Precision: {record['dtype']}. ONNX opset: {record['opset']}.",
        "- Made with " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        f"- Compared with torch on {found['pictures']} pictures: "
        + ", ".join(f"{text} {found[name]:.1%}" for name, text in names.items() if name in found)
        + f"; largest difference of probabilities {found['difference']:.1e}.",
    ]
