"""Push a Space that runs a published model with plain transformers, and link it from the model's card.

python -m blip_recipe.space outputs/my_captioner --repo_id me/try-my-captioner
python -m blip_recipe.space me/my-captioner --repo_id me/try-my-captioner --private
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_recipe.errors import PushError, RecipeError, run_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from huggingface_hub import HfApi

    from blip_recipe.card.space import SpaceFacts

PROG = "python -m blip_recipe.space"

MESSAGE = "Upload a Space made with blip_recipe"


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Write the files of the Space, push them, link the card, and print the URL of the Space."""
    arguments = build_parser(prog).parse_args(argv)

    from huggingface_hub import HfApi

    from blip_recipe.card.space import render_space
    from blip_recipe.hub.publishing import check_repo_id, preflight, push_files

    check_repo_id(arguments.repo_id, "--repo_id")
    api = HfApi()
    model_id = find_model_id(arguments.model)
    facts, is_private = read_facts(model_id, api)
    private = is_private or None if arguments.private is None else arguments.private
    try:
        space = preflight(arguments.repo_id, "", private, api, repo_type="space")
    except RecipeError as error:
        # The name is valid: the obstacle is on the Hub's side.
        raise PushError(f"The Space {arguments.repo_id} was not pushed. {error}") from error
    check_owner(space, api)
    with written(render_space(facts)) as files:
        result = push_files(files, space, "space", private=private, message=MESSAGE, api=api)
    link_cards(arguments.model, model_id, result.url, api)
    if is_private:
        print(
            f"{model_id} is private: add a secret HF_TOKEN with read access to it in the settings of the Space.",
            file=sys.stderr,
        )
    print(result.url)


def find_model_id(model: str) -> str:
    """The Hub id of a model: its name, or the repository that a directory was pushed to.

    Raises:
        RecipeError: The directory was not pushed.
    """
    from blip_recipe.data.storage import read_json

    folder = Path(model).expanduser()
    if not folder.exists():
        return model
    model_id = read_json(folder / "recipe.json").get("hub_model_id")
    if model_id is None:
        raise RecipeError(
            f"{model} was not pushed to the Hub, where a Space loads its model from: push it with "
            f"`python -m blip_recipe.push {model} --repo_id ORG/NAME`, and run this command again."
        )
    return model_id


def read_facts(model_id: str, api: HfApi) -> tuple[SpaceFacts, bool]:
    """What the Space says of a model on the Hub, and whether the model is private.

    Raises:
        RecipeError: The model is not on the Hub, cannot be read, or cannot be run by transformers alone.
    """
    from blip_recipe.card.space import SpaceFacts
    from blip_recipe.hub.publishing import check_repo_id, find_repository
    from blip_recipe.hub.retries import HUB_ERRORS, WAITS_BEFORE, explain, with_retries
    from blip_recipe.models.loading import find_stock_class, read_repository_json, recorded_decoding
    from blip_recipe.recipe.finished import EXPLAINERS

    check_repo_id(model_id, "MODEL")
    try:
        info = with_retries(lambda: find_repository(model_id, api), WAITS_BEFORE)
    except HUB_ERRORS as error:
        raise RecipeError(explain(error, api)) from error
    if info is None:
        raise RecipeError(
            f"The model {model_id} is not on the Hub, or you may not see it: push it with `python -m "
            "blip_recipe.push`, or log in with `hf auth login`."
        )
    stock_class = find_stock_class(model_id)
    is_adapter = bool(read_repository_json(model_id, "adapter_config.json"))
    if is_adapter and stock_class == "BlipForImageTextRetrieval":
        raise RecipeError(
            f"{model_id} is an adapter of a matcher, which transformers alone cannot run: merge it with `python -m "
            "blip_recipe.merge`, push the result, and make a Space of that."
        )
    settings = recorded_decoding(read_repository_json(model_id, "recipe.json"), EXPLAINERS[stock_class].model_class)
    return SpaceFacts(model_id, f"{api.endpoint}/{model_id}", stock_class, is_adapter, settings), bool(info.private)


def check_owner(space: str, api: HfApi) -> None:
    """Check that a Space does not exist yet, is empty, or was made by this command.

    Raises:
        RecipeError: It has an app of somebody else.
    """
    from blip_recipe.card.space import TAG
    from blip_recipe.hub.publishing import find_repository, has_tag

    info = find_repository(space, api, "space")
    has_app = info is not None and any(each.rfilename == "app.py" for each in info.siblings or ())
    if info is not None and has_app and not has_tag(info, TAG):
        raise RecipeError(
            f"The Space {space} exists with an app.py that this command did not write: choose another name for "
            "--repo_id, or delete that file on the Hub."
        )


@contextmanager
def written(texts: Mapping[str, str]) -> Iterator[dict[str, Path]]:
    """Write texts to files in a temporary folder; gives their paths by name."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder, name) for name in texts}
        for name, path in paths.items():
            path.write_text(texts[name], encoding="utf-8", newline="\n")
        yield paths


def link_cards(model: str, model_id: str, url: str, api: HfApi) -> None:
    """Link the Space from the card of a local directory, and from that on the Hub if the token may write there."""
    from blip_recipe.card.space import link_space
    from blip_recipe.data.storage import write_atomically
    from blip_recipe.hub.publishing import preflight, push_files
    from blip_recipe.models.loading import find_repository_file

    local = Path(model).expanduser() / "README.md"
    if local.is_file():
        write_atomically(local, link_space(local.read_bytes().decode(), url).encode())
    try:
        preflight(model_id, "", None, api)
    except RecipeError as error:
        print(f"The card of {model_id} has no link to the Space: {error}", file=sys.stderr)
        return
    published: Any = find_repository_file(model_id, "README.md")
    card = published.read_bytes().decode() if published else ""
    with written({"README.md": link_space(card, url)}) as files:
        push_files(files, model_id, "model", private=None, message="Link the Space", api=api)


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Push a Space, a page on the Hub to try a model. It runs the published model with plain "
        "transformers, and is linked from the model's card.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="Hub id, or output directory of a run that was pushed")
    add("--repo_id", metavar="ORG/NAME", required=True, help="the Space; created if it does not exist")
    add(
        "--private",
        action=argparse.BooleanOptionalAction,
        help="make the Space private if it is created now; default: as the model is",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
