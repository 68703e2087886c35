"""Push a finished output directory to the Hub, from any machine and as often as you like: nothing is pushed twice.

python -m blip_recipe.push outputs/shapes_tiny --repo_id ORG/NAME
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from blip_recipe.errors import RecipeError, run_command

COMMIT_MESSAGE = "Upload a BLIP captioner fine-tuned with blip_recipe"

CODE = re.compile(r"^```.*?^```|`[^`\n]+ [^`\n]+`", flags=re.DOTALL | re.MULTILINE)
"""Code blocks, and code of several words in a line: where a card says how its repository is used."""


def main() -> None:
    """Read the command line, let card and recipe speak of the repository, push, print its URL."""
    arguments = parse_arguments()

    from huggingface_hub import HfApi

    from blip_recipe.data.storage import read_json
    from blip_recipe.hub.published_files import published_files
    from blip_recipe.hub.publishing import check_repo_id, check_tag, not_pushed, preflight, push_command, push_folder

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
        raise not_pushed(f"{folder} was not pushed to {arguments.repo_id}.", error, finish, api) from error
    retarget(folder, repo_id)
    print(push_folder(folder, repo_id, private=private, message=arguments.commit_message, tag=tag, api=api).url)


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
    parser.add_argument("--commit_message", default=COMMIT_MESSAGE, help="default: %(default)s")
    return parser.parse_args()


def retarget(folder: Path, repo_id: str) -> None:
    """Let `recipe.json` and the card of an output directory speak of the repository that it is pushed to.

    The recipe, which says what the card spoke of, is replaced last, and neither is ever half written: a push that is
    killed can be repeated.
    """
    from blip_recipe.card.rendering import PLACEHOLDER
    from blip_recipe.data.storage import read_json, write_json, write_whole

    recipe = read_json(folder / "recipe.json")
    old = recipe.get("hub_model_id") or PLACEHOLDER
    if old == repo_id:
        return
    readme = folder / "README.md"
    if readme.exists():
        write_whole(readme, retarget_card(readme.read_bytes().decode(), old, repo_id).encode())
    if recipe:
        write_json(folder / "recipe.json", recipe | {"hub_model_id": repo_id})


def retarget_card(card: str, old: str, new: str) -> str:
    """A card with one repository's name for another's: in its code, and in the `name` of its model-index.

    Prose and other metadata stay: the base model or the data set may have the very name that the model had.
    """
    metadata, text = _split_card(card)
    metadata = re.sub(rf"^- name: (['\"]?){re.escape(old)}\1$", rf"- name: \g<1>{new}\1", metadata, flags=re.MULTILINE)
    # A longer name, or a longer namespace, is another repository.
    name = re.compile(rf"(?<![\w.-]){re.escape(old)}(?![\w-]|\.\w)")
    return metadata + CODE.sub(lambda code: name.sub(new, code[0]), text)


def _split_card(card: str) -> tuple[str, str]:
    """The block of metadata at the top of a card, with its fences, and the rest."""
    block = re.match(r"---\r?\n.*?\r?\n---(?=\r?\n|$)", card, flags=re.DOTALL)
    return (card[: block.end()], card[block.end() :]) if block else ("", card)


if __name__ == "__main__":
    run_command(main)
