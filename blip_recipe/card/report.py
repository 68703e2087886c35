"""Write `report.html`: a page of every scored picture with its texts, before and after the training.

The page holds its data as JSON, and its own script sets them as text. It makes no request: its content security policy
forbids that, and foreign scripts too.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_recipe.card.baseline import match_baseline
from blip_recipe.card.charts import (
    Curves,
    Histogram,
    Series,
    build_curves,
    build_histogram,
    count_values,
    curve_points,
    nice_range,
)
from blip_recipe.card.page import render_page, to_json
from blip_recipe.card.pictures import SCORE_LABELS, ranking_score
from blip_recipe.card.thumbnails import INLINE, MAX_INLINE_BYTES, Thumbnails, make_thumbnails, remove_thumbnails
from blip_recipe.data.storage import write_atomically

if TYPE_CHECKING:
    from datasets import Dataset

    from blip_recipe.card.facts import CardFacts, ScoreFacts, TaskWords
    from blip_recipe.data.images import Picture

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]

REPORT = "report.html"
REPORT_FOLDER = "report_files"
"""Folder beside the page with thumbnails that are too large for it."""

MAX_ROWS = 50_000
"""Maximum number of rows of a page. Of more rows, every second, third and so on is shown."""

BINS = 25

TEMPLATE = Path(__file__).with_name("report.html.jinja")


@dataclass(frozen=True)
class Columns:
    """The columns of a task's report.

    Attributes:
        output: The field of a prediction with the model's text.
        output_label, references_label: Headings.
        references: The field with the right texts.
        notes: A field with a remark on each right text, if there is one.
        question: The field with the question, if there is one.
        ranked: The fields with ranked texts and their scores, if there are some.
        rank: The field with the rank of the first right text, whose inverse is a score.
    """

    output: str = "caption"
    output_label: str = "Caption"
    references: str = "references"
    references_label: str = "References"
    notes: str | None = None
    question: str | None = None
    ranked: tuple[str, str] | None = None
    rank: str | None = None


COLUMNS: dict[str, Columns] = {
    "captioning": Columns(),
    "pretrain": Columns(),
    "vqa": Columns("answer", "Answer", references_label="Answers of people", notes="agreement", question="question"),
    "retrieval": Columns(
        output_label="Best text", references_label="Texts of the picture", ranked=("texts", "text_scores"), rank="rank"
    ),
}
"""The columns by task. The fields are those of `predictions.jsonl`, and those that `to_display` adds."""


@dataclass(frozen=True)
class ReportFacts:
    """What stands above the rows of a report.

    Attributes:
        title: The title of the page.
        summary: Pairs of a name and a text.
        scores: The scores of the whole split, with those of the base model.
        log_history: Trainer's log history, for curves.
    """

    title: str
    summary: Sequence[tuple[str, str]]
    scores: Sequence[ScoreFacts]
    log_history: Sequence[Record] = ()

    @classmethod
    def of_card(cls, facts: CardFacts, log_history: Sequence[Record]) -> ReportFacts:
        """The facts of a trained model."""
        split = facts.results.scored
        named = {"base model": facts.base.name, "data": facts.dataset.name, "split": split.name if split else ""}
        summary = [(name, text) for name, text in named.items() if text]
        scores = [*facts.results.scores, *facts.results.groups]
        return cls(f"{facts.task.title}: {facts.dataset.name}", summary, scores, log_history)


def write_report(
    output_dir: Path,
    predictions: Sequence[Record],
    words: TaskWords,
    facts: ReportFacts,
    *,
    to_display: Callable[[Record], Record] = lambda prediction: prediction,
    find_picture: Callable[[Any], Picture] | None = None,
    max_inline_bytes: int = MAX_INLINE_BYTES,
) -> Path:
    """Write `report.html`, a page of every scored row, and its thumbnails into `output_dir`.

    Args:
        output_dir: The output directory. The texts of the base model are read from its `baseline_predictions.jsonl`.
        predictions: Lines of `predictions.jsonl`.
        words: The names of the task.
        facts: What stands above the rows.
        to_display: The trainer's conversion of a prediction.
        find_picture: Returns the picture of an image id; None without pictures.
        max_inline_bytes: Maximum bytes of all thumbnails in the page. If they are more, they are files beside it.

    Returns:
        The path of the page.
    """
    every = slice(None, None, -(-len(predictions) // MAX_ROWS) or 1)
    shown = predictions[every]
    if len(shown) < len(predictions):
        logger.warning("%s shows %s of %s rows.", REPORT, f"{len(shown):,}", f"{len(predictions):,}")
    columns = COLUMNS[words.name]
    ours = [read_row(each, to_display(each), columns, words.key) for each in shown]
    before = match_baseline(output_dir, predictions, words)
    base = [read_row(each, to_display(each), columns, words.key) for each in before[every]] if before else None
    images = list(dict.fromkeys(each["image"] for each in ours))
    folder = output_dir / REPORT_FOLDER
    if find_picture is None:
        remove_thumbnails(folder)
        thumbnails = Thumbnails(INLINE, [])
    else:
        thumbnails = make_thumbnails(lambda number: find_picture(images[number]), len(images), folder, max_inline_bytes)
    page = render_report(ours, base, images, thumbnails, columns, words, facts, len(predictions))
    path = output_dir / REPORT
    write_atomically(path, page.encode())
    return path


def remove_report(output_dir: Path) -> None:
    """Delete the page of an earlier run."""
    (output_dir / REPORT).unlink(missing_ok=True)
    remove_thumbnails(output_dir / REPORT_FOLDER)


def pictures_of(rows: Dataset, resized: Mapping[int, str] | None = None) -> Callable[[Any], Picture]:
    """A function that returns the picture of an image id.

    Args:
        rows: Rows with `image` and `image_id`.
        resized: Files with smaller pictures by row number, which are used instead.
    """
    # Several rows may have the same picture, such as those of questions.
    numbers = {image_id: row for row, image_id in reversed(list(enumerate(rows["image_id"])))}
    pictures = rows.select_columns(["image"])

    def find(image_id: Any) -> Picture:
        row = numbers[image_id]
        return (resized or {}).get(row) or pictures[row]["image"]

    return find


def files_of(names: Mapping[Any, Sequence[str]], folders: Iterable[Path]) -> Callable[[Any], Picture] | None:
    """A function that returns the picture file of an image id; None without any file.

    Args:
        names: Possible file names by image id.
        folders: The folders to look in. Files elsewhere are not read, as data may name any.
    """
    roots = [folder.resolve() for folder in folders]

    def find(image_id: Any) -> Path | None:
        places = ((root, (root / name).resolve()) for name in names.get(image_id, ()) for root in roots)
        return next((path for root, path in places if path.is_relative_to(root) and path.is_file()), None)

    return find if any(map(find, names)) else None


def read_row(prediction: Record, display: Record, columns: Columns, key: str) -> dict[str, Any]:
    """Convert a prediction to a row of the page.

    Args:
        prediction: A line of `predictions.jsonl`.
        display: The same, converted by the trainer's `to_display`.
        columns: The columns of the task.
        key: The field with the id of a row.
    """
    fields = {**display, **prediction, columns.references: display[columns.references]}
    row: dict[str, Any] = {
        "id": fields[key],
        "image": fields["image_id"],
        "text": fields[columns.output],
        "references": list(fields[columns.references]),
        "scores": {name: value for name, value in fields["scores"].items() if math.isfinite(value)},
    }
    if columns.notes:
        row["notes"] = fields[columns.notes]
    if columns.question:
        row["question"] = fields[columns.question]
    if columns.ranked:
        right = set(row["references"])
        row["ranked"] = [
            [text, score, text in right] for text, score in zip(*(fields[each] for each in columns.ranked), strict=True)
        ]
    if columns.rank:
        row["scores"] |= {"reciprocal_rank": 1 / fields[columns.rank]}
    return row | {name: fields[name] for name in ("prompt", "group") if fields.get(name)}


def render_report(
    ours: Sequence[Record],
    base: Sequence[Record] | None,
    images: Sequence[Any],
    thumbnails: Thumbnails,
    columns: Columns,
    words: TaskWords,
    facts: ReportFacts,
    scored: int,
) -> str:
    """Render the page; `scored` is the number of all scored rows."""
    names = score_names(ours)
    ranking = (ranking_score(ours) if names else None) or (names[0] if names else None)
    numbers = {image: number for number, image in enumerate(images)}
    data = {
        "scores": [{"name": name, "label": label_of(name)} for name in names],
        "ranking": names.index(ranking) if ranking else None,
        "labels": {"output": columns.output_label, "references": columns.references_label, "row": words.row},
        "hasBase": base is not None,
        "prefix": thumbnails.prefix,
        "rows": [
            compact_row(row, base[place] if base else None, names, numbers[row["image"]])
            for place, row in enumerate(ours)
        ],
    }
    shown = {
        "facts": facts,
        "words": words,
        "rows": len(ours),
        "scored": scored,
        "has_base": base is not None,
        "groups": sorted({row["group"] for row in ours if "group" in row}),
        "labels": {name: label_of(name) for name in names},
        "ranking": ranking,
        "histograms": [(name, histogram_of(name, ours, base)) for name in names],
        "curves": training_curves(facts.log_history),
        "data": to_json(data),
        "pictures": to_json(thumbnails.files),
    }
    images_of_page = "data:" if thumbnails.prefix == INLINE else "'self' file:"
    return render_page(TEMPLATE, shown, styles=("page.css", "report.css"), script="report.js", images=images_of_page)


def compact_row(row: Record, base: Record | None, names: Sequence[str], picture: int) -> dict[str, Any]:
    """A row of the page's data, with scores in the order of `names`."""
    kept = {key: value for key, value in row.items() if key not in ("image", "scores")}
    kept |= {"picture": picture, "scores": _scores_of(row, names)}
    if base is not None:
        kept |= {"base": base["text"], "baseScores": _scores_of(base, names)}
        if "ranked" in base:
            kept["baseRanked"] = base["ranked"]
    return kept


