"""Write the results of a run: `all_results.json` with numbers, and `report.html` with examples.

The page is self-contained. Web captions may be hostile, so all text is escaped, and the page's content security policy
blocks scripts and requests. Its style, histograms and thumbnails are those of a training's report (`card/report.py`).
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_recipe.capfilt.judging import KINDS
from blip_recipe.capfilt.run import read_note
from blip_recipe.capfilt.shard_output import DATA
from blip_recipe.capfilt.tally import EXAMPLES_PER_SORT, add_counts
from blip_recipe.card.charts import Histogram, Series, build_histogram
from blip_recipe.card.page import render_page
from blip_recipe.data.storage import write_atomically, write_json
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from blip_recipe.capfilt.arguments import CapFiltArguments
    from blip_recipe.capfilt.source import Source

logger = logging.getLogger(__name__)

REPORT = "report.html"
TEMPLATE = Path(__file__).with_name("report.html.jinja")

MAX_ERRORS_SHOWN = 50
"""Maximum number of unreadable shards and pictures on the page."""

DISTANCES = {"near": "nearest to the threshold", "far": "farthest from it"}
"""Examples are chosen by their distance from the threshold."""

KIND_NAMES = {"web": "Web texts", "synthetic": "Synthetic captions"}


def report(arguments: CapFiltArguments, source: Source) -> None:
    """Combine the counts of all shards, write the results, and print where they are.

    Raises:
        RecipeError: No shard could be read.
    """
    output_dir = Path(arguments.output_dir)
    notes = [read_note(output_dir, shard) for shard in source.shards]
    totals = add_counts(notes)
    if not totals["shards"]:
        raise RecipeError(
            f"None of the {len(notes):,} shards of {arguments.dataset_name} can be read; the first: {notes[0]['fault']}"
        )
    write_json(output_dir / "all_results.json", totals)
    write_atomically(output_dir / REPORT, render(arguments, notes, totals).encode())
    for kind in KINDS:
        logger.info(
            "%s: %s of %s kept (%.1f%%)",
            KIND_NAMES[kind],
            f"{totals[f'{kind}_kept']:,}",
            f"{totals[f'{kind}_judged']:,}",
            100 * totals[f"{kind}_kept_rate"],
        )
    print(f"{totals['images_kept']:,} of {totals['images']:,} pictures have a text that matches: {output_dir / DATA}")
    print(f"Look through {output_dir / REPORT}; train with --dataset_name {output_dir / DATA}")


def render(arguments: CapFiltArguments, notes: Sequence[Mapping[str, Any]], totals: Mapping[str, Any]) -> str:
    """Render the page."""
    done = [note for note in notes if "images" in note]
    skipped = chain.from_iterable(
        ({"where": f"{note['shard']}, row {each['row']}", "reason": each["reason"]} for each in note["skipped"])
        for note in done
    )
    unreadable = ({"where": note["shard"], "reason": note["fault"]} for note in notes if "fault" in note)
    facts = {
        "arguments": arguments,
        "totals": totals,
        "kinds": [
            {
                "name": KIND_NAMES[kind],
                "judged": totals[f"{kind}_judged"],
                "kept": totals[f"{kind}_kept"],
                "rate": totals[f"{kind}_kept_rate"],
                "chart": histogram(kind, [note[kind]["histogram"] for note in done], arguments.filter_threshold),
            }
            for kind in KINDS
        ],
        "sorts": [
            {
                "title": f"{KIND_NAMES[kind]} that were {fate}, {title}",
                "examples": choose_examples(done, f"{kind} {fate} {where}", arguments.filter_threshold),
            }
            for kind, fate, (where, title) in product(KINDS, ("kept", "dropped"), DISTANCES.items())
        ],
        "faults": list(islice(chain(unreadable, skipped), MAX_ERRORS_SHOWN)),
        "faults_in_all": totals["shards_unreadable"] + totals["images_skipped"],
    }
    return render_page(TEMPLATE, facts, styles=("page.css", "examples.css"))


def histogram(kind: str, histograms: Iterable[Sequence[int]], threshold: float) -> Histogram:
    """The histogram of the scores from 0 to 1 of all shards, with a line at the threshold."""
    counts = [sum(column) for column in zip(*histograms, strict=True)]
    series = Series("", counts, lambda score: "kept" if score >= threshold else "dropped")
    return build_histogram(f"Histogram of scores: {KIND_NAMES[kind]}", [series], mark=threshold)


def choose_examples(notes: Iterable[Mapping[str, Any]], sort: str, threshold: float) -> list[dict[str, Any]]:
    """Choose the examples of a sort from all shards, nearest to the threshold first, or farthest first."""
    found = ({"shard": note["shard"], **each} for note in notes for each in note["examples"].get(sort, ()))
    choose = heapq.nsmallest if sort.endswith("near") else heapq.nlargest
    return choose(EXAMPLES_PER_SORT, found, key=lambda each: abs(each["score"] - threshold))
