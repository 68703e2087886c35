"""Record which recipe owns an output directory, to resume it or refuse another recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from blip_recipe.data.storage import read_json, write_json
from blip_recipe.errors import RecipeError
from blip_recipe.recipe.recipe import ONE_START_KEYS
from blip_recipe.training.arguments import MAY_CHANGE

if TYPE_CHECKING:
    from blip_recipe.recipe.arguments import FinetuneOptions
    from blip_recipe.recipe.recipe import Recipe

RUN = "run.json"
"""The file of an output directory that records its run, and whether that is finished."""


@dataclass(frozen=True)
class Run:
    """The run that an output directory holds.

    Attributes:
        given: The keys that it was started with; empty if there is no run yet.
        model_revision, dataset_revision: The commits that its model and data are pinned to.
        finished: Whether only a push can be left to do.
        fitted: The values of keys that were not given and followed the data.
        mixture: The key `dataset_mixture` with the commits that its data sets are pinned to.
    """

    given: dict[str, Any]
    model_revision: str | None = None
    dataset_revision: str | None = None
    finished: bool = False
    fitted: dict[str, Any] = field(default_factory=dict)
    mixture: dict[str, Any] | None = None


def find_run(recipe: Recipe[FinetuneOptions]) -> Run:
    """Find the run to resume in `output_dir`; an empty one if there is none or it is to be overwritten.

    A run without a checkpoint leaves only the scores of its base model, which another recipe does not reuse.

    Raises:
        RecipeError: The run is that of another recipe, or there is none, but a file that the run would replace.
    """
    before = {} if recipe.options.overwrite_output_dir else read_json(recipe.output_dir / RUN)
    if not before and not recipe.options.overwrite_output_dir and (recipe.output_dir / "README.md").exists():
        raise RecipeError(
            f"{recipe.output_dir} has a README.md, but no run: the model card would replace it. Name another "
            "output_dir, move the file, or set --overwrite_output_dir true."
        )
    run = Run(**before) if before else Run({})
    keys = sorted({*run.given, *recipe.given}) if before else []
    changed = [
        f"{key} (was {_value(run.given, key, recipe, run)!r}, is {_value(recipe.given, key, recipe, run)!r})"
        for key in keys
        if key not in ONE_START_KEYS
        and not MAY_CHANGE.fullmatch(key)
        and _value(run.given, key, recipe, run) != _value(recipe.given, key, recipe, run)
    ]
    if changed and not (run.finished or any(recipe.output_dir.glob("checkpoint-*"))):
        # It ended before its first checkpoint, perhaps because of the changed keys: there is nothing to resume.
        return Run({})
    if changed:
        raise RecipeError(
            f"{recipe.output_dir} holds the run of another recipe, which differs in {', '.join(changed)}. Choose "
            "another output_dir, undo that to resume the run, or set --overwrite_output_dir true to delete it."
        )
    return run


def _value(given: dict[str, Any], key: str, recipe: Recipe[FinetuneOptions], run: Run) -> Any:
    """The value of a key; that which followed the data, or its default, if it was not given."""
    return given.get(key, run.fitted.get(key, recipe.default_of(key)))


def record_run(recipe: Recipe[FinetuneOptions], resolved: dict[str, Any], *, finished: bool) -> None:
    """Record the run in the output directory, and whether it is finished."""
    revisions = {key: resolved.get(key) for key in ("model_revision", "dataset_revision")}
    given = {key: value for key, value in recipe.given.items() if key not in ONE_START_KEYS}
    fitted = {key: resolved[key] for key in recipe.training.fitted_keys if key in resolved and key not in given}
    record = {"given": given, **revisions, "finished": finished, "fitted": fitted}
    write_json(recipe.output_dir / RUN, record | {"mixture": resolved.get("dataset_mixture")})