def _scores_of(row: Record, names: Sequence[str]) -> list[float | None]:
    values = [row["scores"].get(name) for name in names]
    return [None if value is None else round(value, 4) for value in values]


def score_names(rows: Sequence[Record]) -> list[str]:
    """The scores that rows have: those with a label in its order, then others."""
    found = dict.fromkeys(name for row in rows for name in row["scores"])
    return [name for name in SCORE_LABELS if name in found] + [name for name in found if name not in SCORE_LABELS]


def label_of(name: str) -> str:
    """The label of a score."""
    return SCORE_LABELS.get(name, name)


def histogram_of(name: str, ours: Sequence[Record], base: Sequence[Record] | None) -> Histogram:
    """The histogram of a score of both models."""
    models = {"": ours} if base is None else {"base model": base, "fine-tuned": ours}
    values = {model: [row["scores"].get(name) for row in rows] for model, rows in models.items()}
    low, high = nice_range([value for each in values.values() for value in each])
    series = [
        Series(model, count_values(each, low, high, BINS), "base" if model == "base model" else "ours")
        for model, each in values.items()
    ]
    return build_histogram(f"Histogram of {label_of(name)}", series, low, high)


def training_curves(log_history: Sequence[Record]) -> list[Curves]:
    """The curves of loss and score of a training."""
    losses = {
        "training": ("training", curve_points(log_history, "loss")),
        "evaluation": ("evaluation", curve_points(log_history, "eval_loss")),
    }
    score = next((name for name in SCORE_LABELS if curve_points(log_history, f"eval_{name}")), None)
    drawn = [build_curves("Loss", losses)]
    if score:
        label = f"{label_of(score)} on the evaluation split"
        drawn.append(build_curves(label, {label_of(score): ("score", curve_points(log_history, f"eval_{score}"))}))
    return [each for each in drawn if each]
