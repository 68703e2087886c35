"""Export a trained BLIP to files that run without torch: with ONNX Runtime or OpenVINO, or in a browser.

python -m blip_recipe.export outputs/my_captioner exported/my_captioner
python -m blip_recipe.export outputs/my_captioner exported/small --dtype int8 --eval_split validation
python -m blip_recipe.export outputs/my_captioner exported/web --format transformers.js --demo
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from blip_recipe.errors import RecipeError, run_command
from blip_recipe.recipe.command_line import check_options, positive

PROG = "python -m blip_recipe.export"

DTYPES = {
    "onnx": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "fp16"),
    "transformers.js": ("fp32", "int8"),
}
"""The precisions of each format."""

NEEDED = {
    "dataset_name": "eval_split",
    "max_eval_samples": "eval_split",
    "private": "push_to_hub",
    "transformers_js": "demo",
}
"""For an option, the one without which it has no effect."""


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Load the model, write its graphs, check them against the model, keep them, and push them if asked."""
    arguments = build_parser(prog).parse_args(argv)
    check_options(arguments, NEEDED, ())
    if arguments.eval_split and arguments.dtype != "int8":
        raise RecipeError("--eval_split scores quantised models: add --dtype int8, or leave --eval_split out.")
    if arguments.demo and arguments.format != "transformers.js":
        raise RecipeError("--demo writes a page for browsers: add --format transformers.js, or leave --demo out.")
    if arguments.dtype not in DTYPES[arguments.format]:
        raise RecipeError(
            f"--format {arguments.format} has no --dtype {arguments.dtype}: expected one of "
            f"{', '.join(DTYPES[arguments.format])}."
        )

    from blip_recipe.data.storage import check_new
    from blip_recipe.exporting.demo import write_demo
    from blip_recipe.exporting.folder import new_folder
    from blip_recipe.exporting.kinds import load_source
    from blip_recipe.exporting.readme import write_readme
    from blip_recipe.exporting.writing import write_folder
    from blip_recipe.runtime.engines import choose_engine

    if arguments.format == "openvino":
        choose_engine(".xml")  # before the minutes that graphs of a large model take
    check_new(arguments.out)
    source = load_source(
        arguments.model,
        revision=arguments.revision,
        allow_pickle=arguments.allow_pickle,
        trust_remote_code=arguments.trust_remote_code,
    )
    with new_folder(arguments.out) as folder:
        record = write_folder(source, folder, arguments)
        write_readme(folder, record)
        if arguments.demo:
            write_demo(source, folder, record, arguments.transformers_js)
    print(describe_check(record), file=sys.stderr)
    print(arguments.out)
    if arguments.push_to_hub:
        from blip_recipe.exporting.publishing import push_export

        pushed = push_export(arguments.out, record, arguments.push_to_hub, private=arguments.private or None)
        print(pushed.url)


def describe_check(record: dict[str, Any]) -> str:
    """What the comparison with the model found."""
    found = record["check"]
    shares = [f"{name} {found[name]:.0%}" for name in ("greedy", "beams", "texts") if name in found]
    return f"Equal to torch on {found['pictures']} pictures: {', '.join(shares)}."


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Export a model, full or LoRA, to files that run without torch, and check them."
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="directory or Hub id of a captioner, question answerer or matcher")
    add("out", metavar="OUT", type=Path, help="directory of the exported model; must not exist yet")
    add("--format", choices=list(DTYPES), default="onnx", help="files for the runner of this package, or for browsers")
    add(
        "--dtype",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="precision of the weights: fp16 halves the files, int8 is smaller and faster",
    )
    add(
        "--pictures",
        nargs="+",
        default=[],
        metavar="PICTURE",
        help="files or URLs of pictures for the comparison with torch; default: 8 drawn scenes",
    )
    add("--eval_split", metavar="S", help="with int8: choose the fastest form that keeps the scores of this split")
    add("--dataset_name", metavar="D", help="data set of --eval_split; default: that of the model's recipe")
    add("--max_eval_samples", type=positive, metavar="N", help="score only the first pictures of --eval_split")
    add(
        "--demo", action="store_true", help="with transformers.js: also write a page that captions pictures, index.html"
    )
    add(
        "--transformers_js",
        type=Path,
        metavar="DIR",
        help="with --demo: copy transformers.js from the node_modules of this folder; default: load it from its CDN",
    )
    add("--push_to_hub", metavar="ORG/NAME", help="also push the files to this repository")
    add("--private", action="store_true", help="make the repository private, if it is created now")
    add("--revision", help="branch, tag or commit of a model on the Hub")
    add("--allow_pickle", action="store_true", help="also read weights in pickle files; only tensors are unpickled")
    add("--trust_remote_code", action="store_true", help="run code that comes with the model's configuration")
    return parser


if __name__ == "__main__":
    run_command(main)
