"""`caption --dataset_name`: a data set with a new column, resumed after a kill, and on the Hub."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from captioners import draw_pictures, save_captioner
from commands import run_checked, run_module, start_module
from datasets import Dataset, Features, Image, List, Value, load_dataset
from hub_server import READ_TOKEN, Fault, HubServer

from blip_recipe.caption import main
from blip_recipe.captioning.table import RUN
from blip_recipe.errors import RecipeError

ROWS = 7


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_captioner(tmp_path_factory.mktemp("captioner"), generation_max_length=8, generation_num_beams=1)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    return draw_pictures(tmp_path / "photos", ROWS)


@pytest.fixture
def folder(pictures: list[Path]) -> Path:
    """An imagefolder with a column of its own."""
    lines = [json.dumps({"file_name": path.name, "place": f"no. {number}"}) for number, path in enumerate(pictures)]
    (pictures[0].parent / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return pictures[0].parent


@pytest.fixture
def run(captioner: Path, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Runs the command in this process; gives the rows of the new data set."""

    def run(dataset: Path, *options: str | Path, name: str = "out") -> list[dict[str, Any]]:
        words = [captioner, "--dataset_name", dataset, "--output", tmp_path / name, "--device", "cpu", *options]
        main([*map(str, words), "--shard_rows", "3"])
        return rows_of(tmp_path / name)

    return run


def rows_of(directory: Path) -> list[dict[str, Any]]:
    """The rows of all parquet files, pictures as they are stored."""
    return [row for path in sorted((directory / "data").iterdir()) for row in pq.read_table(path).to_pylist()]


def captions_of(captioner: Path, pictures: list[Path], capfdbinary: pytest.CaptureFixture[bytes]) -> list[str | None]:
    """What the command writes of the files themselves."""
    capfdbinary.readouterr()
    main([str(captioner), *map(str, pictures), "--device", "cpu"])
    return [json.loads(line).get("caption") for line in capfdbinary.readouterr().out.splitlines()]


Run = Callable[..., list[dict[str, Any]]]


