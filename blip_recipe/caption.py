"""Caption files, folders and URLs with a trained BLIP, one line for each picture, or a data set, in a new column.

python -m blip_recipe.caption outputs/my_captioner photos/ --output captions.jsonl
find photos -name '*.jpg' | python -m blip_recipe.caption lab/my-captioner - --sidecar
python -m blip_recipe.caption lab/my-captioner --dataset_name lab/photos --output captioned --push_to_hub lab/captioned
accelerate launch -m blip_recipe.caption outputs/my_captioner photos/ --output captions.jsonl
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_recipe.captioning.output import (
    Finished,
    LineFormat,
    Sidecars,
    find_parts,
    merge_lines,
    open_output,
    part_path,
    sidecar_path,
    write_line,
)
from blip_recipe.captioning.processes import Processes, join_processes
from blip_recipe.data.listing import check_places, list_images, printable
from blip_recipe.errors import RecipeError, run_command
from blip_recipe.recipe.caption_options import (
    PROG,
    added_fields,
    build_parser,
    card_options,
    check_caption_options,
    data_arguments,
    generate_options,
    line_format,
    run_settings,
)
from blip_recipe.recipe.command_line import check_exported, load_options
from blip_recipe.runtime.record import is_exported

if TYPE_CHECKING:
    from blip_recipe.captioning.pipeline import ImageToTextPipeline
    from blip_recipe.captioning.writing import CaptionMatcher, CaptionWriter
    from blip_recipe.runtime.captioner import ExportedCaptioner


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Caption the pictures in the order of the input, or the rows of a data set."""
    with exit_on_interrupt():
        arguments = build_parser(prog).parse_intermixed_args(argv)  # PATH may follow an option
        check_caption_options(arguments)
        if arguments.dataset_name:
            caption_dataset(arguments)
        else:
            caption_pictures(arguments)


def caption_pictures(arguments: argparse.Namespace) -> None:
    """List, read and caption the pictures, and write a line for each."""
    if "-" in arguments.paths:
        # A file name need not be UTF-8, and may hold a carriage return.
        sys.stdin.reconfigure(errors="surrogateescape", newline="\n")  # type: ignore[union-attr]
    check_places(arguments.paths)
    processes = join_processes(arguments.device)
    output: Path | None = arguments.output
    if processes.count > 1 and output is None:
        raise RecipeError("There are several processes and no --output: name the file that has the lines of all.")
    lines = line_format(arguments)
    finished = resume(output, lines) if output and processes.is_main else Finished(set(), set())
    names, total = list_pending(arguments, finished.captioned, processes)
    if processes.broadcast(total) == 0:
        print("There is nothing to caption: there are no pictures, or all of them have captions.", file=sys.stderr)
        return

    from tqdm import tqdm

    arguments.device = processes.device
    writer = load_writer(arguments)
    sidecars = Sidecars(arguments.overwrite_sidecars, arguments.append, arguments.separator or ", ")
    own = part_path(output, processes.rank) if output and processes.count > 1 else output
    written = writer.write_all(((name, name) for name in names), arguments.batch_size, total)
    with (
        open_output(own, lines) as file,
        tqdm(total=total, unit="image", mininterval=1, disable=not processes.is_main) as bar,
    ):
        for row in to_rows(written):
            if "error" in row:
                bar.write(printable(f"not captioned: {row['error']}"), file=sys.stderr)
            elif arguments.sidecar and (reason := sidecars.write(row["image"], row["caption"])):
                bar.write(printable(f"no .txt for {row['image']}: {reason}"), file=sys.stderr)
            write_line(file, row, lines)
            bar.update()
    processes.wait()
    if output and processes.is_main and (finished.failed or processes.count > 1):
        merge_lines(output, lines, find_parts(output))


def resume(output: Path, lines: LineFormat) -> Finished:
    """Read the pictures of earlier runs, and say how many there are."""
    finished = merge_lines(output, lines, find_parts(output))
    if finished.captioned:
        print(
            f"Pictures already in {output}: {len(finished.captioned):,}. Their lines stay as they are.", file=sys.stderr
        )
    if finished.failed:
        print(f"Pictures that failed before: {len(finished.failed):,}. They are tried again.", file=sys.stderr)
    return finished


def list_pending(
    arguments: argparse.Namespace, captioned: set[str], processes: Processes
) -> tuple[Iterable[str], int | None]:
    """The names of the pictures of this process, and their number; None if it is not known before the end."""
    if processes.count > 1:
        # One process lists them for all: standard input can be read once, and folders may change.
        pending = list(images_to_caption(arguments, captioned)) if processes.is_main else []
        names = processes.share(processes.broadcast(pending))
        return names, len(names)
    if "-" in arguments.paths:
        return images_to_caption(arguments, captioned), None
    kept: list[str] = []
    total = sum(1 for _ in images_to_caption(arguments, set(captioned), kept))
    if kept:
        print(
            f"Pictures that have a .txt already: {len(kept):,}, such as {printable(kept[0])}. They are left out; "
            "--overwrite_sidecars replaces their texts.",
            file=sys.stderr,
        )
    return images_to_caption(arguments, captioned), total


