"""Whatever is broken or killed: nothing is lost, nothing comes twice; the same command resumes to the same bytes."""

from __future__ import annotations

import errno
import json
import os
import signal
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from commands import Process, run_checked, run_module, start_module
from web_data import jpeg, read_judged, save_models, tree, web_rows, write_folder, write_parquet, write_tars

from blip_recipe.capfilt.__main__ import main
from blip_recipe.errors import RecipeError, SaveError

ROWS = web_rows(12)
PATIENCE = 240
"""Seconds until a run must have got somewhere, on a busy machine."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes of `commands` compute: the last bits of scores depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def recipe(models: dict[str, str], tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe for a data set."""

    def recipe(dataset: Path, **keys: Any) -> Path:
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps(models | {"batch_size": 2, "dataset_name": str(dataset)} | keys))
        return path

    return recipe


def run(recipe: Path, output: Path, **keys: Any) -> Path:
    """Run the command in this process."""
    main([str(recipe), "--output_dir", str(output), *(f"--{key}={value}" for key, value in keys.items())])
    return output


def tear(path: Path, at: int = 2000) -> bytes:
    """Cut a file off; gives what it was."""
    whole = path.read_bytes()
    path.write_bytes(whole[:at])
    return whole


@pytest.mark.parametrize("torn", [0, 2])
@pytest.mark.parametrize("write", [write_tars, write_parquet])
def test_a_torn_shard_is_left_out_whole_and_taken_up_once_repaired(
    write: Callable[..., Path], torn: int, tmp_path: Path, recipe: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    data = write(tmp_path / "data", ROWS, 3)
    unbroken = tree(run(recipe(data), tmp_path / "unbroken"))
    path = sorted(data.iterdir())[torn]
    whole = tear(path)
    output = run(recipe(data, on_bad_image="skip"), tmp_path / "out")
    assert path.name in caplog.text
    assert path.name in (output / "report.html").read_text()
    results = json.loads((output / "all_results.json").read_text())
    assert (results["shards"], results["shards_unreadable"], results["images"]) == (3, 1, 9)
    assert {row["source_shard"] for row in read_judged(output)} == {each.name for each in data.iterdir()} - {path.name}
    assert not [name for name in tree(output) if name.startswith(("data", "judged")) and f"{torn:05}" in name]
    # Broken still, it is tried again and nothing else is.
    before = tree(output)
    run(recipe(data, on_bad_image="skip"), output)
    assert tree(output) == before
    path.write_bytes(whole)
    assert tree(run(recipe(data), output)) == unbroken


@pytest.mark.parametrize("at", ["within a picture", "within a header", "between two files", "before the end"])
def test_a_tar_is_whole_or_torn_wherever_it_was_cut(at: str, tmp_path: Path, recipe: Callable[..., Path]) -> None:
    data = write_tars(tmp_path / "data", ROWS[:4], 2)
    with tarfile.open(data / "web-001.tar") as tar:
        members = tar.getmembers()
        end = members[-1].offset_data + 512
    second = members[2].offset
    places = {"within a picture": second + 900, "within a header": second + 100, "between two files": second}
    tear(data / "web-001.tar", places.get(at, end))
    with pytest.raises(RecipeError, match=r"web-001\.tar cannot be read.*truncated"):
        run(recipe(data), tmp_path / "out")


def test_a_torn_shard_ends_the_run_with_what_was_done_before(tmp_path: Path, recipe: Callable[..., Path]) -> None:
    data = write_tars(tmp_path / "data", ROWS, 3)
    unbroken = tree(run(recipe(data), tmp_path / "unbroken"))
    whole = tear(data / "web-002.tar")
    ended = run_module("blip_recipe.capfilt", recipe(data), "--output_dir", tmp_path / "out")
    assert ended.returncode == 2
    assert "error: web-002.tar" in ended.stderr
    assert "Traceback" not in ended.stderr
    done = tree(tmp_path / "out")
    assert {name for name in done if name.startswith("data")} == {"data/train-00000.tar", "data/train-00001.tar"}
    (data / "web-002.tar").write_bytes(whole)
    assert tree(run(recipe(data), tmp_path / "out")) == unbroken


def test_where_no_shard_can_be_read_it_is_an_error(tmp_path: Path, recipe: Callable[..., Path]) -> None:
    data = write_tars(tmp_path / "data", ROWS, 6)
    for path in data.iterdir():
        path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(RecipeError, match=r"None of the 2 shards.*web-000\.tar cannot be read"):
        run(recipe(data, on_bad_image="skip"), tmp_path / "out")


def test_a_missing_picture_is_named_and_its_row_left_out(tmp_path: Path, recipe: Callable[..., Path]) -> None:
    data = write_folder(tmp_path / "data", ROWS)
    (data / "00004.jpg").unlink()
    with pytest.raises(RecipeError, match=r"row 4 cannot be used: .*00004\.jpg"):
        run(recipe(data), tmp_path / "out")
    output = run(recipe(data, on_bad_image="skip"), tmp_path / "out")
    assert {row["source_row"] for row in read_judged(output)} == set(range(12)) - {4}
    results = json.loads((output / "all_results.json").read_text())
    assert (results["images"], results["images_skipped"]) == (11, 1)
    assert "00004.jpg" in (output / "report.html").read_text()


def test_a_broken_picture_spoils_no_other(tmp_path: Path, recipe: Callable[..., Path]) -> None:
    rows = [*ROWS]
    rows[3] = (b"\xff\xd8\xff no picture", ["a text"])
    rows[6] = (jpeg(6)[:200], ["a text"])
    data = write_tars(tmp_path / "data", rows, 6)
    with pytest.raises(RecipeError, match=r"web-000\.tar, row 3"):
        run(recipe(data), tmp_path / "fail")
    output = run(recipe(data, on_bad_image="skip"), tmp_path / "out")
    good = run(recipe(write_tars(tmp_path / "good", ROWS, 6)), tmp_path / "whole")
    found = {(row["source_shard"], row["source_row"]): row["score"] for row in read_judged(good)}
    judged = {(row["source_shard"], row["source_row"]): row["score"] for row in read_judged(output)}
    assert set(found) - set(judged) == {("web-000.tar", 3), ("web-001.tar", 0)}
    assert judged == pytest.approx({key: found[key] for key in judged}, abs=2e-6)


def test_a_sample_without_a_picture_is_a_bad_row(tmp_path: Path, recipe: Callable[..., Path]) -> None:
    data = write_tars(tmp_path / "data", ROWS, 12)
    members = []
    with tarfile.open(data / "web-000.tar") as tar:
        members = [(member, tar.extractfile(member)) for member in tar if member.name != "00009.jpg"]
        with tarfile.open(data / "again.tar", "w") as again:
            for member, file in members:
                again.addfile(member, file)
    (data / "again.tar").replace(data / "web-000.tar")
    output = run(recipe(data, on_bad_image="skip"), tmp_path / "out")
    assert {row["source_row"] for row in read_judged(output)} == set(range(12)) - {9}


def test_samples_with_other_files_are_judged_like_any_other(tmp_path: Path, recipe: Callable[..., Path]) -> None:
    """`.png` and `.JPG` among `.jpg`, and texts in `.caption` or JSON."""
    whole = read_judged(run(recipe(write_tars(tmp_path / "good", ROWS, 6)), tmp_path / "whole"))
    data = write_tars(tmp_path / "data", ROWS, 6)
    for path in data.iterdir():
        rename_members(
            path, lambda name: name.replace("1.jpg", "1.png").replace("2.jpg", "2.JPG").replace("3.txt", "3.caption")
        )
    output = run(recipe(data), tmp_path / "out")
    judged = read_judged(output)
    assert [(row["source_row"], row["text"], row["score"]) for row in judged] == [
        (row["source_row"], row["text"], row["score"]) for row in whole
    ]
    names = {row["source_name"] for row in judged}
    assert {"00001.png", "00002.JPG", "00004.jpg"} <= names
    with tarfile.open(output / "data" / "train-00000.tar") as tar:
        extensions = {member.name.partition(".")[2] for member in tar}
    assert {"jpg", "txt", "json"} <= extensions <= {"jpg", "png", "JPG", "txt", "json"}


@pytest.mark.parametrize("on_bad_image", ["fail", "skip"])
def test_a_tar_whose_samples_are_torn_apart_is_told_in_one_message(
    on_bad_image: str, tmp_path: Path, recipe: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    data = write_tars(tmp_path / "data", ROWS, 6)
    rename_members(data / "web-001.tar", str, key=lambda name: name.rpartition(".")[2])
    told = "6 of 6 samples have only a picture or only a text, such as 00000 in web-001.tar"
    if on_bad_image == "fail":
        with pytest.raises(RecipeError, match=told):
            run(recipe(data), tmp_path / "out")
    else:
        output = run(recipe(data, on_bad_image="skip"), tmp_path / "out")
        assert told in caplog.text
        assert {row["source_shard"] for row in read_judged(output)} == {"web-000.tar"}


def rename_members(path: Path, rename: Callable[[str], str], key: Callable[[str], str] = lambda name: "") -> None:
    """Write a tar again with other names, in the order of `key`."""
    with tarfile.open(path) as tar:
        members = [
            (member, tar.extractfile(member)) for member in sorted(tar.getmembers(), key=lambda each: key(each.name))
        ]
        with tarfile.open(path.with_suffix(".again"), "w") as again:
            for member, file in members:
                member.name = rename(member.name)
                again.addfile(member, file)
    path.with_suffix(".again").replace(path)


def test_a_full_disk_ends_the_run_with_a_message(
    tmp_path: Path, recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_parquet(tmp_path / "data", ROWS, 6)
    unbroken = tree(run(recipe(data), tmp_path / "unbroken"))

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(pq.ParquetWriter, "write_table", refuse)
        with pytest.raises(SaveError, match=r"web-000\.parquet could not be written"):
            run(recipe(data), tmp_path / "out")
    assert not [name for name in tree(tmp_path / "out") if name.startswith(("data", "judged", "shards"))]
    assert tree(run(recipe(data), tmp_path / "out")) == unbroken


def start(recipe: Path, output: Path) -> Process:
    """The command in a process of its own."""
    return start_module("blip_recipe.capfilt", recipe, "--output_dir", output, log=Path(os.devnull))


def kill_when(process: Process, begun: Callable[[], bool]) -> None:
    """SIGKILL it as soon as `begun` says so."""
    end = time.monotonic() + PATIENCE
    while not begun():
        assert process.poll() is None, "the run came to its end before it was killed"
        assert time.monotonic() < end
        time.sleep(0.0005)
    process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
@pytest.mark.parametrize("write", [pytest.param(write_tars, marks=pytest.mark.long), write_parquet])
def test_a_killed_run_goes_on_to_the_same_bytes(
    write: Callable[..., Path], tmp_path: Path, recipe: Callable[..., Path]
) -> None:
    data = write(tmp_path / "data", web_rows(60), 5)
    # One picture at a time, so that a shard takes as long as possible.
    keys = {"batch_size": 1, "num_generations": 2}
    unbroken = tree(run(recipe(data, **keys), tmp_path / "unbroken"))
    output = tmp_path / "out"

    def entries(folder: str, pattern: str) -> list[Path]:
        return list((output / folder).glob(pattern))

    moments: list[Callable[[], bool]] = [
        lambda: len(entries("shards", "[!.]*")) >= 2,
        # Of a shard after those: images and judgements are being written, or images have their name and no note yet.
        lambda: len(entries("data", ".*")) > 0 and len(entries("shards", "[!.]*")) >= 4,
        lambda: len(entries("judged", "[!.]*")) > len(entries("shards", "[!.]*")) >= 6,
    ]
    for begun in moments:
        kill_when(start(recipe(data, **keys), output), begun)
    left = tree(output)
    assert 6 <= len([name for name in left if name.startswith("shards")]) < 12
    assert tree(run(recipe(data, **keys), output)) == unbroken


def test_two_processes_do_what_one_does(tmp_path: Path, recipe: Callable[..., Path]) -> None:
    data = write_tars(tmp_path / "data", ROWS, 2)
    one = tree(run(recipe(data), tmp_path / "one"))
    tear(data / "web-003.tar")
    arguments = (recipe(data, on_bad_image="skip"), "--output_dir", tmp_path / "two")
    done = run_checked("blip_recipe.capfilt", *arguments, processes=2)
    assert "by 2 processes" in done.stderr
    two = tree(tmp_path / "two")
    same = [name for name in one if name.startswith(("data", "judged", "shards")) and "00003" not in name]
    assert len(same) == 15
    assert {name: two[name] for name in same} == {name: one[name] for name in same}
    data = write_tars(tmp_path / "again", ROWS, 2)
    (tmp_path / "data/web-003.tar").write_bytes((data / "web-003.tar").read_bytes())
    run_checked("blip_recipe.capfilt", *arguments, processes=2)
    assert tree(tmp_path / "two") == one
