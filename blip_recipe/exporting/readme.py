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

RUNS_WITH = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "transformers.js": "transformers.js"}
"""What runs the files of each format."""

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}
"""The package that runs the files of each format of the runner."""


def write_readme(folder: Path, record: dict[str, Any]) -> None:
    """Write `README.md`: how to run the model, what it was made with, and how it compares with torch."""
    library = record["format"]
    browser = library == "transformers.js"
    metadata = [
        "---",
        f"library_name: {library}",
        f"pipeline_tag: {PIPELINES[record['task']]}",
        "tags:",
        *(f"- {tag}" for tag in dict.fromkeys([library, *(["onnx"] if browser else []), "blip", "blip_recipe"])),
        "---",
        "",
    ]
    title = [f"# {record['source']} for {RUNS_WITH[library]}", ""]
    use = _browser_lines() if browser else _python_lines(record["task"], library)
    lines = [*metadata, *title, *use, "", *check_lines(record)]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _python_lines(task: str, library: str) -> list[str]:
    command, arguments, does = USES[task]
    return [
        f"A BLIP to {does}, exported by `blip_recipe`. It runs without torch:",
        "",
        "```bash",
        f"pip install numpy pillow tokenizers {PACKAGES[library]}",
        "pip install --no-deps blip-recipe",
        f"python -m blip_recipe.{command} FOLDER {arguments}",
        "```",
    ]


def _browser_lines() -> list[str]:
    return [
        "A BLIP captioner, exported by `blip_recipe` for browsers and node:",
        "",
        "```js",
        'import { pipeline } from "@huggingface/transformers";',
        "",
        'const caption = await pipeline("image-to-text", "ORG/NAME", { dtype: "fp32" });',
        'console.log(await caption("photo.jpg"));',
        "```",
    ]


def check_lines(record: dict[str, Any]) -> list[str]:
    """What was measured, as lines of a list."""
    found, versions = record["check"], record["versions"]
    names = {
        "greedy": "equal token ids, greedy search",
        "beams": "equal token ids, 3 beams",
        "texts": "equal results with the runner's own pixels",
    }
    shares = [f"{text} {found[name]:.1%}" for name, text in names.items() if name in found]
    lines = [
        f"- Precision: {record['dtype']}. ONNX opset: {record['opset']}.",
        "- Made with " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        f"- Compared with torch on {found['pictures']} pictures: {', '.join(shares)}; largest difference of "
        f"probabilities {found['difference']:.1e}.",
    ]
    for name, scores in record.get("scores", {}).items():
        values = ", ".join(f"{metric} {value:.4f}" for metric, value in scores.items())
        lines.append(f"- {name} on {record['split_rows']:,} rows of the split {record['split']}: {values}.")
    return lines
