"""CapFilt: clean a web data set with a captioner and a filter.

python -m blip_recipe.capfilt recipes/capfilt_web.json --dataset_name path/to/shards
accelerate launch -m blip_recipe.capfilt recipes/capfilt_web.json --dataset_name path/to/shards
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_recipe.capfilt.arguments import PROG, CapFiltArguments, read_arguments
from blip_recipe.errors import RecipeError, SaveError, run_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerate import PartialState

    from blip_recipe.capfilt.judging import Judge
    from blip_recipe.capfilt.source import Shard, Source

logger = logging.getLogger("blip_recipe.capfilt")


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """List the shards, clean those of this process, and report on all of them."""
    arguments = read_arguments(argv, prog)

    from blip_recipe.capfilt.judging import Judge
    from blip_recipe.capfilt.report import report
    from blip_recipe.capfilt.run import claim_output_dir
    from blip_recipe.capfilt.source import Source

    state = start_process()
    source = Source(arguments.data_arguments(), arguments.max_samples)
    if state.is_main_process:
        claim_output_dir(arguments, source)
    mine = assign_shards(state, arguments, source)
    if mine:
        judge_shards(mine, source, Judge(arguments, state.device), arguments)
    state.wait_for_everyone()
    if state.is_main_process:
        report(arguments, source)


def start_process() -> PartialState:
    """Join the other processes; logs go to stderr, in full from the first process."""
    from datetime import timedelta

    import datasets
    import torch
    import transformers
    from accelerate import PartialState

    # Processes wait for one another only at the end, and one may have days of work more than another.
    options = {"timeout": timedelta(days=365)}
    state = PartialState(cpu=not torch.accelerator.is_available(), **options)
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("blip_recipe").setLevel(logging.INFO if state.is_main_process else logging.WARNING)
    transformers.utils.logging.set_verbosity_warning()
    datasets.utils.logging.set_verbosity_warning()
    return state


def assign_shards(state: PartialState, arguments: CapFiltArguments, source: Source) -> list[Shard]:
    """The shards of this process: every n-th of those that are not finished."""
    from accelerate.utils import broadcast_object_list

    from blip_recipe.capfilt.run import find_pending

    output_dir = Path(arguments.output_dir)
    # One process lists them for all: others may finish shards before the last has looked.
    pending = broadcast_object_list([find_pending(output_dir, source.shards) if state.is_main_process else None])[0]
    logger.info(
        "%d of %d shards are left, shared by %d processes.", len(pending), len(source.shards), state.num_processes
    )
    return pending[state.process_index :: state.num_processes]


def judge_shards(shards: Sequence[Shard], source: Source, judge: Judge, arguments: CapFiltArguments) -> None:
    """Clean `shards` one after the other; the note that marks a shard as finished is written last.

    Raises:
        RecipeError: A picture or a shard cannot be read, and `on_bad_image` is `fail`.
        SaveError: The disk is full.
    """
    from tqdm import tqdm

    from blip_recipe.capfilt.judging import KINDS
    from blip_recipe.capfilt.run import write_fault, write_note
    from blip_recipe.capfilt.source import BadShardError

    output_dir = Path(arguments.output_dir)
    is_first = int(os.environ.get("RANK", 0)) == 0
    with tqdm(unit="image", mininterval=1, file=sys.stderr, disable=not is_first) as bar:
        for number, shard in enumerate(shards, 1):
            bar.set_description(f"Shard {number}/{len(shards)}")
            try:
                note = judge_shard(shard, source, judge, arguments, bar)
            except BadShardError as error:
                if arguments.on_bad_image == "fail":
                    raise RecipeError(f"{error}\n{ADVICE}") from error
                logger.warning("Left out %s: %s", shard.name, error)
                write_fault(output_dir, shard, source, str(error))
            except OSError as error:
                # Errors while reading are `BadShardError`s.
                raise SaveError(
                    f"{shard.name} could not be written to {output_dir}: {error}. The finished shards are complete: "
                    "make room and run the same command again to resume."
                ) from error
            else:
                write_note(output_dir, shard, note)
                rates = [f"{note[kind]['kept']:,} of {note[kind]['judged']:,} {kind}" for kind in KINDS]
                logger.info("%s: kept %s texts", shard.name, ", ".join(rates))


ADVICE = (
    "Repair it, or set on_bad_image to 'skip' to leave it out. Run the same command again to resume with the shards "
    "that are not finished."
)


def judge_shard(shard: Shard, source: Source, judge: Judge, arguments: CapFiltArguments, bar: Any) -> dict[str, Any]:
    """Judge and write the images of a shard.

    Returns:
        The counts of the shard.

    Raises:
        BadShardError: The shard cannot be read.
        RecipeError: A picture cannot be read, and `on_bad_image` is `fail`.
    """
    from blip_recipe.capfilt.judging import BadImage
    from blip_recipe.capfilt.shard_output import write_shard
    from blip_recipe.capfilt.tally import Tally

    tally = Tally(arguments.filter_threshold, len(source.shards))
    rows = source.open(shard)
    with write_shard(Path(arguments.output_dir), shard, source.kind) as output:
        for image in judge.judge(rows, source.read(shard, rows)):
            if isinstance(image, BadImage):
                where = f"{shard.name}, row {image.row}"
                if arguments.on_bad_image == "fail":
                    raise RecipeError(f"{where} cannot be used: {image.fault}\n{ADVICE}")
                logger.warning("Skipped %s: %s", where, image.fault)
                tally.skipped.append(image)
            else:
                output.write(image)
                tally.count(image)
            bar.update()
    return tally.note()


if __name__ == "__main__":
    run_command(main)
