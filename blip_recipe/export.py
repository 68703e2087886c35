"""Export a trained BLIP to files that run without torch: with ONNX Runtime, OpenVINO, or in a browser.

python -m blip_recipe.export outputs/my_captioner exported/my_captioner
python -m blip_recipe.export outputs/my_captioner exported/small --dtype int8 --eval_split validation
python -m blip_recipe.export outputs/my_captioner exported/web --format transformers.js --demo
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from blip_recipe.errors import run_command

PROG = "python -m blip_recipe.export"


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Load the model, write its graphs, check them against the model, and keep them."""
    arguments = build_parser(prog).parse_args(argv)

    from blip_recipe.exporting.folder import add_to_record, check_folder, check_new, new_folder, write_graphs
    from blip_recipe.exporting.kinds import load_source
    from blip_recipe.exporting.readme import write_readme

    check_new(arguments.out)
    source = load_source(
        arguments.model,
        revision=arguments.revision,
        allow_pickle=arguments.allow_pickle,
        trust_remote_code=arguments.trust_remote_code,
    )
    with new_folder(arguments.out) as folder:
        write_graphs(source, folder)
        found = check_folder(source, folder, arguments.pictures)
        record = add_to_record(folder, check=found)
        write_readme(folder, record)
    print(describe_check(record["check"]), file=sys.stderr)
    print(arguments.out)


def describe_check(found: dict[str, float]) -> str:
    """One line about the comparison with the model."""
    shares = [f"{name} {found[name]:.0%}" for name in ("greedy", "beams", "texts") if name in found]
    return f"Equal to torch on {found['pictures']} pictures: {', '.join(shares)}."


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Export a model, full or LoRA, to files that run without torch, and check them."
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="directory or Hub id of a BLIP captioner, question answerer or retrieval model")
    add("out", metavar="OUT", type=Path, help="directory of the exported model; must not exist yet")
    add(
        "--pictures",
        nargs="+",
        default=[],
        metavar="PICTURE",
        help="files or URLs of pictures for the comparison with torch; default: 8 drawn scenes",
    )
    add("--revision", help="branch, tag or commit of a model on the Hub")
    add("--allow_pickle", action="store_true", help="also read weights in pickle files; only tensors are unpickled")
    add("--trust_remote_code", action="store_true", help="run code that comes with the model's configuration")
    return parser


if __name__ == "__main__":
    run_command(main)
