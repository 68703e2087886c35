"""Send a table of some pictures and their texts to the trackers of `report_to` at each evaluation of a training.

The pictures are the rows with the smallest hashes of seed and id. They are the same in all evaluations of a run, also
after it was resumed, and whatever the order of the rows is.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL.Image import Image
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import default_logdir

from blip_recipe.card.rendering import escape_markdown
from blip_recipe.data.images import open_image

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

Cell: TypeAlias = str | float | None
"""A text, a number, or nothing."""

PICTURE_SIZE = 256
"""The longer side of a picture in a table, in pixels."""


@dataclass(frozen=True)
class Table:
    """The texts of an evaluation, as trackers show them.

    Attributes:
        name: The prefix of the evaluation's metrics, such as `eval`.
        step: The step of the training.
        pictures: The pictures.
        rows: The other cells of each picture by column; the columns are the same in all rows.
        is_first: Whether no table of this name was sent before in this session.
    """

    name: str
    step: int
    pictures: list[Image]
    rows: list[dict[str, Cell]]
    is_first: bool

    @property
    def columns(self) -> list[str]:
        """The columns, without the picture."""
        return list(self.rows[0])


def write_to_tensorboard(callback: Any, table: Table) -> None:
    """A Markdown table of the text plugin, and once the pictures, whose tags have the numbers of its rows."""
    cells = [["", *table.columns], ["---"] * (len(table.columns) + 1)]
    cells += [[str(number), *map(format_cell, row.values())] for number, row in enumerate(table.rows, 1)]
    text = "\n".join(f"| {' | '.join(row)} |" for row in cells)
    callback.tb_writer.add_text(f"{table.name}/texts", text, table.step)
    for number, picture in enumerate(table.pictures if table.is_first else (), 1):
        callback.tb_writer.add_image(
            f"{table.name}/picture_{number}", np.asarray(picture), table.step, dataformats="HWC"
        )
    callback.tb_writer.flush()


def write_to_trackio(callback: Any, table: Table) -> None:
    """A `trackio.Table` with a column of `trackio.Image`."""
    trackio = callback._trackio
    rows = [
        {"picture": trackio.Image(picture)}
        | {name: escape_markdown(value) if isinstance(value, str) else value for name, value in row.items()}
        for picture, row in zip(table.pictures, table.rows, strict=True)
    ]
    trackio.log({f"{table.name}/texts": trackio.Table(data=rows), "train/global_step": table.step})


def write_to_wandb(callback: Any, table: Table) -> None:
    """A `wandb.Table` with a column of `wandb.Image`."""
    wandb = callback._wandb
    data = [[wandb.Image(picture), *row.values()] for picture, row in zip(table.pictures, table.rows, strict=True)]
    shown = wandb.Table(columns=["picture", *table.columns], data=data)
    wandb.log({f"{table.name}/texts": shown, "train/global_step": table.step})


def write_to_mlflow(callback: Any, table: Table) -> None:
    """Rows of one table for all evaluations, in which MLflow shows the pictures."""
    mlflow = callback._ml_flow
    columns = {name: [row[name] for row in table.rows] for name in table.columns}
    pictures = [mlflow.Image(picture) for picture in table.pictures]
    data = {"step": [table.step] * len(pictures), "picture": pictures, **columns}
    mlflow.log_table(data, artifact_file=f"{table.name}_texts.json")


WRITERS: dict[str, Callable[[Any, Table], None]] = {
    "TensorBoardCallback": write_to_tensorboard,
    "TrackioCallback": write_to_trackio,
    "WandbCallback": write_to_wandb,
    "MLflowCallback": write_to_mlflow,
}
"""The writer for each of transformers' callbacks that has tables or pictures. Others get no tables."""


def format_cell(value: Cell) -> str:
    """A cell of a table in Markdown, which trackers render: texts are escaped."""
    return escape_markdown(value or "") if value is None or isinstance(value, str) else f"{value:g}"


def find_writers(callbacks: Iterable[TrainerCallback]) -> list[tuple[Any, Callable[[Any, Table], None]]]:
    """The running trackers that have tables, each with its writer."""
    return [
        (callback, WRITERS[each.__name__])
        for callback in callbacks
        for each in type(callback).__mro__
        if each.__name__ in WRITERS
    ]


def keep_logs_in(output_dir: str, callbacks: Iterable[TrainerCallback]) -> None:
    """Let TensorBoard write below `output_dir` from the first evaluation on.

    Trainer sets the folder when the training begins. After an evaluation before that, all logs would go to `runs` in
    the working directory.
    """
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(Path(output_dir) / default_logdir())


def choose_ids(ids: Sequence[Any], count: int, seed: int) -> list[Any]:
    """Choose `count` of `ids` by hashes, in the order of the hashes."""
    return sorted(dict.fromkeys(ids), key=lambda each: hashlib.blake2b(f"{seed} {each!r}".encode()).digest())[:count]


class TableCallback(TrainerCallback):
    """Send the texts of the chosen rows to the trackers after each evaluation during the training.

    Args:
        trainer: The `PublishingTrainer`, whose `predictions` have the texts.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._pictures: dict[str, dict[Any, Image]] = {}

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Send the table; a tracker that fails is named in a warning, and the training continues."""
        trainer = self.trainer
        writers = find_writers(trainer.callback_handler.callbacks)
        if not (writers and state.is_world_process_zero and trainer.is_in_train and trainer.predictions):
            return
        name = next(reversed(trainer.scored))
        is_first = name not in self._pictures
        if is_first:
            self._pictures[name] = self._read_pictures()
        found = {prediction[trainer.task.key]: prediction for prediction in trainer.predictions}
        shown = {each: picture for each, picture in self._pictures[name].items() if each in found}
        if not shown:
            return
        rows = align([trainer.to_table_row(found[each]) for each in shown])
        table = Table(name, state.global_step, list(shown.values()), rows, is_first)
        for callback, write in writers:
            try:
                write(callback, table)
            except Exception as error:  # whatever a tracker raises; the scores are saved elsewhere too
                logger.warning("%s got no table of texts: %s", type(callback).__name__, error)

    def _read_pictures(self) -> dict[Any, Image]:
        """The small pictures of the chosen rows of the split that was evaluated, by id."""
        trainer = self.trainer
        rows, key = trainer.scored_dataset.rows, trainer.task.key
        numbers = {each: number for number, each in enumerate(rows[key])}
        known = [prediction[key] for prediction in trainer.predictions]
        chosen = choose_ids(known, trainer.args.tracked_pictures, trainer.args.seed)
        return {each: _shrink(open_image(rows[numbers[each]]["image"])) for each in chosen}


def align(rows: Sequence[Mapping[str, Cell]]) -> list[dict[str, Cell]]:
    """The same columns for all rows, with None in the cells that a row does not have, and scores with four decimals."""
    columns = dict.fromkeys(name for row in rows for name in row)
    return [{name: _round(row.get(name)) for name in columns} for row in rows]


def _round(cell: Cell) -> Cell:
    return round(cell, 4) if isinstance(cell, float) else cell


def join_texts(texts: Iterable[str]) -> str:
    """Several texts in one cell."""
    return " / ".join(texts)


def _shrink(picture: Image) -> Image:
    picture.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
    return picture
