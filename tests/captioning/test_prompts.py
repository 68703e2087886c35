"""Rows with prompts of their own: they are read from every source, not learnt, and start the generated captions."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from captioners import save_captioner
from layouts import make_records

from blip_recipe.captioning.scst import ScstTrainer
from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.captioning.trainer import CaptionTrainer
from blip_recipe.captioning.training_arguments import CaptionTrainingArguments, ScstTrainingArguments
from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.load import load_split
from blip_recipe.data.shards import open_stream
from blip_recipe.data.streaming import CaptionStream
from blip_recipe.errors import RecipeError
from blip_recipe.evaluate import main as evaluate
from blip_recipe.finetune import main as finetune
from blip_recipe.models.text import IGNORED
from blip_recipe.training.caption_collator import CaptionCollator

PROMPTS = ["in one word:", "a picture of", ""]
CAPTIONS = {"in one word:": "square", "a picture of": "a red square on a blue ground", "": "two green circles"}

Row = dict[str, Any]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Two pictures, each with three prompts."""
    records = make_records(2, captions=1)
    return [
        {"image": {"bytes": record["content"], "path": None}, "captions": [CAPTIONS[prompt]], "prompt": prompt}
        for record in records
        for prompt in PROMPTS
    ]


def as_dataset(rows: list[Row]) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image(decode=False))


def trainer(model: Any, processor: Any, folder: Path, rows: list[Row], **given: Any) -> CaptionTrainer:
    quick: dict[str, Any] = {"use_cpu": True, "report_to": [], "save_strategy": "no", "augmentation": "none"}
    quick |= {"metrics": ["exact_match"], "generation_min_length": 1, "generation_max_length": 14}
    args = CaptionTrainingArguments(str(folder), **quick | given)
    table = as_dataset(rows)
    return CaptionTrainer(model, args, table, table, processing_class=processor)


@pytest.fixture(scope="module")
def small() -> tuple[Any, Any]:
    torch.manual_seed(0)
    return build_tiny_captioner([*CAPTIONS.values(), *PROMPTS])


def test_each_picture_is_described_as_its_prompt_asks(rows: list[Row], small: tuple[Any, Any], tmp_path: Path) -> None:
    own = trainer(*small, tmp_path, rows, max_steps=60, learning_rate=3e-3, per_device_train_batch_size=6)
    own.train()
    own.evaluate()
    assert [(each["prompt"], each["caption"]) for each in own.predictions] == [
        (prompt, CAPTIONS[prompt]) for _ in range(2) for prompt in PROMPTS
    ]
    card = own.create_model_card().read_text()
    assert "each image's own" in card
    assert "3 different, such as" in card