def images_to_caption(
    arguments: argparse.Namespace, captioned: set[str], kept: list[str] | None = None
) -> Iterator[str]:
    """Names of the pictures without a caption in `--output`, or without a sidecar if only sidecars are asked for.

    Args:
        arguments: The command line.
        captioned: The names in `--output`; each new one is added.
        kept: Gets the names of the pictures that have a sidecar, if only sidecars are asked for.
    """
    keep_sidecars = arguments.sidecar and not (arguments.overwrite_sidecars or arguments.append)
    for name in list_images(arguments.paths, sys.stdin):
        if arguments.output:
            if name not in captioned:
                captioned.add(name)
                yield name
        elif keep_sidecars and os.path.exists(sidecar_path(name)):  # noqa: PTH110 - pathlib raises for some names
            if kept is not None:
                kept.append(name)
        else:
            yield name


def to_rows(written: Iterable[tuple[str, dict[str, Any] | Exception]]) -> Iterator[dict[str, Any]]:
    """A row `{"image", "caption", ...}` or `{"image", "error"}` for each picture."""
    for name, fields in written:
        if isinstance(fields, Exception):
            error = str(fields) or type(fields).__name__
            yield {"image": name, "error": error if name in error else f"{name}: {error}"}
        else:
            yield {"image": name, **fields}


def caption_dataset(arguments: argparse.Namespace) -> None:
    """Write the data set with a column of captions, shard by shard, and push it if asked."""
    if arguments.output is None:
        raise RecipeError("--output is missing: name the directory of the new data set.")

    from tqdm import tqdm

    from blip_recipe.captioning.table import SHARD_ROWS, CaptionedTable, preflight_dataset, read_source

    processes = join_processes(arguments.device)
    repository = None
    if arguments.push_to_hub and processes.is_main:
        repository = preflight_dataset(arguments.push_to_hub, arguments.private or None)
    table = CaptionedTable(
        read_source(data_arguments(arguments)),
        arguments.output,
        arguments.caption_column_name or "caption",
        ["caption", *added_fields(arguments)],
        arguments.shard_rows or SHARD_ROWS,
    )
    settings = run_settings(arguments)
    if processes.is_main:
        table.check(settings, overwrite_column=arguments.overwrite_column)
    pending = processes.broadcast(table.find_pending() if processes.is_main else [])
    if pending:
        arguments.device = processes.device
        writer = load_writer(arguments)
        if processes.is_main:
            table.claim(settings)
        processes.wait()
        with tqdm(unit="image", mininterval=1, disable=not processes.is_main) as bar:
            for shard in processes.share(pending):
                table.write_shard(shard, writer, arguments.batch_size, bar)
    processes.wait()
    if processes.is_main:
        table.write_card(arguments.model, card_options(arguments))
        rows, missing = len(table.source.rows), table.count_missing()
        print(f"{rows - missing:,} of {rows:,} rows of {table.directory} have a caption.", file=sys.stderr)
        if repository:
            print(table.push(repository, private=arguments.private or None).url)


def load_writer(arguments: argparse.Namespace) -> CaptionWriter:
    """Load the captioner, and the matcher if there is one, with the decoding options of the command line.

    Raises:
        RecipeError: A model cannot be loaded, or the decoding does not fit the model or its prompt.
    """
    from blip_recipe.captioning.writing import CaptionWriter

    pipeline: ImageToTextPipeline | ExportedCaptioner
    if check_exported(arguments):
        from blip_recipe.runtime.captioner import ExportedCaptioner

        pipeline = ExportedCaptioner.load(arguments.model, **generate_options(arguments))
    else:
        from blip_recipe.captioning.pipeline import caption_pipeline

        pipeline = caption_pipeline(arguments.model, **load_options(arguments), **generate_options(arguments))
    pipeline.check_decoding()
    matcher = load_matcher(arguments) if arguments.match else None
    return CaptionWriter(pipeline, arguments.scores, matcher, arguments.prefix, arguments.suffix)


def load_matcher(arguments: argparse.Namespace) -> CaptionMatcher:
    """Load the model that chooses among captions, exported or not.

    Raises:
        RecipeError: It cannot be loaded.
    """
    if is_exported(arguments.match):
        from blip_recipe.runtime.matcher import ExportedMatcher

        return ExportedMatcher.load(arguments.match)

    from blip_recipe.models.matching import Matcher

    try:
        return Matcher.load(arguments.match, **load_options(arguments) | {"revision": None})
    except RecipeError as error:
        raise RecipeError(str(error).replace("model_name_or_path", "--match", 1)) from error


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Exit at once on Ctrl+C: the written lines are complete, and threads may wait a long time for a server."""

    def exit_now(*_: object) -> None:
        os.write(sys.stderr.fileno(), b"\nerror: interrupted; with --output, run the same command again to resume\n")
        os._exit(130)

    is_main = threading.current_thread() is threading.main_thread()  # others may not change handlers
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, exit_now)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    run_command(main)
