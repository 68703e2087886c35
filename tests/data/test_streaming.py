"""A stream gives every row of a pass once, to whichever process and worker, and goes on where it stood."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from captioners import save_captioner
from commands import CHECKOUT, run_checked, run_script
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from hub_server import HubServer
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from blip_recipe.captioning.trainer import CaptionTrainingArguments
from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.images import digest
from blip_recipe.data.load import load_split, load_splits
from blip_recipe.data.shards import open_stream
from blip_recipe.data.streaming import CaptionStream
from blip_recipe.errors import RecipeError
from blip_recipe.finetune import main
from blip_recipe.training.streams import plan_steps

Row = dict[str, Any]


def png(number: int) -> bytes:
    """A picture whose width and first pixel tell its number."""
    buffer = io.BytesIO()
    Image.new("RGB", (number + 1, 2), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tars(folder: Path, shards: int, rows: int) -> Path:
    """Webdataset shards with `rows` pictures each, numbered through."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        with tarfile.open(folder / f"train-{shard}.tar", "w") as tar:
            for number in range(shard * rows, (shard + 1) * rows):
                for extension, content in (("png", png(number)), ("txt", f"picture {number}".encode())):
                    entry = tarfile.TarInfo(f"{number:05}.{extension}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return folder


def write_parquet(folder: Path, shards: Sequence[list[Row]]) -> Path:
    """Parquet shards of rows with `image`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(shards):
        table = Dataset.from_list(rows)
        table = table.cast(Features({**table.features, "image": ImageFeature()}))
        table.to_parquet(folder / f"train-{number:02}.parquet")
    return folder


def embedded(number: int, **columns: Any) -> Row:
    return {"image": {"bytes": png(number), "path": None}, **columns}


def stream(folder: Path | str, process: int = 0, processes: int = 1, **keys: Any) -> CaptionStream:
    """The stream of a process, without augmentation unless asked for."""
    settings: dict[str, Any] = {"image_size": 8, "seed": 7, "augmentation": "none", "captions_per_image": None}
    settings |= {"normalize_captions": False, "shuffle_buffer_size": 4, "on_bad_image": "fail"}
    own = {key: keys.pop(key) for key in list(keys) if key in settings}
    split = open_stream(CaptionDataArguments(dataset_name=str(folder), streaming=True, **keys))
    return CaptionStream(split, **(settings | own), process=process, processes=processes)


def as_they_are(rows: list[Row]) -> list[Row]:
    return rows


def number_of(row: Row) -> int:
    return int(row["image"][0, 0, 0])


def first_pass(source: CaptionStream, workers: int) -> list[Row]:
    """The rows of the first pass of all workers of a process."""
    found: list[Row] = []
    going_on = set(range(max(1, workers)))
    loader = iter(DataLoader(source, batch_size=1, num_workers=workers, collate_fn=as_they_are, prefetch_factor=None))
    for (row,) in loader:
        if row["progress"].position.turn < source.turns(workers):
            found.append(row)
        else:
            going_on.discard(row["progress"].worker)
            if not going_on:
                return found
    raise AssertionError("a stream has no end")


@pytest.mark.parametrize(("shards", "processes", "workers"), [(1, 1, 0), (6, 2, 2), (5, 3, 0), (1, 3, 0), (3, 2, 2)])
def test_a_pass_gives_every_row_once_whatever_reads_it(
    tmp_path: Path, shards: int, processes: int, workers: int
) -> None:
    folder = write_tars(tmp_path / "tars", shards, 7)
    sources = [stream(folder, process, processes) for process in range(processes)]
    rows = [row for source in sources for row in first_pass(source, workers)]
    assert Counter(map(number_of, rows)) == Counter(range(shards * 7))
    assert all(row["captions"] == [f"picture {number_of(row)}"] for row in rows)


def test_passes_differ_in_order_and_a_seed_repeats_them(tmp_path: Path) -> None:
    folder = write_tars(tmp_path / "tars", 3, 6)
    numbers = [number_of(row) for row in islice(stream(folder), 36)]
    assert sorted(numbers[:18]) == sorted(numbers[18:]) == list(range(18))
    assert numbers[:18] != numbers[18:]
    assert numbers[:18] != sorted(numbers[:18])
    assert numbers == [number_of(row) for row in islice(stream(folder), 36)]
    assert numbers != [number_of(row) for row in islice(stream(folder, seed=8), 36)]


def test_choices_are_drawn_anew_in_each_pass_from_the_row_alone(tmp_path: Path) -> None:
    rows = [embedded(number + 20, captions=["a", "b", "c", "d"]) for number in range(4)]
    folder = write_parquet(tmp_path / "parquet", [rows[:2], rows[2:]])
    keys: dict[str, Any] = {"augmentation": "blip", "captions_per_image": 1}
    alone = list(islice(stream(folder, **keys), 40))
    of_two = [list(islice(stream(folder, process, 2, **keys), 20)) for process in range(2)]
    drawn: dict[int, set[str]] = {}
    for row in alone:
        drawn.setdefault(row["row"], set()).update(row["captions"])
    assert all(len(captions) > 1 for captions in drawn.values())
    first = {row["row"]: row for row in alone[:4]}
    for row in (row for rows in of_two for row in rows[:2]):
        same = first[row["row"]]
        assert row["captions"] == same["captions"]
        assert row["image"].equal(same["image"])


@pytest.mark.parametrize("shards", [4, 1])
def test_a_stream_goes_on_with_the_row_that_it_would_have_given(tmp_path: Path, shards: int) -> None:
    folder = write_tars(tmp_path / "tars", shards, 20 // shards)
    for process in range(2):
        rows = list(islice(stream(folder, process, 2), 47))
        for count in (1, 3, 4, 10, 11, 23):
            resumed = stream(folder, process, 2)
            resumed.positions = {0: rows[count - 1]["progress"].position}
            followed = [row["row"] for row in islice(resumed, 47 - count)]
            assert followed == [row["row"] for row in rows[count:]]


def test_going_on_opens_no_shard_that_was_finished(tmp_path: Path) -> None:
    folder = write_tars(tmp_path / "tars", 4, 5)
    whole = list(islice(stream(folder, shuffle_buffer_size=2), 20))
    resumed = stream(folder, shuffle_buffer_size=2)
    resumed.positions = {0: whole[15]["progress"].position}
    # Blocks of two images: the one that is gone on with may have begun one image earlier.
    needed = {int(row["row"]) >> 32 for row in whole[14:]}
    assert len(needed) < 4
    for shard in set(range(4)) - needed:
        (folder / f"train-{shard}.tar").unlink()
    assert [row["row"] for row in islice(resumed, 4)] == [row["row"] for row in whole[16:]]


SHAPES: dict[str, list[Row]] = {
    "text": [{"caption": "one\ntwo"}, {"caption": "three"}],
    "list": [{"captions": ["one", "two"]}, {"captions": ["three"]}],
    "columns": [{"caption_0": "one", "caption_1": "two"}, {"caption_0": "three", "caption_1": ""}],
    "structs": [{"sentences": [{"raw": "one"}, {"raw": "two"}]}, {"sentences": [{"raw": "three"}]}],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_captions_are_read_in_every_shape(tmp_path: Path, shape: str) -> None:
    rows = [embedded(number, **columns) for number, columns in enumerate(SHAPES[shape])]
    folder = write_parquet(tmp_path / shape, [rows])
    found = {number_of(row): row["captions"] for row in islice(stream(folder), 2)}
    assert found == {0: ["one", "two"], 1: ["three"]}


def test_adjacent_rows_of_an_image_are_one_and_others_are_refused(tmp_path: Path) -> None:
    ids = [5, 5, 6, 7, 7, 7]
    rows = [embedded(each, caption=f"caption {row}", image_id=each) for row, each in enumerate(ids)]
    together = write_parquet(tmp_path / "together", [rows])
    found = {number_of(row): row["captions"] for row in islice(stream(together, image_id_column="image_id"), 3)}
    assert found == {
        5: ["caption 0", "caption 1"],
        6: ["caption 2"],
        7: ["caption 3", "caption 4", "caption 5"],
    }
    apart = write_parquet(tmp_path / "apart", [[rows[0], rows[2], rows[1]]])
    (end,) = stream(apart, image_id_column="image_id")
    assert "shard 0, row 2" in end["progress"].fault
    assert "Sort the data" in end["progress"].fault


def test_a_sum_of_splits_is_one_stream(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "data", [[embedded(number, text="a")] for number in range(3)])
    (folder / "train-02.parquet").rename(folder / "validation.parquet")
    rows = list(islice(stream(folder, train_split="train + validation"), 6))
    assert Counter(map(number_of, rows)) == {0: 2, 1: 2, 2: 2}
    with pytest.raises(RecipeError, match="restval"):
        stream(folder, train_split="train+restval")


@pytest.fixture(name="with_bad_rows")
def fixture_with_bad_rows(tmp_path: Path) -> Path:
    """Six rows, of which one has no picture and one no caption."""
    rows = [embedded(number, text=f"picture {number}") for number in range(6)]
    rows[2]["image"] = {"bytes": b"no picture", "path": "torn.png"}
    rows[4]["text"] = " "
    return write_parquet(tmp_path / "bad", [rows])


def test_bad_rows_are_skipped_and_told_of_or_end_the_stream(with_bad_rows: Path) -> None:
    rows = list(islice(stream(with_bad_rows, on_bad_image="skip"), 9))
    assert {number_of(row) for row in rows} == {0, 1, 3, 5}
    skipped = {each.row: each for row in rows for each in row["progress"].skipped}
    assert skipped.keys() == {2, 4}
    assert "torn.png" in skipped[2].reason
    assert "no caption" in skipped[4].reason
    *_, end = stream(with_bad_rows)
    assert "shard 0, row " in end["progress"].fault
    assert "on_bad_image to 'skip' in a recipe" in end["progress"].fault
    assert "dataset.filter" in end["progress"].fault


def test_a_stream_of_bad_rows_alone_ends(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "bad", [[{"image": {"bytes": b"no", "path": None}, "text": "a"}]])
    (end,) = stream(folder, on_bad_image="skip")
    assert "No row of a whole pass" in end["progress"].fault


def test_paths_of_a_stream_lead_nowhere_but_below_their_root(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(png(1))
    (folder / "mine.png").write_bytes(png(3))
    for name, fault in (("mine.png", None), ("../secret.png", "not allowed")):
        (folder / "train.jsonl").write_text(json.dumps({"image": name, "text": "a"}) + "\n")
        row = next(iter(stream(folder, image_column="image", image_root=str(folder))))
        assert (fault is None) == ("image" in row)
        assert fault is None or fault in row["progress"].fault


def test_a_torn_shard_is_named(tmp_path: Path) -> None:
    shards = [[embedded(number, text="a") for number in range(first, first + 4)] for first in (0, 4)]
    folder = write_parquet(tmp_path / "parquet", shards)
    source = stream(folder)
    whole = (folder / "train-01.parquet").read_bytes()
    (folder / "train-01.parquet").write_bytes(whole[: len(whole) // 2])
    *_, end = source
    assert "shard 1, cannot be read" in end["progress"].fault


def test_other_splits_of_a_directory_are_read_alone_and_as_without_streaming(tmp_path: Path) -> None:
    folder = write_tars(tmp_path / "data", 2, 4)
    rows = [embedded(number, txt=f"test {number}", cocoid=number) for number in (3, 3, 5)]
    parquet = tmp_path / "parquet"
    for name, part in (("train", rows), ("test", rows)):
        write_parquet(parquet, [part])
        (parquet / "train-00.parquet").rename(parquet / f"{name}.parquet")
    keys: Row = {"dataset_name": str(parquet), "image_id_column": "cocoid"}
    plain, streamed = (load_split(CaptionDataArguments(**keys, streaming=each), "test") for each in (False, True))
    assert streamed.to_list() == plain.to_list()
    assert len(load_split(CaptionDataArguments(**keys, streaming=True), "test", max_samples=1)) == 1
    write_parquet(parquet, [rows[:1]])
    (parquet / "train-00.parquet").rename(parquet / "test.parquet")
    assert len(load_split(CaptionDataArguments(**keys, streaming=True), "test")) == 1
    assert len(load_split(CaptionDataArguments(dataset_name=str(folder), streaming=True), "train")) == 8


@pytest.fixture(scope="module", name="hub")
def fixture_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    place = tmp_path_factory.mktemp("hub")
    tars = write_tars(place / "tars", 2, 3)
    parquet = write_parquet(place / "parquet", [[embedded(n, text=f"picture {n}")] for n in range(4)])
    card = "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: text\n    dtype: string\n"
    card += "  splits:\n  - name: train\n    num_bytes: 1\n    num_examples: 4\n"
    card += "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n---\n"
    with HubServer() as server:
        server.publish_dataset("lab/tars", {path.name: path.read_bytes() for path in tars.iterdir()})
        files = {f"data/{path.name}": path.read_bytes() for path in parquet.iterdir()}
        server.publish_dataset("lab/parquet", files | {"README.md": card.encode()})
        folder = {f"train/{n}.png": png(n) for n in range(3)}
        lines = "".join(json.dumps({"file_name": f"{n}.png", "text": f"picture {n}"}) + "\n" for n in range(3))
        server.publish_dataset("lab/folder", folder | {"train/metadata.jsonl": lines.encode()})
        yield server


SCRIPT = """
import json
from itertools import islice
from test_streaming import as_they_are, number_of, stream
from torch.utils.data import DataLoader
for name, count in (("lab/tars", 6), ("lab/parquet", 4), ("lab/folder", 3)):
    source = stream(name)
    workers = 2 if name != "lab/folder" else 0
    loader = DataLoader(source, batch_size=1, num_workers=workers, collate_fn=as_they_are)
    told = [(number_of(row), row["captions"]) for (row,) in islice(loader, 2 * count)]
    print(json.dumps({"images": source.split.images, "rows": told}))
"""


def test_the_hub_is_streamed_and_nothing_of_it_is_kept(hub: HubServer, tmp_path: Path) -> None:
    environment = hub.environment(None, tmp_path / "home")
    folders = [str(CHECKOUT / "tests"), str(Path(__file__).parent)]
    (tmp_path / "script.py").write_text(f"import sys\nsys.path[:0] = {folders}\n{SCRIPT}")
    tars, parquet, folder = map(json.loads, run_script(tmp_path / "script.py", env=environment).splitlines())
    for told, count in ((tars, 6), (parquet, 4), (folder, 3)):
        assert Counter(number for number, _ in told["rows"]) == Counter(dict.fromkeys(range(count), 2))
        assert all(captions == [f"picture {number}"] for number, captions in told["rows"])
    assert (tars["images"], parquet["images"], folder["images"]) == (None, 4, None)
    kept = [path for path in (tmp_path / "home").rglob("*") if path.suffix in (".tar", ".parquet", ".arrow", ".png")]
    assert kept == []


def recipe(folder: Path, output_dir: Path, **keys: Any) -> Path:
    """A tiny model on a stream, without evaluations unless asked for."""
    own: Row = {
        "model_name_or_path": "tiny",
        "image_size": 48,
        "dataset_name": str(folder),
        "streaming": True,
        "shuffle_buffer_size": 4,
        "per_device_train_batch_size": 4,
        "dataloader_num_workers": 0,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "use_cpu": True,
        "output_dir": str(output_dir),
    }
    path = output_dir.with_suffix(".json")
    path.write_text(json.dumps(own | keys))
    return path


def read_state(folder: Path) -> Row:
    return json.loads((folder / "trainer_state.json").read_text())


def test_steps_must_be_known(tmp_path: Path) -> None:
    folder = write_tars(tmp_path / "tars", 2, 4)
    with pytest.raises(RecipeError, match="max_steps is missing"):
        main([str(recipe(folder, tmp_path / "run"))])
    assert not (tmp_path / "run").exists()


def test_epochs_are_steps_where_the_number_of_images_is_known(tmp_path: Path) -> None:
    keys: Row = {"output_dir": str(tmp_path), "per_device_train_batch_size": 8, "use_cpu": True}
    training = CaptionTrainingArguments(**keys, num_train_epochs=3, eval_strategy="epoch")
    plan_steps(training, 41)
    assert (training.max_steps, training.save_steps, training.eval_steps) == (18, 6, 6)
    assert (training.save_strategy, training.eval_strategy) == ("steps", "steps")
    with pytest.raises(RecipeError, match="dispatch_batches"):
        plan_steps(CaptionTrainingArguments(**keys, accelerator_config={"dispatch_batches": True}), 41)


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in read_state(folder)["log_history"] if "loss" in entry]


def test_a_run_goes_on_bit_for_bit_within_a_pass(tmp_path: Path) -> None:
    rows = [embedded(number + 10, captions=[f"picture {number}", "a picture"]) for number in range(26)]
    folder = write_parquet(tmp_path / "data", [rows[:7], rows[7:16], rows[16:]])
    save_captioner(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config["text_config"] |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    keys: Row = {"model_name_or_path": str(tmp_path / "base"), "image_size": None}
    keys |= {"max_steps": 10, "captions_per_image": 1, "gradient_accumulation_steps": 2}
    keys |= {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 5, "dataloader_num_workers": 3}
    # Eight batches before the checkpoint are no whole round of three workers.
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    main([str(recipe(folder, whole, **keys))])
    checkpoint = str(whole / "checkpoint-4")
    main([str(recipe(folder, resumed, **keys)), "--resume_from_checkpoint", checkpoint])
    expected, found = (load_file(run / "model.safetensors") for run in (whole, resumed))
    assert all(expected[name].equal(found[name]) for name in expected)
    assert losses(whole) == losses(resumed)
    assert [entry["epoch"] for entry in read_state(whole)["log_history"]][:10] == [n / 10 for n in range(1, 11)]
    for card in ((run / "README.md").read_text() for run in (whole, resumed)):
        assert "| 26 | 52 |" in card
        assert "| epochs, steps | 3.08, 10 |" in card
    other = recipe(folder, tmp_path / "other", **keys | {"dataloader_num_workers": 2})
    trained = tmp_path / "trained"
    main([str(recipe(folder, trained, **keys)), "--resume_from_checkpoint", str(whole / "checkpoint-10")])
    assert read_state(trained)["global_step"] == 10
    with pytest.raises(RecipeError, match="dataloader_num_workers"):
        main([str(other), "--resume_from_checkpoint", checkpoint])


def test_a_bad_row_stops_the_run_after_saving_and_once_repaired_it_goes_on(tmp_path: Path) -> None:
    rows = [embedded(number, text=f"picture {number}") for number in range(24)]
    whole = write_parquet(tmp_path / "whole", [rows])
    main([str(recipe(whole, tmp_path / "expected", max_steps=6))])
    torn = [row | ({"image": {"bytes": b"no", "path": "torn.png"}} if n == 17 else {}) for n, row in enumerate(rows)]
    broken = write_parquet(tmp_path / "broken", [torn])
    run = recipe(broken, tmp_path / "run", max_steps=6)
    with pytest.raises(RecipeError, match=r"shard 0, row 17 cannot be used: torn\.png"):
        main([str(run)])
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-4"]
    write_parquet(broken, [rows])
    main([str(run)])
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("expected", "run"))
    assert all(expected[name].equal(found[name]) for name in expected)


def test_two_processes_of_unequal_shares_wait_for_nobody_and_note_what_they_skip(tmp_path: Path) -> None:
    rows = [embedded(number, text=f"picture {number}") for number in range(23)]
    rows[3]["image"] = {"bytes": b"no", "path": "torn.png"}
    folder = write_parquet(tmp_path / "data", [rows[:3], rows[3:10], rows[10:]])
    run = tmp_path / "run"
    keys: Row = {"max_steps": 12, "on_bad_image": "skip", "train_split": "train"}
    done = run_checked("blip_recipe.finetune", recipe(folder, run, **keys), processes=2, timeout=200)
    assert read_state(run)["global_step"] == 12
    (line,) = (run / "skipped_rows.jsonl").read_text().splitlines()
    assert json.loads(line)["image_id"] == "shard 1, row 0"
    assert "Skipped" in done.stderr
    assert "| 22 | 22 |" in (run / "README.md").read_text()


def test_few_shards_are_warned_of_and_the_plan_says_what_is_streamed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_tars(tmp_path / "tars", 2, 4)
    main([str(recipe(folder, tmp_path / "run", max_steps=5)), "--dry_run"])
    assert "train   a stream of 2 shards with an unknown number of images" in capsys.readouterr().out
    main([str(recipe(folder, tmp_path / "run", max_steps=1, dataloader_num_workers=3))])
    assert "2 shards are fewer than 1 processes x 3 workers: each shard is read 2 times per epoch" in caplog.text


def test_images_are_held_out_of_a_stream_and_scored_ones_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = [[embedded(number, text=f"row {number}") for number in range(first, first + 20)] for first in (0, 20)]
    folder = write_parquet(tmp_path / "parquet", shards)
    shares: dict[str, Any] = {"validation_fraction": 0.2, "test_fraction": 0.3}
    trained = {number_of(row) for row in first_pass(stream(folder, **shares), 0)}
    arguments = CaptionDataArguments(dataset_name=str(folder), streaming=True, max_eval_samples=3, **shares)
    scored = load_splits(arguments)
    whole = load_splits(CaptionDataArguments(dataset_name=str(folder), **shares))
    held_out = {role: {int(text.split()[1]) for (text,) in rows["captions"]} for role, rows in whole.items()}
    assert trained == held_out["train"]
    for role in ("eval", "test"):
        assert scored[role]["captions"][:] == whole[role]["captions"][:3]
    assert sorted(n for each in held_out.values() for n in each) == list(range(40))
    first = whole["train"][0]
    source = stream(folder, **shares)
    source.split = replace(source.split, scored=frozenset([digest(first["image"]["bytes"])]))
    left = {row["captions"][0] for row in first_pass(source, 0)}
    assert left == {f"row {number}" for number in held_out["train"]} - {first["captions"][0]}
    assert "its picture is also in the evaluation or test split" in caplog.text
