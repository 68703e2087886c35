"""Push a finished output directory to the Hub, from any machine and as often as you like: nothing is pushed twice.

python -m blip_recipe.push outputs/shapes_tiny --repo_id ORG/NAME
"""

from __future__ import annotations

import argparse
from pathlib import Path

from blip_recipe.errors import RecipeError, run_command


def main() -> None:
    """Read the command line, let card and recipe speak of the repository, push, print its URL."""
    arguments = parse_arguments()

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
    # What a run meant to keep private is not made public on another machine.
    asked = arguments.private
    private = read_json(folder / "recipe.json").get("hub_private_repo") if asked is None else asked
    api = HfApi()
    try:
        repo_id = preflight(arguments.repo_id, folder.name, private, api)
    except RecipeError as error:
        # The directory is sound and the name is one: what is in the way is on the Hub's side.
        finish = push_command(folder, arguments.repo_id, private=private, tag=tag)
        raise push_failed(f"{folder} was not pushed to {arguments.repo_id}.", error, finish, api) from error
    retarget(folder, repo_id)
    print(
        push_folder(
            folder, repo_id, private=private, message=arguments.commit_message or COMMIT_MESSAGE, tag=tag, api=api
        ).url
    )


def parse_arguments() -> argparse.Namespace:
    """The command line; a missing directory or name ends with code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m blip_recipe.push",
        description="Push a finished output directory to the Hub; nothing is pushed twice.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="output directory of a run")
    parser.add_argument("--repo_id", metavar="ORG/NAME", required=True, help="repository; made if it does not exist")
    parser.add_argument(
        "--private",
        action=argparse.BooleanOptionalAction,
        help="make the repository private, if it is made now; default: as the run's hub_private_repo says",
    )
    parser.add_argument(
        "--tag", help="tag for the published commit; the same files may have it already, others may not"
    )
    parser.add_argument("--commit_message", help="default: names blip_recipe")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
