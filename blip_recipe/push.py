"""Push a finished output directory to the Hub; files that are there already are not pushed again.

python -m blip_recipe.push outputs/shapes_tiny --repo_id ORG/NAME
"""

from __future__ import annotations

import argparse
from pathlib import Path

from blip_recipe.errors import RecipeError, run_command

PROG = "python -m blip_recipe.push"


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Name the repository in card and recipe, push, and print the URL."""
    arguments = build_parser(prog).parse_args(argv)

    from huggingface_hub import HfApi

    from blip_recipe.card.retarget import retarget
    from blip_recipe.data.storage import read_json
    from blip_recipe.hub.published_files import published_files
    from blip_recipe.hub.publishing import (
        COMMIT_MESSAGE,
        check_repo_id,
        check_tag,
        preflight,
        push_command,
        push_failed,
        push_folder,
    )

    folder, tag = arguments.folder, arguments.tag
    check_repo_id(arguments.repo_id, "--repo_id")
    check_tag(tag, "--tag")
    published_files(folder)
    # A run that was to be private stays so when another machine pushes it.
    private = arguments.private
    if private is None:
        private = read_json(folder / "recipe.json").get("hub_private_repo")
    api = HfApi()
    try:
        repo_id = preflight(arguments.repo_id, folder.name, private, api)
    except RecipeError as error:
        # Directory and name are valid: the obstacle is on the Hub's side.
        finish = push_command(folder, arguments.repo_id, private=private, tag=tag)
        raise push_failed(f"{folder} was not pushed to {arguments.repo_id}.", error, finish, api) from error
    retarget(folder, repo_id)
    print(
        push_folder(
            folder, repo_id, private=private, message=arguments.commit_message or COMMIT_MESSAGE, tag=tag, api=api
        ).url
    )


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Push a finished output directory to the Hub; files that are there already are not pushed again.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="output directory of a run")
    parser.add_argument("--repo_id", metavar="ORG/NAME", required=True, help="repository; created if it does not exist")
    parser.add_argument(
        "--private",
        action=argparse.BooleanOptionalAction,
        help="make the repository private if it is created now; default: hub_private_repo of the run",
    )
    parser.add_argument("--tag", help="tag of the published commit; a tag that exists must have the same files")
    parser.add_argument("--commit_message", help="default: names blip_recipe")
    return parser


if __name__ == "__main__":
    run_command(main)