def test_a_folder_gets_a_column_of_captions(
    run: Run,
    captioner: Path,
    folder: Path,
    pictures: list[Path],
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    rows = run(folder)
    assert [list(row) for row in rows] == [["image", "file_name", "place", "caption"]] * ROWS
    assert [row["caption"] for row in rows] == captions_of(captioner, pictures, capfdbinary)
    assert [row["image"] for row in rows] == [{"bytes": path.read_bytes(), "path": path.name} for path in pictures]
    assert [row["place"] for row in rows] == [f"no. {number}" for number in range(ROWS)]
    names = [f"train-{number:05}-of-00003.parquet" for number in range(3)]
    assert sorted(path.name for path in (tmp_path / "out/data").iterdir()) == names
    loaded = load_dataset(str(tmp_path / "out"), split="train")
    texts = {name: Value("string") for name in ("file_name", "place", "caption")}
    assert loaded.features == Features({"image": Image(), **texts})
    assert loaded[2]["image"].size == (40, 40)
    card = (tmp_path / "out/README.md").read_text()
    assert f"The pictures of `photos`, split `train`, with captions by `{captioner.name}`" in card
    assert str(tmp_path) not in card


def test_columns_of_any_kind_stay_as_they_are(
    run: Run, pictures: list[Path], tmp_path: Path, captioner: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Embedded pictures in two columns, paths in a third, lists, structs, and a caption that is somebody else's."""
    features = Features(
        {
            "number": Value("int32"),
            "left": Image(),
            "right": Image(),
            "boxes": List({"x": Value("float32")}),
            "caption": Value("string"),
        }
    )
    contents = [path.read_bytes() for path in pictures]
    source = [
        {
            "number": number,
            "left": {"bytes": content, "path": None},
            "right": None if number == 1 else {"bytes": contents[0], "path": "same.png"},
            "boxes": [{"x": 0.5}] * number,
            "caption": f"by hand {number}",
        }
        for number, content in enumerate(contents)
    ]
    (tmp_path / "data").mkdir()
    Dataset.from_list(source, features=features).to_parquet(tmp_path / "data/test-00000-of-00001.parquet")
    options = ("--split", "test", "--image_column", "left")
    with pytest.raises(RecipeError, match="has a column 'caption' already"):
        run(tmp_path / "data", *options)
    several = ("--num_captions", "2", "--num_beams", "2", "--scores")
    rows = run(tmp_path / "data", *options, "--caption_column_name", "text", *several)
    assert [{name: row[name] for name in features} for row in rows] == source
    assert list(rows[0]) == [*features, "text", "text_score", "text_all", "text_all_scores"]
    assert [row["text_all"][0] for row in rows] == [row["text"] for row in rows]
    assert [row["text_all_scores"][0] for row in rows] == [row["text_score"] for row in rows]
    assert all(row["text_score"] < 0 for row in rows)
    rows = run(tmp_path / "data", *options, "--overwrite_column", name="replaced")
    assert [row["caption"] for row in rows] == captions_of(captioner, pictures, capfdbinary)
    assert set(rows[0]) == set(features)
    assert (tmp_path / "replaced/data/test-00002-of-00003.parquet").exists()


def test_paths_in_a_column_of_text_stay_text(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    names = [path.name for path in pictures]
    Dataset.from_dict({"file_name": names}).to_parquet(tmp_path / "table/train.parquet")
    rows = run(tmp_path / "table", "--image_root", pictures[0].parent)
    assert [row["file_name"] for row in rows] == names
    assert all(row["caption"] for row in rows)
    Dataset.from_dict({"file_name": ["../../x.png"]}).to_parquet(tmp_path / "table/train.parquet")
    with pytest.raises(RecipeError, match="paths are not allowed"):
        run(tmp_path / "table", "--image_root", pictures[0].parent, name="outside")


def test_files_that_are_no_pictures_are_not_put_into_the_data_set(
    run: Run, pictures: list[Path], tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("token")
    plain = pictures[0].rename(tmp_path / "picture without an extension")
    images = [{"bytes": None, "path": str(path)} for path in (secret, plain, pictures[1])]
    schema = Features({"image": Image()}).arrow_schema
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table({"image": images}, schema=schema), tmp_path / "table/train.parquet")
    rows = run(tmp_path / "table")
    assert [row["image"]["bytes"] for row in rows] == [None, plain.read_bytes(), pictures[1].read_bytes()]
    assert [row["caption"] is None for row in rows] == [True, False, False]


def test_rows_without_a_caption_are_tried_again(
    run: Run, folder: Path, pictures: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = pictures[4].read_bytes()
    expected = run(folder, name="whole")
    pictures[4].write_bytes(b"no picture")
    rows = run(folder)
    assert [row["caption"] is None for row in rows] == [number == 4 for number in range(ROWS)]
    stderr = capfd.readouterr().err
    assert "not captioned: row 4: " in stderr
    assert "6 of 7 rows" in stderr
    assert "1 have no caption" in (tmp_path / "out/README.md").read_text()
    others = [(tmp_path / f"out/data/train-{number:05}-of-00003.parquet").stat().st_mtime_ns for number in (0, 2)]
    pictures[4].write_bytes(whole)
    assert run(folder) == expected
    assert "7 of 7 rows" in capfd.readouterr().err
    now = [(tmp_path / f"out/data/train-{number:05}-of-00003.parquet").stat().st_mtime_ns for number in (0, 2)]
    assert now == others, "finished files stay as they are"


def test_a_killed_run_ends_as_if_it_had_not_been(captioner: Path, tmp_path: Path) -> None:
    draw_pictures(tmp_path / "photos", 60, size=20)
    words: list[str | Path] = [captioner, "--dataset_name", tmp_path / "photos", "--device", "cpu"]
    words += ["--shard_rows", "5", "--batch_size", "1"]
    run_checked("blip_recipe.caption", *words, "--output", tmp_path / "whole")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole/data").iterdir()}
    data = tmp_path / "out/data"
    process = start_module("blip_recipe.caption", *words, "--output", tmp_path / "out", log=tmp_path / "log")
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and len(list(data.glob("train*"))) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    done = {path.name: path.read_bytes() for path in data.glob("train*")}
    assert 3 <= len(done) < 12, "the test needs a run that is killed half-way"
    assert done.items() <= whole.items()
    (data / f".train-00011-of-00012.parquet.{'0' * 32}").write_bytes(b"torn")
    run_checked("blip_recipe.caption", *words, "--output", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in data.iterdir()} == whole


def test_two_processes_share_the_files(run: Run, captioner: Path, folder: Path, tmp_path: Path) -> None:
    expected = run(folder)
    words = ("--dataset_name", folder, "--output", tmp_path / "two", "--device", "cpu", "--shard_rows", "3")
    run_checked("blip_recipe.caption", captioner, *words, processes=2)
    assert rows_of(tmp_path / "two") == expected


def test_a_directory_of_another_run_is_refused(run: Run, folder: Path, tmp_path: Path) -> None:
    run(folder)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(RecipeError, match=r"another prefix \(was '', is 'a '\)"):
        run(folder, "--prefix", "a ")
    with pytest.raises(RecipeError, match="exists, and is not from this command"):
        run(folder, name="photos")
    with pytest.raises(RecipeError, match="exists, and is not from this command"):
        run(folder, name="photos/0000.png")
    run(folder, "--batch_size", "2")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert json.loads((tmp_path / "out" / RUN).read_text())["rows"] == ROWS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset_name", "{place}/none", "--output", "{place}/out"], "There is no file or directory"),
        (["--dataset_name", "{place}/photos"], "--output is missing"),
        (
            ["--dataset_name", "{place}/photos/0000.png", "--output", "{place}/out"],
            "is of no known kind: expected a file that ends",
        ),
        (["--dataset_name", "{place}/photos", "--output", "{place}/out", "--sidecar"], "contradict each other"),
        (["--dataset_name", "{place}/photos", "--output", "{place}/out", "--image_column", "x"], "no column 'x'"),
        (["--dataset_name", "{place}/photos", "--output", "{place}/out", "--push_to_hub", "a/b/c"], "--push_to_hub is"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_wrong_options_are_refused_before_the_model_is_loaded(
    folder: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        main([str(tmp_path / "no model"), *(option.format(place=tmp_path) for option in options)])
    assert not (tmp_path / "out").exists()


def test_a_data_set_is_pushed_in_one_commit(captioner: Path, folder: Path, tmp_path: Path) -> None:
    words: list[str | Path] = [captioner, "--dataset_name", folder, "--output", tmp_path / "out", "--device", "cpu"]
    words += ["--shard_rows", "3", "--push_to_hub", "lab/captioned"]
    with HubServer() as hub:
        refused = run_module("blip_recipe.caption", *words, env=hub.environment(READ_TOKEN))
        assert refused.returncode == 2
        assert "has only read access" in refused.stderr
        assert not (tmp_path / "out").exists()
        hub.faults.append(Fault("POST .*/commit/", status=403))
        failed = run_module("blip_recipe.caption", *words, env=hub.environment())
        assert failed.returncode == 3
        assert "run the same command again to push them" in failed.stderr
        done = run_checked("blip_recipe.caption", *words, env=hub.environment())
        assert done.stdout.strip() == f"{hub.url}/datasets/lab/captioned"
        assert "image/s" not in done.stderr, "nothing is captioned twice"
        published = hub.files("lab/captioned", kind="dataset")
        expected = {f"data/{path.name}": path.read_bytes() for path in (tmp_path / "out/data").iterdir()}
        expected["README.md"] = (tmp_path / "out/README.md").read_bytes()
        assert published == expected
        assert len(hub.commits("lab/captioned", "dataset")) == 2
        run_checked("blip_recipe.caption", *words, env=hub.environment())
        assert len(hub.commits("lab/captioned", "dataset")) == 2


def test_files_of_others_are_kept_on_the_hub(
    captioner: Path, folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    words = (captioner, "--dataset_name", "lab/photos", "--output", tmp_path / "out", "--device", "cpu")
    with HubServer() as hub:
        theirs = {
            "README.md": b"---\nlicense: mit\n---\n\n# Mine\n",
            "data/test-00000-of-00001.parquet": b"PAR1 theirs",
            "data/train-00000-of-00009.parquet": b"PAR1 stale",
        }
        hub.publish_dataset("lab/captioned", theirs)
        hub.publish_dataset("lab/photos", folder)
        done = run_checked("blip_recipe.caption", *words, "--push_to_hub", "lab/captioned", env=hub.environment())
        assert "has a card of its own, which is kept" in done.stderr
        published = hub.files("lab/captioned", kind="dataset")
        assert published.pop("README.md") == theirs["README.md"]
        assert published.pop("data/test-00000-of-00001.parquet") == b"PAR1 theirs"
        assert set(published) == {"data/train-00000-of-00001.parquet"}
    rows = rows_of(tmp_path / "out")
    assert [row["image"]["bytes"] for row in rows] == [path.read_bytes() for path in pictures]
    assert all(row["caption"] for row in rows)
    assert "source_datasets:\n- lab/photos\n" in (tmp_path / "out/README.md").read_text()
