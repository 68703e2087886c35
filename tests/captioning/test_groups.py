"""Groups of images are read from every source, and each is scored by itself."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from captioners import save_captioner
from datasets import ClassLabel, Dataset, Image, Value
from layouts import make_records

from blip_recipe import CaptionTrainer, CaptionTrainingArguments, score_captions
from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.load import load_split
from blip_recipe.errors import RecipeError
from blip_recipe.evaluate import main as evaluate
from blip_recipe.finetune import main as finetune
from blip_recipe.metrics.groups import name_groups

GROUPS = ["In-Domain", "out of domain", "In-Domain", "out of domain", "", "In-Domain"]
METRICS = ["bleu", "cider", "rouge_l"]

Row = dict[str, Any]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [
        {
            "image": {"bytes": record["content"], "path": None},
            "captions": ["a red square", f"picture {n}"],
            "domain": group,
        }
        for n, (record, group) in enumerate(zip(make_records(6, captions=1), GROUPS, strict=True))
    ]


def as_dataset(rows: list[Row]) -> Dataset:
    return Dataset.from_list(rows).cast_column("image", Image(decode=False))


def test_a_group_has_the_scores_of_its_images_as_a_set_of_their_own() -> None:
    captions: dict[int | str, str] = {
        7: "two dogs run",
        8: "a red bus",
        9: "a dog runs on grass",
        10: "men on a bench",
        11: "a red dog",
    }
    references: dict[int | str, list[str]] = {
        image_id: [text, f"{text} in the park", "a dog on grass"] for image_id, text in captions.items()
    }
    references |= {8: ["the bus is red", "a big bus"], 10: ["two men sit on a bench", "a park bench"]}
    groups: dict[int | str, str] = {7: "in-domain", 8: "out-domain", 9: "in-domain", 10: "out-domain", 11: ""}
    whole = score_captions(captions, references, METRICS, groups=groups)
    names = score_captions(captions, references, METRICS).corpus.keys()
    assert whole.corpus.keys() == names | {f"{name}_{end}" for name in names for end in ("in_domain", "out_domain")}
    for group, end in (("in-domain", "in_domain"), ("out-domain", "out_domain")):
        part = [image_id for image_id, each in groups.items() if each == group]
        alone = score_captions(
            {each: captions[each] for each in part}, {each: references[each] for each in part}, METRICS
        )
        assert {f"{name}_{end}": value for name, value in alone.corpus.items()}.items() <= whole.corpus.items()
    assert len({whole.corpus["cider"], whole.corpus["cider_in_domain"], whole.corpus["cider_out_domain"]}) == 3


def test_groups_need_names_that_can_be_told_apart_and_are_few() -> None:
    assert name_groups(["b", "A-1", "", "b", "大"], "data") == {"A-1": "a_1", "b": "b", "大": "大"}
    with pytest.raises(RecipeError, match="data has the group of images 'a 1', which has the score names of the group"):
        name_groups(["A-1", "a 1"], "data")
    with pytest.raises(RecipeError, match="the group of images '--', which has no letters or digits"):
        name_groups(["--"], "data")
    with pytest.raises(RecipeError, match="data has 51 groups of images, such as '0' and '1': expected at most 50"):
        name_groups(map(str, range(51)), "data")


def write_csv(rows: list[Row], folder: Path) -> None:
    for number, row in enumerate(rows):
        (folder / f"{number}.png").write_bytes(row["image"]["bytes"])
    with (folder / "captions.csv").open("w", newline="") as file:
        lines = [[f"{n}.png", text, row["domain"]] for n, row in enumerate(rows) for text in row["captions"]]
        csv.writer(file).writerows([["file_name", "text", "domain"], *lines])


def write_parquet(rows: list[Row], folder: Path) -> None:
    (folder / "data").mkdir()
    as_dataset(rows).to_parquet(folder / "data/train-00000-of-00001.parquet")


def write_coco(rows: list[Row], folder: Path) -> None:
    images: list[Row] = []
    annotations: list[Row] = []
    for number, row in enumerate(rows):
        (folder / f"{number}.png").write_bytes(row["image"]["bytes"])
        images.append({"id": number, "file_name": f"{number}.png", "domain": row["domain"]})
        annotations += [{"image_id": number, "id": 0, "caption": text} for text in row["captions"]]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))


def write_tar(rows: list[Row], folder: Path) -> None:
    with tarfile.open(folder / "train-0.tar", "w") as tar:
        for number, row in enumerate(rows):
            files = {"png": row["image"]["bytes"], "txt": "\n".join(row["captions"]).encode()}
            for extension, content in (files | {"domain": row["domain"].encode()}).items():
                member = tarfile.TarInfo(f"{number}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("write", [write_csv, write_parquet, write_coco, write_tar])
def test_every_source_gives_the_same_groups(rows: list[Row], tmp_path: Path, write: Any, streaming: bool) -> None:
    write(rows, tmp_path)
    name = tmp_path / "captions.json" if write is write_coco else tmp_path
    loaded = load_split(CaptionDataArguments(str(name), group_column="domain", streaming=streaming), "train")
    assert [(row["captions"], row["group"]) for row in loaded] == [(row["captions"], row["domain"]) for row in rows]


@pytest.mark.parametrize(("feature", "names"), [(Value("int8"), "0 1 2"), (ClassLabel(names=["x", "y", "z"]), "x y z")])
@pytest.mark.parametrize("streaming", [False, True])
def test_integers_and_class_labels_are_groups(
    rows: list[Row], tmp_path: Path, feature: Any, names: str, streaming: bool
) -> None:
    (tmp_path / "data").mkdir()
    table = as_dataset([{**row, "kind": n % 3} for n, row in enumerate(rows)]).cast_column("kind", feature)
    table.to_parquet(tmp_path / "data/train-00000-of-00001.parquet")
    loaded = load_split(CaptionDataArguments(str(tmp_path), group_column="kind", streaming=streaming), "train")
    assert loaded["group"][:] == names.split() * 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"group_column": "area"}, "has no column 'area', which group_column names"),
        ({"group_column": "size"}, "group_column 'size' holds Value('float64'): expected text, integers or class"),
        ({"group_column": "domain", "image_id_column": "one"}, "has two groups for the image 7: 'In-Domain' and"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_columns_that_hold_no_groups_are_refused(
    rows: list[Row], tmp_path: Path, keys: Row, message: str, streaming: bool
) -> None:
    (tmp_path / "data").mkdir()
    table = as_dataset(rows).add_column("size", [0.5] * 6).add_column("one", [7] * 6)
    table.to_parquet(tmp_path / "data/train-00000-of-00001.parquet")
    with pytest.raises(RecipeError) as error:
        load_split(CaptionDataArguments(str(tmp_path), streaming=streaming, **keys), "train")
    assert message in str(error.value)


def test_a_recipe_scores_groups_and_its_card_shows_them(
    rows: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    write_csv(rows, tmp_path / "data")
    keys: Row = {
        "model_name_or_path": str(save_captioner(tmp_path / "model")),
        "dataset_name": str(tmp_path / "data"),
        "group_column": "domain",
        "output_dir": str(tmp_path / "run"),
        "test_split": "train",
        "allow_shared_images": True,
        "max_steps": 1,
        "metrics": ["rouge_l"],
        "use_cpu": True,
    }
    (tmp_path / "recipe.json").write_text(json.dumps(keys))
    finetune([str(tmp_path / "recipe.json")])
    lines = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    assert [line["group"] for line in lines] == GROUPS
    results = json.loads((tmp_path / "run/all_results.json").read_text())
    for group, end in (("In-Domain", "in_domain"), ("out of domain", "out_of_domain")):
        part = [line["scores"]["rouge_l"] for line in lines if line["group"] == group]
        assert results[f"test_rouge_l_{end}"] == pytest.approx(sum(part) / len(part))
        assert f"baseline_rouge_l_{end}" in results
        card = (tmp_path / "run/README.md").read_text()
        assert f"| ROUGE-L of {end} | {results[f'baseline_rouge_l_{end}']:.4f} (" in card
    capsys.readouterr()
    options = ["--model", str(tmp_path / "run"), "--eval_split", "train", "--output_dir", str(tmp_path / "again")]
    evaluate([str(tmp_path / "recipe.json"), *options])
    assert "rouge_l_out_of_domain " in capsys.readouterr().out
    unscored = {
        key: value for key, value in keys.items() if key not in ("test_split", "allow_shared_images", "metrics")
    }
    for refused, message in (
        (unscored, "group_column is 'domain', but eval_split is null and test_split is null"),
        (keys | {"task": "retrieval", "metrics": ["recall"]}, "task is 'retrieval' and group_column is 'domain'"),
    ):
        (tmp_path / "refused.json").write_text(json.dumps(refused))
        with pytest.raises(RecipeError) as error:
            finetune([str(tmp_path / "refused.json"), "--output_dir", str(tmp_path / "refused")])
        assert message in str(error.value)


@pytest.mark.parametrize("drops", [False, True])
def test_a_trainer_scores_groups_and_never_drops_a_batch_of_evaluation(
    rows: list[Row], tmp_path: Path, drops: bool
) -> None:
    table = as_dataset(rows).rename_column("domain", "group")
    args = CaptionTrainingArguments(
        str(tmp_path / "run"),
        use_cpu=True,
        report_to=[],
        metrics=["rouge_l"],
        per_device_eval_batch_size=4,
        dataloader_drop_last=drops,
    )
    trainer = CaptionTrainer(str(save_captioner(tmp_path / "model")), args, table, table)
    results = trainer.evaluate()
    assert [each["group"] for each in trainer.predictions] == GROUPS
    assert {"eval_rouge_l", "eval_rouge_l_in_domain", "eval_rouge_l_out_of_domain"} <= results.keys()
    assert args.dataloader_drop_last == drops
