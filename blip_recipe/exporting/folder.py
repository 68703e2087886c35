"""Write the folder of an exported model, check it, and keep it if it does what the model does."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from blip_recipe.data.storage import check_new, write_json
from blip_recipe.errors import RecipeError
from blip_recipe.exporting.checking import compare
from blip_recipe.exporting.kinds import describe
from blip_recipe.exporting.onnx_files import OPSET, write_onnx
from blip_recipe.models.processors import save_processor
from blip_recipe.runtime.record import RECORD

if TYPE_CHECKING:
    from blip_recipe.exporting.checking import Results
    from blip_recipe.exporting.kinds import Source

MAX_DIFFERENCE = 1e-4
"""The largest difference of probabilities between a model in float32 and its export."""


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, which takes the name `out` at the end, unless there is an error.

    Raises:
        RecipeError: `out` exists and is not empty, or cannot be written.
    """
    check_new(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise RecipeError(f"{out} cannot be written: {error.strerror}.") from error
    try:
        yield made
        if out.exists():
            out.rmdir()
        made.chmod(0o755)  # mkdtemp's is private
        made.rename(out)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def write_graphs(source: Source, folder: Path, opset: int = OPSET) -> None:
    """Write the graphs, tokenizer, processor and `export.json` of a model in float32."""
    for name, graph in source.kind.graphs(source.model).items():
        write_onnx(graph, folder / f"{name}.onnx", opset)
    save_processor(source.processor, folder)
    write_json(folder / RECORD, describe(source, ".onnx", "fp32", opset))


def check_folder(source: Source, folder: Path, pictures: Sequence[str | Path] = ()) -> Results:
    """Compare a folder in float32 with its model.

    Raises:
        RecipeError: It computes something else than the model.
    """
    found = compare(source, folder, pictures)
    check_difference(source, found["difference"])
    return found


def check_difference(source: Source, difference: float) -> None:
    """Check the largest difference of probabilities between a model and its export in float32.

    Raises:
        RecipeError: It is above `MAX_DIFFERENCE`.
    """
    if difference > MAX_DIFFERENCE:
        raise RecipeError(
            f"The exported model differs from {source.name}: its probabilities by {difference:.1e}, expected at most "
            f"{MAX_DIFFERENCE:.0e}. Nothing was kept. Run pip install -U 'blip-recipe[export]'; if the message "
            "stays, report it."
        )
