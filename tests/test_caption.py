"""`python -m blip_recipe.caption`: what it captions, what it writes, and that it can be killed."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from captioners import draw_pictures, save_adapter, save_captioner
from commands import CHECKOUT, ranks, run_module, start_module
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.captioning import watch
from blip_recipe import caption_pipeline
from blip_recipe.caption import main
from blip_recipe.captioning.output import LineFormat, merge_lines, part_path, write_line
from blip_recipe.data.listing import list_folder, read_ahead
from blip_recipe.errors import RecipeError
from blip_recipe.models.decoding import DecodingSettings, decoding_arguments
from blip_recipe.recipe.caption_options import build_parser, generate_options

Caption = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_captioner(tmp_path_factory.mktemp("captioner"), generation_max_length=8, generation_num_beams=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw_pictures(tmp_path / "photos", 5)
    return tmp_path / "photos"


@pytest.fixture
def caption(captioner: Path, monkeypatch: pytest.MonkeyPatch) -> Caption:
    """Run the command on arguments and standard input; gives the rows on its standard output."""

    def run(*arguments: str | Path, stdin: bytes = b"", model: Path = captioner) -> list[dict[str, Any]]:
        command = ["caption", str(model), "--device", "cpu", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        stdout = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stdout))
        main()
        return rows_of(stdout.getvalue())

    return run


def rows_of(content: bytes) -> list[dict[str, Any]]:
    assert content == b"" or content.endswith(b"\n")
    return [json.loads(line) for line in content.splitlines()]


def names_of(rows: list[dict[str, Any]]) -> list[str]:
    return [row["image"] for row in rows]


def test_each_picture_gets_the_caption_of_the_pipeline_in_the_order_of_the_input(
    caption: Caption, captioner: Path, folder: Path
) -> None:
    paths = [str(path) for path in sorted(folder.iterdir(), reverse=True)]
    rows = caption(*paths, "--batch_size", "2")
    results = caption_pipeline(captioner, device="cpu")(paths)
    assert rows == [
        {"image": path, "caption": result[0]["generated_text"]} for path, result in zip(paths, results, strict=True)
    ]
    assert len({row["caption"] for row in rows}) > 1, "the test needs captions that differ"


def test_folders_are_searched_for_pictures_and_files_are_always_tried(caption: Caption, folder: Path) -> None:
    one = (folder / "0000.png").read_bytes()
    for name in ("b/deep/UPPER.PNG", ".hidden.png", ".git/no.png", "notes.txt", "b/metadata.jsonl", "odd.dat"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(one)
    found = [str(folder / f"{number:04}.png") for number in range(5)] + [str(folder / "b" / "deep" / "UPPER.PNG")]
    assert names_of(caption(folder / "**" / "*.PNG")) == [found[-1]]
    (folder / "b" / "deep" / "round").symlink_to(folder)
    assert names_of(caption(folder)) == found
    explicit = [str(folder / ".hidden.png"), str(folder / "odd.dat")]
    assert [set(row) for row in caption(*explicit)] == [{"image", "caption"}] * 2
    assert names_of(caption(folder / "000[13].png")) == [found[1], found[3]]


def test_names_come_from_standard_input_too(caption: Caption, folder: Path) -> None:
    stdin = f"{folder}/0003.png\n\n{folder}/0001.png\n".encode()
    assert names_of(caption("-", stdin=stdin)) == [f"{folder}/0003.png", f"{folder}/0001.png"]


def test_pictures_are_fetched_from_addresses(caption: Caption, folder: Path) -> None:
    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        rows = caption(f"{address}/0002.png", f"{address}/none.png", folder / "0002.png", "--sidecar")
        server.shutdown()
    assert names_of(rows) == [f"{address}/0002.png", f"{address}/none.png", str(folder / "0002.png")]
    assert rows[0]["caption"] == rows[2]["caption"]
    assert "404" in rows[1]["error"]


def test_names_are_data(caption: Caption, folder: Path, tmp_path: Path) -> None:
    names = [
        "*.png",
        "[0].png",
        "$(touch x).png",
        "a\nb.png",
        "-x.png",
        "ü ✓.png",
        "'\",.png",
        os.fsdecode(b"\xff.png"),
    ]
    (tmp_path / "odd").mkdir()
    for name in names:
        shutil.copy(folder / "0000.png", tmp_path / "odd" / name)
    for explicit in (True, False):
        rows = caption(*([tmp_path / "odd" / name for name in names] if explicit else [tmp_path / "odd"]))
        assert sorted(names_of(rows)) == sorted(str(tmp_path / "odd" / name) for name in names)
        assert all("caption" in row for row in rows)
    table = tmp_path / "captions.csv"
    caption(tmp_path / "odd", "--output", table)
    with table.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        written = list(csv.DictReader(file))
    assert [(row["image"], row["caption"], row["error"]) for row in written] == [
        (row["image"], row["caption"], "") for row in rows
    ]
    before = table.read_bytes()
    caption(tmp_path / "odd", "--output", table)
    assert table.read_bytes() == before, "names of several lines are not found again"


def test_a_bad_file_is_one_line_and_not_the_end(captioner: Path, folder: Path) -> None:
    (folder / "0001.png").write_bytes(b"no picture")
    (folder / "0002.png").write_bytes(b"")
    content = (folder / "0003.png").read_bytes()
    (folder / "0003.png").write_bytes(content[: len(content) // 2])
    done = run_module("blip_recipe.caption", captioner, folder, "none.png", "nul\\*.png", "--device", "cpu")
    assert done.returncode == 0
    rows = rows_of(done.stdout.encode())
    good = [row["image"] for row in rows if "caption" in row]
    bad = [row["image"] for row in rows if "error" in row]
    assert good == [str(folder / "0000.png"), str(folder / "0004.png")]
    assert bad == [*(str(folder / f"{number:04}.png") for number in (1, 2, 3)), "none.png", "nul\\*.png"]
    assert all(name in done.stderr for name in bad)
    assert "7/7" in done.stderr
    assert "Traceback" not in done.stderr


def test_odd_files_of_the_world_are_captioned_or_named(caption: Caption, shared: Path) -> None:
    rows = {Path(row["image"]).name: row for row in caption(shared / "data" / "weird")}
    assert "caption" in rows["bomb_warning_10000x10000.png"]
    bad = {name for name, row in rows.items() if "error" in row}
    assert bad == {"bomb_20000x20000.png", "header_only.jpg", "text_named.jpg", "truncated.jpg", "zero_byte.jpg"}
    assert len(rows) == 23


def test_a_killed_run_goes_on_without_a_line_twice_or_missing(captioner: Path, tmp_path: Path) -> None:
    paths = draw_pictures(tmp_path / "photos", 250, size=20)
    output = tmp_path / "captions.jsonl"
    command = [sys.executable, "-m", "blip_recipe.caption", str(captioner), str(tmp_path / "photos")]
    command += ["--batch_size", "2", "--device", "cpu", "--sidecar"]
    watch(command, output, kill_at=20)
    finished = output.read_bytes()
    assert 20 <= finished.count(b"\n") < 250, "the test needs a run that is killed half-way"
    output.write_bytes(finished + b'{"image": "' + bytes(paths[-1])[:-3])
    watch(command, output)
    assert output.read_bytes().startswith(finished)
    rows = rows_of(output.read_bytes())
    assert names_of(rows) == [str(path) for path in paths]
    assert [path.with_suffix(".txt").read_text() for path in paths] == [row["caption"] + "\n" for row in rows]


def test_a_finished_file_stays_as_it_is_and_repeated_names_get_one_line(caption: Caption, folder: Path) -> None:
    output = folder / "out.jsonl"
    assert caption(folder, folder / "0000.png", "--output", output) == []
    before = output.read_bytes()
    assert len(before.splitlines()) == 5
    caption(folder, "--output", output)
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("other.jsonl", '{"image_id": 3}\n'),
        ("other.jsonl", "image,caption,error\r\na.png,text,\r\n"),
        ("other.jsonl", "[1]\n"),
        ("one_line.json", '{"images": [], "annotations": []}'),
        ("note.txt", "not to be lost"),
        ("other.csv", "id,text,source\r\n1,2,3\r\n"),
        ("one_line.csv", "id,text,source"),
    ],
)
def test_another_file_is_not_touched(caption: Caption, folder: Path, tmp_path: Path, name: str, content: str) -> None:
    output = tmp_path / name
    output.write_bytes(content.encode())
    with pytest.raises(RecipeError, match="line 1"):
        caption(folder, "--output", output)
    assert output.read_bytes() == content.encode()


def test_a_torn_first_line_is_written_again(caption: Caption, folder: Path, tmp_path: Path) -> None:
    for name, torn in {"a.jsonl": b'{"image": "pho', "b.jsonl": b"{", "c.csv": b"image,cap"}.items():
        output = tmp_path / name
        output.write_bytes(torn)
        caption(folder, "--output", output)
        assert len(output.read_bytes().splitlines()) == 5 + name.endswith("csv")


def test_what_cannot_hold_lines_is_refused_or_named(caption: Caption, folder: Path, tmp_path: Path) -> None:
    for output in (tmp_path, tmp_path / "no_folder" / "out.jsonl"):
        with pytest.raises(RecipeError, match=f"--output {output} cannot"):
            caption(folder, "--output", output)
    caption(folder, "--output", "/dev/null")
    if Path("/dev/full").exists():
        with pytest.raises(SystemExit, match=r"cannot write to /dev/full.*No space left"):
            caption(folder, "--output", "/dev/full")


def test_a_second_model_adds_to_the_lines_of_the_first(
    caption: Caption, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    caption(folder / "0000.png", "--output", output)
    first = output.read_bytes()
    other = save_captioner(tmp_path / "other", seed=5, generation_max_length=14, generation_min_length=14)
    caption(folder, "--output", output, model=other)
    assert output.read_bytes().startswith(first)
    assert names_of(rows_of(output.read_bytes())) == [str(folder / f"{number:04}.png") for number in range(5)]
    assert "out.jsonl: 1. Their lines stay as they are." in capfd.readouterr().err


row_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(names=st.lists(row_text, min_size=1, max_size=4, unique=True), caption_text=row_text, data=st.data())
@pytest.mark.parametrize("row_format", ["jsonl", "csv"])
def test_a_file_cut_anywhere_keeps_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, row_format: str, names: list[str], caption_text: str, data: st.DataObject
) -> None:
    path, lines = tmp_path_factory.mktemp("cut") / "out", LineFormat(row_format)
    ends = [0]
    with path.open("wb") as file:
        if row_format == "csv":
            file.write(lines.header)
            ends.append(file.tell())
        for name in names:
            write_line(file, {"image": name, "caption": caption_text}, lines)
            ends.append(file.tell())
    cut = data.draw(st.integers(0, ends[-1]))
    os.truncate(path, cut)
    whole = max(number for number, end in enumerate(ends) if end <= cut)
    assert merge_lines(path, lines).captioned == set(names[: max(0, whole - (row_format == "csv"))])
    assert path.stat().st_size == ends[whole]


line_kinds = st.tuples(st.sampled_from("abc"), st.booleans())


@given(written=st.lists(line_kinds, max_size=8), parts=st.lists(st.lists(line_kinds, max_size=4), max_size=3))
@pytest.mark.parametrize("row_format", ["jsonl", "csv"])
def test_merged_lines_are_one_for_each_picture(
    tmp_path_factory: pytest.TempPathFactory,
    row_format: str,
    written: list[tuple[str, bool]],
    parts: list[list[tuple[str, bool]]],
) -> None:
    """The first caption wins, else the last error, in the place of the first line."""
    path, lines = tmp_path_factory.mktemp("merged") / "out", LineFormat(row_format)
    count = itertools.count()

    def write(to: Path, pictures: list[tuple[str, bool]]) -> list[dict[str, str]]:
        rows = [{"image": name, "error" if failed else "caption": f"{next(count)}"} for name, failed in pictures]
        to.write_bytes(lines.header + b"".join(map(lines.encode, rows)))
        return rows

    rows = write(path, written)
    of_parts = [write(part_path(path, rank), pictures) for rank, pictures in enumerate(parts)]
    rows += [row for turn in itertools.zip_longest(*of_parts) for row in turn if row]
    expected: dict[str, dict[str, str]] = {}
    for row in rows:
        if "error" in expected.get(row["image"], {"error": ""}):
            expected[row["image"]] = row
    found = merge_lines(path, lines, [part_path(path, rank) for rank in range(len(parts))])
    assert path.read_bytes() == lines.header + b"".join(map(lines.encode, expected.values()))
    assert found.captioned == {name for name, row in expected.items() if "caption" in row}
    assert found.failed == expected.keys() - found.captioned
    assert [each.name for each in path.parent.iterdir()] == ["out"]


class Reluctant(SimpleHTTPRequestHandler):
    """A server that answers 503 as long as `is_busy`."""

    is_busy = True

    def do_GET(self) -> None:
        """Send the file, or 503."""
        if type(self).is_busy:
            self.send_error(503)
        else:
            super().do_GET()


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_failed_pictures_are_tried_again(
    caption: Caption,
    folder: Path,
    tmp_path: Path,
    name: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("blip_recipe.data.downloads.PAUSE", 0.01)

    class Handler(Reluctant):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

    whole = {number: (folder / f"{number:04}.png").read_bytes() for number in (1, 3)}
    for number in whole:
        (folder / f"{number:04}.png").write_bytes(b"no picture")
    output, fresh = tmp_path / name, tmp_path / f"fresh_{name}"
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        paths = [folder, f"http://127.0.0.1:{server.server_address[1]}/0000.png"]
        caption(*paths, "--output", output)
        first = output.read_bytes().splitlines()
        assert b"503" in first[-1]
        # Nothing has changed: the same errors again, in their places.
        caption(*paths, "--output", output)
        assert output.read_bytes().splitlines() == first
        Handler.is_busy = False
        (folder / "0001.png").write_bytes(whole[1])
        caption(*paths, "--output", output)
        assert "failed before: 3. They are tried again." in capfd.readouterr().err
        caption(*paths, "--output", fresh)
        server.shutdown()
    assert output.read_bytes() == fresh.read_bytes()
    again = output.read_bytes().splitlines()
    assert [before == after for before, after in zip(first, again, strict=True)].count(False) == 2
    assert b"0003.png" in again[3 + name.endswith("csv")]


def test_a_run_that_is_killed_while_it_tries_again_loses_no_line(
    caption: Caption, captioner: Path, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    whole = (folder / "0002.png").read_bytes()
    (folder / "0002.png").write_bytes(b"no picture")
    caption(folder, "--output", output)
    before = output.read_bytes()
    (folder / "0002.png").write_bytes(whole)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/picture.png"
        words = (captioner, folder, address, "--output", output, "--batch_size", "1", "--device", "cpu")
        process = start_module("blip_recipe.caption", *words, log=tmp_path / "log")
        deadline = time.monotonic() + 120
        while output.read_bytes().count(b"\n") < 6 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    killed = output.read_bytes()
    assert killed.startswith(before)
    assert names_of(rows_of(killed))[5:] == [str(folder / "0002.png")]
    caption(folder, "--output", output)
    assert rows_of(output.read_bytes()) == caption(folder)


def test_a_place_that_does_not_exist_ends_the_command_before_the_model_is_loaded(
    caption: Caption, folder: Path, tmp_path: Path
) -> None:
    for place, hint in {
        folder.with_name("photso"): f"Did you mean {folder}",
        folder / "*.jpg": "Expected a file, a folder",
        tmp_path / "none" / "0000.png": "Expected a file, a folder",
    }.items():
        with pytest.raises(RecipeError, match=f"{re.escape(str(place))}' does not exist.*{hint}"):
            caption(place, "--output", tmp_path / "out.jsonl", model=tmp_path / "no model")
    with pytest.raises(RecipeError, match="does not exist, nor do the 2 others"):
        caption("a.png", "b.png", "c", model=tmp_path / "no model")
    assert not (tmp_path / "out.jsonl").exists()
    rows = caption("none.png", folder / "0000.png")
    assert [set(row) for row in rows] == [{"image", "error"}, {"image", "caption"}]
    assert [set(row) for row in caption("-", stdin=b"none.png\n")] == [{"image", "error"}]


def test_several_processes_write_what_one_writes(captioner: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "0002.png").write_bytes(b"no picture")
    outputs = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for processes, output in enumerate(outputs, start=1):
        words = (captioner, folder, "--output", output, "--device", "cpu", "--sidecar")
        done = run_module("blip_recipe.caption", *words, processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(list(folder.glob("*.txt"))) == 4
        for text in folder.glob("*.txt"):
            text.unlink()
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert sorted(tmp_path.glob("two*")) == [outputs[1]]
    refused = run_module("blip_recipe.caption", captioner, folder, "--device", "cpu", processes=2)
    assert refused.returncode == 2
    assert "There are several processes and no --output" in refused.stderr


def test_processes_that_are_killed_lose_no_line(
    caption: Caption, captioner: Path, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    parts = [part_path(output, rank) for rank in range(2)]
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/picture.png"
        words = (captioner, folder, address, "--output", output, "--batch_size", "1", "--device", "cpu")
        started = [
            start_module("blip_recipe.caption", *words, env=rank, log=tmp_path / f"log{number}")
            for number, rank in enumerate(ranks(2))
        ]
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and all(process.poll() is None for process in started):
            if sum(part.read_bytes().count(b"\n") for part in parts if part.exists()) == 5:
                break
            time.sleep(0.01)
        for process in started:
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=60)
    assert [part.read_bytes().count(b"\n") for part in parts] == [3, 2]
    assert not output.exists()
    caption(folder, "--output", output)
    assert rows_of(output.read_bytes()) == caption(folder)
    assert not any(part.exists() for part in parts)


def test_the_lines_of_killed_processes_are_joined_by_the_next_run(
    caption: Caption, folder: Path, tmp_path: Path
) -> None:
    expected = caption(folder)
    output, lines = tmp_path / "out.jsonl", LineFormat("jsonl")
    # The first line is of an earlier run; process 0 has two of its three pictures, process 1 one and a torn line.
    output.write_bytes(lines.encode(expected[0]))
    part_path(output, 0).write_bytes(lines.encode(expected[1]) + lines.encode(expected[3]))
    part_path(output, 1).write_bytes(lines.encode(expected[2]) + lines.encode(expected[4])[:-9])
    caption(folder, "--output", output)
    assert rows_of(output.read_bytes()) == expected
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.jsonl"]


def test_a_sidecar_stands_beside_each_picture_and_texts_of_others_are_kept(
    caption: Caption, folder: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (folder / "0001.txt").write_text("by hand\n")
    rows = caption(folder, "--sidecar")
    assert b"have a .txt already: 1, such as %b" % bytes(folder / "0001.png") in capfdbinary.readouterr().err
    assert names_of(rows) == [str(folder / f"{number:04}.png") for number in (0, 2, 3, 4)]
    assert [Path(row["image"]).with_suffix(".txt").read_text() for row in rows] == [
        row["caption"] + "\n" for row in rows
    ]
    assert (folder / "0001.txt").read_text() == "by hand\n"
    assert caption(folder, "--sidecar") == []
    caption(folder, "--sidecar", "--output", folder / "out.jsonl")
    assert (folder / "0001.txt").read_text() == "by hand\n"
    assert b"0001.png" in capfdbinary.readouterr().err
    rows = caption(folder, "--sidecar", "--overwrite_sidecars")
    assert (folder / "0001.txt").read_text() == rows[1]["caption"] + "\n" != "by hand\n"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_text_that_cannot_be_written_is_named_and_not_the_end(
    caption: Caption, folder: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (folder / ".0001.txt.part").mkdir()  # stands in the way for root too, whom no permission stops
    rows = caption(folder, "--sidecar")
    assert len(rows) == 5
    assert all("caption" in row for row in rows)
    assert not (folder / "0001.txt").exists()
    assert f"no .txt for {folder}/0001.png: Is a directory".encode() in capfdbinary.readouterr().err


def test_a_picture_is_never_its_own_text(caption: Caption, folder: Path) -> None:
    (folder / "0000.png").rename(folder / "picture.txt")
    content = (folder / "picture.txt").read_bytes()
    (row,) = caption(folder / "picture.txt", "--sidecar", "--overwrite_sidecars")
    assert (folder / "picture.txt").read_bytes() == content
    assert (folder / "picture.txt.txt").read_text() == row["caption"] + "\n"


def test_what_is_no_readable_file_is_one_line(caption: Caption, folder: Path) -> None:
    os.mkfifo(folder / "endless.png")
    (folder / "round.png").symlink_to("round.png")
    (folder / "removed.png").symlink_to("nothing.png")
    names = [str(folder / name) for name in ("endless.png", "removed.png", "round.png")]
    rows = caption(folder, "--sidecar")
    assert [row["image"] for row in rows if "error" in row] == names
    assert len(rows) == 8
    long = "x" * 5000 + ".png"
    odd = [long, "a\0b.png", "memory://no.png", "-leading dash.png"]
    assert [set(row) for row in caption("-", "--sidecar", stdin="\n".join(odd).encode())] == [{"image", "error"}] * 4
    assert list(list_folder(str(folder / "gone"))) == [str(folder / "gone")]


def test_there_is_nothing_to_load_where_there_is_nothing_to_caption(caption: Caption, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert caption(tmp_path / "empty", model=tmp_path / "no model") == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max_length", "5000"],
        ["--min_length", "9", "--max_length", "8"],
        ["--prompt", "a red square on a blue ground"],
        ["--device", "no device"],
    ],
)
def test_what_no_caption_can_keep_to_is_refused(
    caption: Caption, folder: Path, tmp_path: Path, arguments: list[str]
) -> None:
    with pytest.raises(RecipeError, match=r"^(max_length|device) is"):
        caption(folder, "--output", tmp_path / "out.jsonl", *arguments)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("option", ["--num_beams", "--batch_size", "--max_length"])
def test_counts_begin_at_one(caption: Caption, folder: Path, option: str) -> None:
    with pytest.raises(SystemExit) as ended:
        caption(folder, option, "0")
    assert ended.value.code == 2


def test_decoding_and_prompt_are_those_asked_for(caption: Caption, folder: Path) -> None:
    plain, long = caption(folder), caption(folder, "--max_length", "16", "--min_length", "16", "--num_beams", "2")
    assert all(len(a["caption"]) < len(b["caption"]) for a, b in zip(plain, long, strict=True))
    assert all(row["caption"].startswith("two green") for row in caption(folder, "--prompt", "two green"))


SAMPLED = ("--do_sample", "--temperature", "3", "--num_captions", "3")


def test_samples_depend_on_the_seed_and_the_picture_alone(caption: Caption, captioner: Path, folder: Path) -> None:
    rows = caption(folder, *SAMPLED, "--batch_size", "1")
    assert len({text for row in rows for text in row["captions"]}) > 5, "the test needs samples that differ"
    assert [row["caption"] for row in rows] == [row["captions"][0] for row in rows]
    assert caption(folder, *SAMPLED, "--batch_size", "4") == rows
    assert caption(*map(str, sorted(folder.iterdir(), reverse=True)), *SAMPLED) == rows[::-1]
    first = [row["caption"] for row in caption(folder, *SAMPLED[:3])]
    assert first == [row["caption"] for row in rows], "the first samples do not depend on their number"
    assert caption(folder, *SAMPLED, "--seed", "0") != rows
    pipe = caption_pipeline(captioner, device="cpu", do_sample=True, temperature=3.0, seed=42, num_return_sequences=3)
    results = pipe([row["image"] for row in rows], batch_size=2)
    assert [[each["generated_text"] for each in result] for result in results] == [row["captions"] for row in rows]


@pytest.mark.parametrize(
    "decoding",
    [
        {"repetition_penalty": 3.0},
        {"no_repeat_ngram_size": 1},
        {"num_beams": 4, "length_penalty": -9.0},
        {"do_sample": True, "top_k": 2, "seed": 1},
        {"do_sample": True, "top_p": 0.3, "temperature": 5.0, "seed": 1},
    ],
    ids=lambda decoding: "-".join(decoding),
)
def test_decoding_is_that_of_the_pipeline(
    caption: Caption, captioner: Path, folder: Path, decoding: dict[str, Any]
) -> None:
    options = [f"--{name}" if value is True else f"--{name}={value}" for name, value in decoding.items()]
    lengths = {"max_length": 14, "min_length": 0}
    rows = caption(folder, *options, *(f"--{name}={value}" for name, value in lengths.items()))
    pipe = caption_pipeline(captioner, device="cpu")
    plain = {name: value for name, value in decoding.items() if name == "num_beams"}
    written, usual = (
        [result[0]["generated_text"] for result in pipe([row["image"] for row in rows], **lengths, **asked)]
        for asked in (decoding, plain)
    )
    assert [row["caption"] for row in rows] == written
    assert written != usual, "the test needs decoding that matters"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "2"], "--temperature has an effect only with --do_sample"),
        (["--seed", "0"], "--seed has an effect only with --do_sample"),
        (["--append"], "--append has an effect only with --sidecar"),
        (["--sidecar", "--separator", "; "], "--separator has an effect only with --append"),
        (["--sidecar", "--append", "--overwrite_sidecars"], "contradict each other"),
        (["--do_sample", "--num_beams", "2"], "samples without beams"),
        (["--length_penalty", "2"], "there is one beam"),
        (["--early_stopping", "never"], "there is one beam"),
        (["--length_penalty_counts_prompt"], "there is one beam"),
        (["--do_sample", "--early_stopping", "never"], "contradict each other"),
        (["--num_captions", "3"], "there are 1 beams"),
        (["--split", "train"], "--split has an effect only with --dataset_name"),
        (["--dataset_name", "lab/photos"], "either PATH"),
        (["--match", "{model}"], "--match is .*BlipForConditionalGeneration"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_without_effect_are_refused(
    caption: Caption, captioner: Path, folder: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    options = [option.format(model=captioner) for option in options]
    with pytest.raises(RecipeError, match=message):
        caption(folder, "--output", tmp_path / "out.jsonl", *options)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    "option", ["--temperature=0", "--top_p=1.5", "--top_k=-1", "--seed=-1", "--num_captions=0", "--early_stopping=1"]
)
def test_values_out_of_range_are_refused(caption: Caption, folder: Path, option: str) -> None:
    with pytest.raises(SystemExit) as ended:
        caption(folder, "--do_sample", option)
    assert ended.value.code == 2


def test_the_best_beams_are_the_captions(caption: Caption, captioner: Path, folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "out.csv"
    options = ("--num_beams", "4", "--num_captions", "3", "--scores")
    rows = caption(folder, *options)
    results = caption_pipeline(captioner, device="cpu", num_beams=4, num_return_sequences=3)(names_of(rows))
    assert [row["captions"] for row in rows] == [[each["generated_text"] for each in result] for result in results]
    caption(folder, *options, "--output", table)
    with table.open(encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    assert list(cells[0]) == ["image", "caption", "error", "score", "captions", "scores"]
    assert [json.loads(row["captions"]) for row in cells] == [row["captions"] for row in rows]
    assert [float(row["score"]) for row in cells] == [row["score"] for row in rows]
    before = table.read_bytes()
    with pytest.raises(RecipeError, match="with the columns image, caption, error, or a new file"):
        caption(folder, "--output", table)
    assert table.read_bytes() == before


ENDING = {"do_sample": True, "temperature": 50.0, "top_k": 0, "max_length": 30, "num_captions": 8}
"""Decoding by which an untrained captioner ends captions at different lengths."""


@pytest.mark.parametrize(
    ("kind", "decoding"),
    [
        ("full", ENDING),
        ("full", {"prompt": "two green"}),
        ("full", {"do_sample": True, "temperature": 3.0, "num_captions": 3}),
        ("adapter", {"num_beams": 3, "num_captions": 2}),
    ],
    ids=["ending", "prompt", "sampled", "adapter"],
)
def test_scores_are_the_losses_of_the_stock_model(
    caption: Caption, captioner: Path, folder: Path, tmp_path: Path, kind: str, decoding: dict[str, Any]
) -> None:
    import torch
    from transformers import BlipForConditionalGeneration

    name = captioner if kind == "full" else save_adapter(tmp_path / "adapter", captioner, prompt="a picture of ")
    stock = BlipForConditionalGeneration.from_pretrained(name).eval()
    stock.config.text_config.label_smoothing = stock.text_decoder.label_smoothing = 0.0
    start, end = stock.config.text_config.bos_token_id, stock.config.text_config.sep_token_id
    options = [f"--{name}" if value is True else f"--{name}={value}" for name, value in decoding.items()]
    rows = caption(folder, *options, "--scores", "--batch_size", "2", model=name)
    arguments = {"num_return_sequences" if name == "num_captions" else name: value for name, value in decoding.items()}
    if "do_sample" in decoding:
        arguments["seed"] = 42
    pipe = caption_pipeline(name, device="cpu", **arguments)
    prompt = pipe.tokenizer(decoding.get("prompt", pipe.settings.prompt)).input_ids[1:-1]
    lengths = set()
    for row in rows:
        inputs = pipe.preprocess(row["image"])
        generated = pipe.forward(inputs, **pipe._forward_params)["token_ids"][0]
        assert pipe.tokenizer.batch_decode(generated, skip_special_tokens=True) == row.get("captions", [row["caption"]])
        for ids, score in zip(generated.tolist(), row.get("scores", [row["score"]]), strict=True):
            # A prompt that is given is part of the caption.
            whole = [
                start,
                *([] if "prompt" in decoding else prompt),
                *ids[: ids.index(end) + 1 if end in ids else None],
            ]
            labels = torch.tensor([[-100] * (1 + len(prompt)) + whole[1 + len(prompt) :]])
            with torch.no_grad():
                loss = stock(inputs["pixel_values"], torch.tensor([whole]), labels=labels).loss.item()
            assert score == pytest.approx(-loss, abs=1e-5)
            lengths.add(len(whole))
    assert len({row["score"] for row in rows}) > 1
    assert len(lengths) > 1 or decoding is not ENDING, "the test needs captions of different lengths"


def test_the_matcher_chooses_the_best_caption(caption: Caption, folder: Path, tmp_path: Path) -> None:
    from retrievers import build_retriever

    from blip_recipe.match import main as match
    from blip_recipe.models.processors import save_processor

    model, processor = build_retriever(seed=1)
    model.save_pretrained(tmp_path / "matcher")
    save_processor(processor, tmp_path / "matcher")
    sampled = caption(folder, *SAMPLED)
    rows = caption(folder, *SAMPLED, "--match", tmp_path / "matcher", "--scores", "--prefix", "ohwx, ")
    for row, plain in zip(rows, sampled, strict=True):
        assert sorted(row["captions"]) == sorted(f"ohwx, {text}" for text in plain["captions"])
        assert row["matches"] == sorted(row["matches"], reverse=True)
        assert (row["caption"], row["match"], row["score"]) == (row["captions"][0], row["matches"][0], row["scores"][0])
        texts = [text.removeprefix("ohwx, ") for text in row["captions"]]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            match([str(tmp_path / "matcher"), row["image"], *texts, "--device", "cpu"])
        found = [json.loads(line)["probability"] for line in printed.getvalue().splitlines()]
        assert row["matches"] == pytest.approx(found, abs=1e-5)
    assert any(row["caption"] != f"ohwx, {plain['caption']}" for row, plain in zip(rows, sampled, strict=True))


def test_trigger_words_stand_around_each_caption(caption: Caption, folder: Path) -> None:
    plain = caption(folder)
    rows = caption(folder, "--prefix", "ohwx cat, ", "--suffix", ", photo", "--sidecar")
    assert [row["caption"] for row in rows] == [f"ohwx cat, {row['caption']}, photo" for row in plain]
    assert [Path(row["image"]).with_suffix(".txt").read_text() for row in rows] == [
        row["caption"] + "\n" for row in rows
    ]


def test_captions_are_appended_once_to_texts_that_are_there(
    caption: Caption, folder: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    texts = {number: folder / f"{number:04}.txt" for number in range(5)}
    texts[0].write_bytes(b"ohwx, red\r\nsecond line\r\n \n")
    texts[1].write_bytes("ünï".encode())
    texts[2].write_bytes(b"\xff\xfe not UTF-8")
    texts[3].write_bytes(b"")
    rows = caption(folder, "--sidecar", "--append")
    captions = [row["caption"].encode() for row in rows]
    assert len(rows) == 5
    expected = {
        0: b"ohwx, red\r\nsecond line, " + captions[0] + b"\n",
        1: "ünï, ".encode() + captions[1] + b"\n",
        2: b"\xff\xfe not UTF-8",
        3: captions[3] + b"\n",
        4: captions[4] + b"\n",
    }
    assert {number: path.read_bytes() for number, path in texts.items()} == expected
    assert (
        f"no .txt for {folder}/0002.png: the text that is there is not UTF-8".encode() in capfdbinary.readouterr().err
    )
    for _ in range(2):
        caption(folder, "--sidecar", "--append")
        assert {number: path.read_bytes() for number, path in texts.items()} == expected
    caption(folder / "0004.png", "--sidecar", "--append", "--separator", " | ", "--suffix", "!")
    assert texts[4].read_bytes() == captions[4] + b" | " + captions[4] + b"!\n"


def test_pictures_are_taken_as_they_are_needed() -> None:
    taken = itertools.count()
    results = read_ahead(lambda number: number * 2, taken, ahead=4)
    assert list(itertools.islice(results, 100)) == [(number, number * 2) for number in range(100)]
    assert next(taken) <= 105


def test_an_endless_input_can_be_cut_off(captioner: Path, folder: Path) -> None:
    command = f"yes {folder}/0000.png | {sys.executable} -m blip_recipe.caption {captioner} - --device cpu | head -n 40"
    done = subprocess.run(
        ["bash", "-c", command + "; echo ${PIPESTATUS[1]}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(set(lines[:40])) == 1
    assert lines[40:] == ["0"]
    assert "Traceback" not in done.stderr


def test_a_model_that_cannot_caption_is_refused_before_anything_is_written(
    caption: Caption, captioner: Path, folder: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    pickled = tmp_path / "pickled"
    shutil.copytree(captioner, pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    for model, message in {pickled: "--allow_pickle", tmp_path / "none": "cannot be found"}.items():
        with pytest.raises(RecipeError, match=message):
            caption(folder, "--output", tmp_path / "captions.jsonl", model=model)
    assert not (tmp_path / "captions.jsonl").exists()
    assert caption(folder, "--allow_pickle", model=pickled) == caption(folder)


def test_an_interrupted_run_ends_at_once_and_goes_on(
    caption: Caption, captioner: Path, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/picture.png"
        words = (captioner, folder, address, "--output", output, "--batch_size", "3", "--device", "cpu")
        process = start_module("blip_recipe.caption", *words, log=tmp_path / "log")
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if output.exists() and output.read_bytes().count(b"\n") == 3:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    stderr = (tmp_path / "log").read_text()
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert len(rows_of(output.read_bytes())) == 3
    caption(folder, tmp_path / "none.png", "--output", output)
    assert len(rows_of(output.read_bytes())) == 6


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Threads of a run end with it; those that load a model may take a moment longer than an error that follows."""
    yield
    deadline = time.monotonic() + 10
    while threads := [each for each in threading.enumerate() if each.name.startswith("ThreadPoolExecutor")]:
        assert time.monotonic() < deadline, threads
        time.sleep(0.01)


def test_a_recorded_length_penalty_can_be_turned_off() -> None:
    recorded = DecodingSettings("a picture of ", length_penalty_counts_prompt=True)
    for words, counts in ([], True), (["--no-length_penalty_counts_prompt"], False):
        given = generate_options(build_parser().parse_args(["model", "photo.jpg", *words]))
        assert decoding_arguments(recorded, given)["length_penalty_counts_prompt"] is counts
