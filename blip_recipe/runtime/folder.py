"""Read the folder of an exported model."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_recipe.data.images import open_image
from blip_recipe.errors import RecipeError
from blip_recipe.models.decoding import DecodingSettings
from blip_recipe.runtime.engines import ENGINES, choose_engine, usual_threads
from blip_recipe.runtime.pixels import PixelSettings
from blip_recipe.runtime.record import RECORD, RECORD_VERSION, TASKS
from blip_recipe.runtime.texts import Texts

if TYPE_CHECKING:
    from typing import Self

    import numpy as np

    from blip_recipe.data.images import Picture
    from blip_recipe.runtime.engines import Graph


@dataclass(frozen=True)
class ExportedFolder:
    """The folder of an exported model.

    Attributes:
        path: The folder.
        record: The content of `export.json`.
        engine: The name of what runs the graphs, in `ENGINES`.
        threads: Number of threads; None: the engine's choice.
    """

    path: Path
    record: dict[str, Any]
    engine: str
    threads: int | None

    @classmethod
    def open(cls, path: str | Path, task: str, *, engine: str | None = None, threads: int | None = None) -> Self:
        """Open the folder of a model for a task.

        Args:
            path: The folder.
            task: One of `TASKS`.
            engine: `onnxruntime`, `openvino` or `openvino_bf16`; by default the first that is installed.
            threads: Number of threads; by default that of `OMP_NUM_THREADS`, else the engine's choice.

        Raises:
            RecipeError: It is not the folder of such a model, or no engine is installed.
        """
        try:
            record = json.loads(Path(path, RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecipeError(
                f"{path} has no {RECORD} that can be read: expected the output of `python -m blip_recipe.export`."
            ) from error
        version, found = record.get("record_version"), record.get("task")
        if version != RECORD_VERSION:
            raise RecipeError(
                f"{Path(path, RECORD)} has the version {version}: this blip_recipe reads version {RECORD_VERSION}. "
                "Export the model again, or install the version of blip_recipe that exported it."
            )
        if found != task:
            raise RecipeError(f"{path} is {TASKS.get(found, found)}: expected {TASKS[task]}.")
        return cls(Path(path), record, choose_engine(record["suffix"], engine), threads or usual_threads())

    def load(self, *graphs: str) -> list[Graph]:
        """Load graphs by their names in `export.json`, side by side: this is most of the time of a start.

        Raises:
            RecipeError: A file is missing or damaged.
        """
        with ThreadPoolExecutor(len(graphs)) as pool:
            return list(pool.map(self._load, graphs))

    def _load(self, graph: str) -> Graph:
        path = self.path / f"{graph}{self.record['suffix']}"
        try:
            return ENGINES[self.engine].load(path, self.threads)
        except Exception as error:  # each engine has its own
            raise RecipeError(
                f"{path} cannot be loaded: {str(error).strip().splitlines()[0]} Export the model again."
            ) from error

    @cached_property
    def texts(self) -> Texts:
        """The tokenizer.

        Raises:
            RecipeError: Its file is missing or damaged.
        """
        path = self.path / "tokenizer.json"
        try:
            return Texts(path, self.record["tokens"]["padding"])
        except Exception as error:  # tokenizers raises Exception itself
            raise RecipeError(f"{path} cannot be read: {error} Export the model again.") from error

    @cached_property
    def pixels(self) -> PixelSettings:
        """The settings of the image processor."""
        return PixelSettings(**self.record["image"])

    @cached_property
    def settings(self) -> DecodingSettings:
        """The prompt and decoding that the model was scored with."""
        return DecodingSettings(**self.record["decoding"])

    def read_picture(self, picture: Picture, timeout: float | None = None) -> np.ndarray:
        """The `pixel_values` `(1, 3, height, width)` of a picture.

        Raises:
            BadImageError: It cannot be read.
        """
        return self.pixels.read(open_image(picture, timeout=timeout))
