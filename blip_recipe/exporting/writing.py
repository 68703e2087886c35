"""Write an exported model in the format and precision of the command line."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_recipe.data.storage import read_json, write_json
from blip_recipe.exporting.checking import compare
from blip_recipe.exporting.conversion import convert, quantize_dynamically
from blip_recipe.exporting.folder import check_folder, write_graphs
from blip_recipe.exporting.kinds import describe
from blip_recipe.exporting.onnx_files import BROWSER_OPSET
from blip_recipe.exporting.quantization import (
    FORMS,
    SCORINGS,
    choose,
    describe_scores,
    load_scored_split,
)
from blip_recipe.exporting.transformers_js import compare_in_python, write_transformers_js
from blip_recipe.runtime.record import RECORD

if TYPE_CHECKING:
    import argparse

    from blip_recipe.exporting.kinds import Source


def write_folder(source: Source, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Write and check the files of an exported model.

    Returns:
        The content of `export.json`, with `format` and `check`.

    Raises:
        RecipeError: The export differs from the model, or cannot be quantised as asked.
    """
    if arguments.format == "transformers.js":
        return _write_transformers_js(source, folder, arguments)
    form = (arguments.format, arguments.dtype)
    if form == ("onnx", "fp32"):
        write_graphs(source, folder)
        return _finish(folder, format="onnx", check=check_folder(source, folder, arguments.pictures))
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".plain.") as made:
        plain = Path(made)
        write_graphs(source, plain)
        scores: dict[str, Any] = {}
        if arguments.dtype != "fp32":
            check_folder(source, plain, arguments.pictures)
        if arguments.dtype == "int8":
            chosen, scores = _choose_form(source, plain, arguments)
            form = (arguments.format, chosen)
        convert(plain, folder, form)
    compare_with = check_folder if arguments.dtype == "fp32" else compare
    return _finish(folder, check=compare_with(source, folder, arguments.pictures), **scores)


def _choose_form(source: Source, plain: Path, arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The form of quantisation, and what was measured on the split, if there is one."""
    usual = FORMS[0]
    if not arguments.eval_split:
        print(f"Quantised as {usual}; its scores were not measured, because there is no --eval_split.", file=sys.stderr)
        return usual, {}
    limit = arguments.max_eval_samples
    rows = load_scored_split(source.kind.task, source.recipe, arguments.dataset_name, arguments.eval_split, limit)
    measure = SCORINGS[source.kind.task].measure
    measured = {"fp32": measure(plain, rows)}
    for form in FORMS:
        with tempfile.TemporaryDirectory(dir=plain.parent, prefix=".form.") as made:
            convert(plain, Path(made), ("onnx", form))
            measured[form] = measure(Path(made), rows)
    for name, found in measured.items():
        print(f"{name}: {describe_scores(found)}", file=sys.stderr)
    chosen = choose(measured["fp32"], {form: measured[form] for form in FORMS})
    print(f"Chosen: {chosen}, the fastest that keeps all scores within 1%.", file=sys.stderr)
    names = {name: {**found.scores, "seconds": found.seconds} for name, found in measured.items()}
    return chosen, {"split": arguments.eval_split, "split_rows": len(rows), "scores": names}


def _write_transformers_js(source: Source, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    write_transformers_js(source, folder)
    write_json(folder / RECORD, describe(source, ".onnx", "fp32", BROWSER_OPSET))
    check = compare_in_python(source, folder / "onnx")
    if arguments.dtype == "int8":
        for name in ("encoder_model", "decoder_model_merged"):
            quantize_dynamically(folder / "onnx" / f"{name}.onnx", folder / "onnx" / f"{name}_quantized.onnx")
    return _finish(folder, format="transformers.js", dtype=arguments.dtype, check=check)


def _finish(folder: Path, **values: Any) -> dict[str, Any]:
    """Add values to the `export.json` of a folder; returns its content."""
    record = read_json(folder / RECORD) | values
    write_json(folder / RECORD, record)
    return record
