"""Push an exported folder to the Hub: into the repository of its model, or into one of its own."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, ModelCard

from blip_recipe.errors import PushError
from blip_recipe.exporting.readme import RUNS_WITH, check_lines
from blip_recipe.hub.publishing import preflight, push_files
from blip_recipe.hub.retries import HUB_ERRORS, explain

if TYPE_CHECKING:
    from blip_recipe.hub.publishing import PushResult

HEADINGS = {"onnx": "## Without torch", "openvino": "## With OpenVINO"}
"""The heading of the part that a model's card gets, for each format."""

SUFFIXES = (".onnx", ".xml", ".bin", ".json", "README.md")
"""The ends of the names of files of an earlier export, which are replaced."""

UPLOAD_FOLDER = "They are saved: solve the problem, and upload the folder."
"""What to do after a failed push. The same command would not write into the folder again."""


def push_export(folder: Path, record: dict[str, Any], repo_id: str, *, private: bool | None) -> PushResult:
    """Push an exported folder in one commit.

    An ONNX folder goes into `onnx/` of the repository, one for OpenVINO into `openvino/`. The card gets this tag and a
    part about it. The files of transformers.js have a configuration of their own, so they need their own repository.

    Raises:
        PushError: The push failed, or the repository is that of a model.
    """
    api = HfApi()
    repo_id = preflight(repo_id, folder.name, private, api)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    if record["format"] == "transformers.js":
        return _push_own(names, repo_id, private, api)
    place = record["format"]
    files = {f"{place}/{name}": path for name, path in names.items() if name != "README.md"}
    with tempfile.TemporaryDirectory() as made:
        card = Path(made, "README.md")
        card.write_text(_merge_card(repo_id, folder, record, api), encoding="utf-8")
        message = f"Add files for {RUNS_WITH[place]}, for use without torch"
        files["README.md"] = card
        return _push(files, place, repo_id, private, message, api)


def _push_own(names: dict[str, Path], repo_id: str, private: bool | None, api: HfApi) -> PushResult:
    try:
        is_model = api.repo_exists(repo_id) and api.file_exists(repo_id, "model.safetensors")
    except HUB_ERRORS as error:
        raise PushError(explain(error, api)) from error
    if is_model:
        raise PushError(
            f"{repo_id} has a model for transformers, whose config.json transformers.js cannot read: name a repository "
            "of its own with --push_to_hub."
        )
    message = "Upload a captioner for transformers.js"
    return _push(names, "onnx", repo_id, private, message, api)


def _push(
    files: dict[str, Path], place: str, repo_id: str, private: bool | None, message: str, api: HfApi
) -> PushResult:
    stale = [f"{place}/*{suffix}" for suffix in SUFFIXES]
    return push_files(
        files, repo_id, "model", private=private, stale=stale, message=message, api=api, advice=UPLOAD_FOLDER
    )


def _merge_card(repo_id: str, folder: Path, record: dict[str, Any], api: HfApi) -> str:
    """The card of the repository with the part about the export, or that of the folder if there is none."""
    try:
        there = api.repo_exists(repo_id) and api.file_exists(repo_id, "README.md")
        path = api.hf_hub_download(repo_id, "README.md") if there else folder / "README.md"
    except HUB_ERRORS as error:
        raise PushError(explain(error, api)) from error
    card = ModelCard.load(path)
    tags = card.data.tags or []
    place = record["format"]
    card.data.tags = [*tags, *({place} - set(tags))]
    if there:
        heading = HEADINGS[place]
        others = re.sub(rf"\n{heading}\n.*?(?=\n## |\Z)", "", card.text, flags=re.DOTALL).rstrip()
        use = f"The files in `{place}/` run with {RUNS_WITH[place]}: give the folder to the commands of `blip_recipe`."
        card.text = "\n".join([others, "", heading, "", use, "", *check_lines(record), ""])
    return str(card)
