"""`python -m blip_recipe.caption`: what it captions, what it writes, and that it can be killed."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
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
from captioners import draw_pictures, save_captioner
from commands import CHECKOUT, run_module, start_module
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.captioning import watch
from blip_recipe import caption_pipeline
from blip_recipe.caption import main
from blip_recipe.captioning.output import finished_images, write_line
from blip_recipe.data.listing import list_folder, read_ahead
from blip_recipe.errors import RecipeError

Caption = Callable[..., list[dict[str, str]]]


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

    def run(*arguments: str | Path, stdin: bytes = b"", model: Path = captioner) -> list[dict[str, str]]:
        command = ["caption", str(model), "--device", "cpu", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        stdout = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stdout))
        main()
        return rows_of(stdout.getvalue())

    return run


def rows_of(content: bytes) -> list[dict[str, str]]:
    assert content == b"" or content.endswith(b"\n")
    return [json.loads(line) for line in content.splitlines()]


def names_of(rows: list[dict[str, str]]) -> list[str]:
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
    path = tmp_path_factory.mktemp("cut") / "out"
    ends = [0]
    with path.open("wb") as file:
        if row_format == "csv":
            write_line(file, {"image": "image", "caption": "caption", "error": "error"}, row_format)
            ends.append(file.tell())
        for name in names:
            write_line(file, {"image": name, "caption": caption_text}, row_format)
            ends.append(file.tell())
    cut = data.draw(st.integers(0, ends[-1]))
    os.truncate(path, cut)
    whole = max(number for number, end in enumerate(ends) if end <= cut)
    assert finished_images(path, row_format) == set(names[: max(0, whole - (row_format == "csv"))])
    assert path.stat().st_size == ends[whole]


def test_a_sidecar_stands_beside_each_picture_and_texts_of_others_are_kept(
    caption: Caption, folder: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (folder / "0001.txt").write_text("by hand\n")
    rows = caption(folder, "--sidecar")
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
        words = (captioner, folder, address, "--output", output, "--batch_size", "5", "--device", "cpu")
        process = start_module("blip_recipe.caption", *words, log=tmp_path / "log")
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if output.exists() and output.read_bytes().count(b"\n") == 5:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
    stderr = (tmp_path / "log").read_text()
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert len(rows_of(output.read_bytes())) == 5
    caption(folder, tmp_path / "none.png", "--output", output)
    assert len(rows_of(output.read_bytes())) == 6


def test_help_comes_at_once() -> None:
    start = time.monotonic()
    done = run_module("blip_recipe.caption", "--help", cold=True)
    assert time.monotonic() - start < 2
    assert "--sidecar" in done.stdout


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Threads of a run end with it."""
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]
