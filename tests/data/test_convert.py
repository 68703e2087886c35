"""Data sets of people's own become rows of captions, or it is said what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value

from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.convert import caption_rows, shard_stream
from blip_recipe.data.images import open_image
from blip_recipe.data.load import load_split
from blip_recipe.data.shards import choose_columns
from blip_recipe.errors import RecipeError

PICTURE = {"bytes": b"", "path": None}


def make_table(cells: list[Any], feature: Any = None, **columns: Any) -> Dataset:
    features = {"image": Image(decode=False), "captions": feature or List(Value("string"))}
    features |= {name: Value("int64") for name in columns}
    pictures = [{"bytes": bytes([number]), "path": None} for number in range(len(cells))]
    table = {"image": pictures, "captions": cells, **columns}
    return Dataset.from_dict(table, features=Features(features))


def test_rows_of_recipes_are_taken_as_they_are() -> None:
    rows = load_split(CaptionDataArguments(dataset_name="shapes"), "validation", max_samples=3)
    taken = caption_rows(rows, "data")
    assert isinstance(taken, Dataset)
    assert taken.data.table.equals(rows.data.table)


def test_columns_of_our_names_and_types_are_cleaned_too() -> None:
    table = make_table([[None, " a "], ["b", "  "], ["c"]], image_id=[7, 8, 7]).with_format("torch")
    rows = caption_rows(table, "data")
    assert rows["image_id"][:] == [7, 8]
    assert rows["captions"][:] == [["a", "c"], ["b"]]


def test_captions_without_words_are_named() -> None:
    cells = [["a"], ["b", "!!! ..."], ["?"]]
    with pytest.raises(RecipeError, match=r"data row 1: its caption '!!! \.\.\.' has no word"):
        caption_rows(make_table(cells), "data")
    assert len(caption_rows(make_table([["a"], ["b?"], ["?"]]), "data")) == 3  # BLIP learns question marks


def test_a_text_with_line_breaks_is_several_captions() -> None:
    assert caption_rows(make_table(["a\nb"], Value("string")), "data")["captions"][:] == [["a", "b"]]


@pytest.mark.parametrize("nothing", [None, [], [None], ["  "]])
def test_rows_without_a_caption_are_named(nothing: Any) -> None:
    cells = [["a"], nothing, ["b"], nothing]
    with pytest.raises(RecipeError, match=r"data row 1: it has no caption\. .*cannot be used: 2\."):
        caption_rows(make_table(cells), "data")
    with pytest.raises(RecipeError, match="data image_id 6: it has no caption"):
        caption_rows(make_table(cells, image_id=[5, 6, 7, 8]), "data")
    rows = caption_rows([{"image": PICTURE, "captions": cell} for cell in cells], "data")
    with pytest.raises(RecipeError, match="data row 1: it has no caption"):
        rows[1]


def test_captions_that_are_all_none_are_not_called_unknown() -> None:
    with pytest.raises(RecipeError, match="data has no captions: 'captions' holds None"):
        caption_rows(make_table([None], Value("null")), "data")
    with pytest.raises(RecipeError, match="data has no captions: 'captions' holds None"):
        caption_rows([{"image": PICTURE, "captions": None}], "data")


@pytest.mark.parametrize("method", ["with_transform", "set_transform"])
def test_a_transform_is_refused_and_not_dropped(method: str) -> None:
    table = make_table([["a"]])
    transformed = getattr(table, method)(lambda batch: batch) or table
    with pytest.raises(RecipeError, match=r"data has a transform .*`dataset\.map`"):
        caption_rows(transformed, "data")


def generate() -> Iterator[dict[str, Any]]:
    yield {"image": PICTURE, "captions": ["a"]}


class Stream(torch.utils.data.IterableDataset[dict[str, Any]]):
    """A torch data set without a length."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return generate()


TABLE = make_table([["a"]])
NO_DATA_SETS = {
    "DatasetDict": (datasets.DatasetDict(train=TABLE, test=TABLE), "Choose one of its splits: train, test"),
    "dict": ({"train": TABLE}, "Choose one of its splits: train"),
    "str": ("nlphuji/flickr30k", "expected one split"),
    "generator": (generate(), "from_generator"),
    "DataFrame": (TABLE.to_pandas(), "from_pandas"),
    "Stream": (Stream(), "from_generator"),
    "int": (3, "expected one split"),
}


@pytest.mark.parametrize("name", NO_DATA_SETS)
def test_what_is_no_data_set_is_named(name: str) -> None:
    dataset, advice = NO_DATA_SETS[name]
    with pytest.raises(RecipeError, match=f"data is a {name}: .*{advice}"):
        caption_rows(dataset, "data")


@pytest.mark.parametrize("nothing", [[], Dataset.from_list([]), TABLE.select([])])
def test_a_data_set_without_rows_is_called_empty(nothing: Any) -> None:
    with pytest.raises(RecipeError, match="data is empty"):
        caption_rows(nothing, "data")


def test_several_columns_of_captions_may_be_dropped() -> None:
    table = make_table([["a"]]).add_column("text", ["b"])
    for read in (caption_rows, lambda each, where: shard_stream(each.to_iterable_dataset(), where)):
        with pytest.raises(RecipeError, match=r"several columns .*captions, text.*drop .*`dataset\.remove_columns`"):
            read(table, "data")


def test_items_of_a_torch_data_set_may_hold_tuples_structs_and_tensors() -> None:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    item = {"image": tensor, "captions": ("a", "b")}
    rows = caption_rows([item, {"image": tensor[:1], "captions": [{"raw": "c"}]}, {"image": tensor}, "text"], "data")
    assert rows[0]["captions"] == ["a", "b"]
    assert (np.asarray(open_image(rows[0]["image"])) == pixels).all()
    assert rows[1]["captions"] == ["c"]
    assert open_image(rows[1]["image"]).size == (5, 4)
    with pytest.raises(RecipeError, match="data row 2 has no 'captions'"):
        rows[2]
    with pytest.raises(RecipeError, match="data row 3 is a str"):
        rows[3]


def test_tensors_that_are_scaled_already_are_refused() -> None:
    rows = caption_rows([{"image": torch.zeros(3, 4, 5), "captions": "a"}], "data")
    with pytest.raises(RecipeError, match=r"data row 0: the picture is a tensor \(3, 4, 5\) of torch.float32"):
        rows[0]


def test_formatted_streams_are_read_plainly() -> None:
    stream = make_table([["a"]], image_id=[4]).to_iterable_dataset().with_format("torch")
    assert caption_rows(stream, "data")[0] == {
        "image": {"bytes": bytes([0]), "path": None},
        "image_id": 4,
        "captions": ["a"],
    }


def test_parts_of_a_sum_of_splits_need_the_same_columns() -> None:
    rows = Dataset.from_dict({"image": ["a.png"], "text": ["a dog"]})
    streams = [each.to_iterable_dataset() for each in (rows, rows.rename_column("text", "caption"))]
    arguments = CaptionDataArguments(dataset_name=".", train_split="train+restval")
    with pytest.raises(RecipeError, match=r"'train\+restval', has parts with different columns: one has no 'text'"):
        choose_columns(streams, arguments)