def test_loss_and_captions_are_those_of_a_run_for_each_prompt(rows: list[Row], tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, processor = build_tiny_captioner([*CAPTIONS.values(), *PROMPTS])
    together = trainer(model, processor, tmp_path, rows, per_device_eval_batch_size=4)
    loss = together.evaluate()["eval_loss"]
    captions = {
        prompt: [each["caption"] for each in together.predictions if each["prompt"] == prompt] for prompt in PROMPTS
    }
    total, tokens = 0.0, 0
    for prompt in PROMPTS:
        bare = [{**row, "image_id": number} for number, row in enumerate(rows) if row["prompt"] == prompt]
        alone = trainer(
            model, processor, tmp_path, [{k: v for k, v in row.items() if k != "prompt"} for row in bare], prompt=prompt
        )
        count = 2 * (len(processor.tokenizer(CAPTIONS[prompt]).input_ids) - 1)
        total, tokens = total + alone.evaluate()["eval_loss"] * count, tokens + count
        assert [each["caption"] for each in alone.predictions] == captions[prompt]
    assert loss == pytest.approx(total / tokens, abs=1e-6)


@pytest.mark.parametrize("packed", [True, False])
def test_prompts_are_not_predicted_in_either_form_of_a_batch(
    rows: list[Row], small: tuple[Any, Any], packed: bool
) -> None:
    tokenizer = small[1].tokenizer
    image = {} if packed else {"image": rows[0]["image"]}
    items = [{**row, "image": torch.zeros(3, 96, 96, dtype=torch.uint8), "row": 0, **image} for row in rows[:2]]
    if not packed:
        items = [{name: value for name, value in item.items() if name != "row"} for item in items]
    batch = CaptionCollator(small[1], packed=packed)(items)
    for ids, labels, row in zip(batch["input_ids"], batch["labels"], rows, strict=False):
        prompt, caption = (
            tokenizer(text, add_special_tokens=False).input_ids for text in (row["prompt"], row["captions"][0])
        )
        assert labels[labels != IGNORED].tolist() == [*caption, tokenizer.sep_token_id]
        assert ids[1 : 1 + len(prompt)].tolist() == prompt


def write_csv(rows: list[Row], folder: Path) -> None:
    for number, row in enumerate(rows):
        (folder / f"{number // 3}.png").write_bytes(row["image"]["bytes"])
    with (folder / "captions.csv").open("w", newline="") as file:
        lines = [[f"{number // 3}.png", row["captions"][0], row["prompt"]] for number, row in enumerate(rows)]
        csv.writer(file).writerows([["file_name", "text", "ask"], *lines])


def write_parquet(rows: list[Row], folder: Path) -> None:
    (folder / "data").mkdir()
    as_dataset(rows).rename_column("prompt", "ask").to_parquet(folder / "data/train-00000-of-00001.parquet")


def write_tar(rows: list[Row], folder: Path) -> None:
    with tarfile.open(folder / "train-0.tar", "w") as tar:
        for number, row in enumerate(rows):
            files = {"png": row["image"]["bytes"], "txt": row["captions"][0].encode(), "ask": row["prompt"].encode()}
            for extension, content in files.items():
                member = tarfile.TarInfo(f"{number}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("write", "streaming"),
    [(write_csv, False), (write_parquet, False), (write_parquet, True), (write_tar, False), (write_tar, True)],
)
def test_every_source_gives_the_same_prompts(rows: list[Row], tmp_path: Path, write: Any, streaming: bool) -> None:
    write(rows, tmp_path)
    data = CaptionDataArguments(str(tmp_path), prompt_column="ask", streaming=streaming)
    expected = [(row["image"]["bytes"], row["captions"], row["prompt"]) for row in rows]
    loaded = load_split(data, "train")
    assert [(row["captions"], row["prompt"]) for row in loaded] == [each[1:] for each in expected]
    assert len(set(loaded["image_id"])) == 6
    if streaming:
        stream = CaptionStream(
            open_stream(data),
            image_size=8,
            captions_per_image=None,
            normalize_captions=False,
            augmentation="none",
            seed=0,
            shuffle_buffer_size=1,
            on_bad_image="fail",
        )
        passed = [row for row, _ in zip(stream, range(6), strict=False)]
        assert [(row["captions"], row["prompt"]) for row in passed] == [each[1:] for each in expected]
        sample = open_stream(data).sample()
        assert sample["prompt"][:] == [each[2] for each in expected]


@pytest.mark.parametrize(
    ("change", "message"),
    {
        "no such column": ({"prompt_column": "asked"}, "has no column 'asked', which prompt_column names"),
        "no text": ({"prompt_column": "size"}, "prompt_column 'size' holds Value('int64'): expected text."),
        "two prompts of an id": (
            {"prompt_column": "ask", "image_id_column": "size"},
            "has two prompts for the image 7: 'in one word:' and 'a picture of'",
        ),
    }.values(),
)
@pytest.mark.parametrize("streaming", [False, True])
def test_columns_that_hold_no_prompts_are_refused(
    rows: list[Row], tmp_path: Path, change: Row, message: str, streaming: bool
) -> None:
    (tmp_path / "data").mkdir()
    table = as_dataset(rows).rename_column("prompt", "ask").add_column("size", [7] * 6)
    table.to_parquet(tmp_path / "data/train-00000-of-00001.parquet")
    data = CaptionDataArguments(str(tmp_path), streaming=streaming, **change)
    with pytest.raises(RecipeError) as error:
        list(open_stream(data).read(0)) if streaming else load_split(data, "train")
    assert message in str(error.value)


def test_a_column_of_prompts_beside_others_is_not_read(rows: list[Row], small: tuple[Any, Any], tmp_path: Path) -> None:
    plain = trainer(*small, tmp_path, [{**row, "seed": 1} for row in rows])
    assert not plain.train_dataset.has_prompts  # type: ignore[union-attr]


class Items(torch.utils.data.Dataset[Row]):
    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Row:
        return self.rows[row]


def test_torch_data_sets_and_streams_have_prompts_too(rows: list[Row], small: tuple[Any, Any], tmp_path: Path) -> None:
    args = CaptionTrainingArguments(str(tmp_path), use_cpu=True, report_to=[], max_steps=1, augmentation="none")
    own = CaptionTrainer(small[0], args, as_dataset(rows).to_iterable_dataset(), Items(rows), processing_class=small[1])
    batch = next(iter(own.get_train_dataloader()))
    assert (batch["labels"] == IGNORED).sum() > 0
    own.evaluate()
    assert [each["prompt"] for each in own.predictions] == PROMPTS * 2


def test_a_prompt_must_leave_room_for_a_caption(rows: list[Row], small: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="includes the prompt 'in one word:' of 5 tokens: raise it"):
        trainer(*small, tmp_path, rows, generation_max_length=5)


def test_self_critical_training_refuses_prompts(rows: list[Row], small: tuple[Any, Any], tmp_path: Path) -> None:
    args = ScstTrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    with pytest.raises(RecipeError, match="train_dataset has a prompt for each image"):
        ScstTrainer(small[0], args, as_dataset(rows), processing_class=small[1])


def test_a_recipe_names_the_column_and_evaluate_remembers_it(rows: list[Row], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_csv(rows, tmp_path / "data")
    keys: Row = {
        "model_name_or_path": str(save_captioner(tmp_path / "model")),
        "dataset_name": str(tmp_path / "data"),
        "prompt_column": "ask",
        "output_dir": str(tmp_path / "run"),
        "test_split": "train",
        "allow_shared_images": True,
        "max_steps": 1,
        "metrics": ["exact_match"],
        "use_cpu": True,
    }
    (tmp_path / "recipe.json").write_text(json.dumps(keys))
    finetune([str(tmp_path / "recipe.json")])
    lines = (tmp_path / "run/predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == PROMPTS * 2
    results = json.loads((tmp_path / "run/all_results.json").read_text())
    evaluate(
        [
            "--model",
            str(tmp_path / "run"),
            "--dataset_name",
            str(tmp_path / "data"),
            "--eval_split",
            "train",
            "--metrics",
            "exact_match",
            "--output_dir",
            str(tmp_path / "again"),
            "--use_cpu",
            "true",
        ]
    )
    again = json.loads((tmp_path / "again/all_results.json").read_text())
    assert again["eval_loss"] == pytest.approx(results["test_loss"], abs=1e-6)
    for change, message in (
        (["--prompt", "a photo of"], "prompt is 'a photo of' and prompt_column is 'ask': use only one of them."),
        (["--stage", "scst"], "stage is 'scst' and prompt_column is 'ask'"),
        (["--task", "retrieval", "--metrics", "recall"], "task is 'retrieval' and prompt_column is 'ask'"),
    ):
        with pytest.raises(RecipeError) as error:
            finetune([str(tmp_path / "recipe.json"), *change, "--output_dir", str(tmp_path / "refused")])
        assert message in str(error.value)
