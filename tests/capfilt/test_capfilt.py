"""CapFilt keeps, of every picture, the texts that the filter thinks match, and tells of all that it judged."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run_checked, run_module
from hub_server import HubServer
from transformers import BlipForImageTextRetrieval, TopKLogitsWarper, TopPLogitsWarper
from web_data import (
    SHAPES,
    jpeg,
    read_judged,
    save_models,
    tree,
    web_rows,
    write_folder,
    write_parquet,
    write_tars,
)

from blip_recipe.capfilt import source as source_room
from blip_recipe.capfilt.__main__ import main
from blip_recipe.capfilt.arguments import read_arguments
from blip_recipe.capfilt.judging import load_model, score_texts
from blip_recipe.captioning.sampling import NucleusSampler
from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.captions import normalize_caption
from blip_recipe.data.load import load_split
from blip_recipe.errors import RecipeError
from blip_recipe.retrieval.modeling import BlipForRetrieval
from blip_recipe.runtime.scores import picture_uniforms

ROWS = web_rows(12)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def run(models: dict[str, str], tmp_path: Path) -> Callable[..., Path]:
    """Runs the command on a data set in this process; gives the output directory."""

    def run(dataset: Path, name: str = "out", **keys: Any) -> Path:
        recipe = tmp_path / "recipe.json"
        output = tmp_path / name
        settings = {"batch_size": 3, "filter_threshold": THRESHOLD, "dataset_name": str(dataset)}
        recipe.write_text(json.dumps(models | settings | keys))
        main([str(recipe), "--output_dir", str(output)])
        return output

    return run


THRESHOLD = 0.5


def load(dataset: Path) -> list[dict[str, Any]]:
    """What training reads of a data set, without further keys."""
    return list(load_split(CaptionDataArguments(dataset_name=str(dataset)), "train"))


@pytest.mark.parametrize("shape", SHAPES)
def test_kept_texts_are_trained_on_without_further_keys(shape: str, tmp_path: Path, run: Callable[..., Path]) -> None:
    output = run(SHAPES[shape](tmp_path / shape, ROWS, 5))
    judged = read_judged(output)
    assert {True, False} == {row["kept"] for row in judged}
    expected: dict[bytes, list[str]] = {}
    # An imagefolder is one shard.
    of_shard = len(ROWS) if shape == "folder" else 5
    for row in judged:
        assert row["kept"] == (row["score"] >= THRESHOLD)
        shard = 0 if shape == "folder" else int(row["source_shard"].split("-")[1].split(".")[0])
        if row["kept"]:
            expected.setdefault(ROWS[of_shard * shard + row["source_row"]][0], []).append(row["text"])
    read = load(output / "data")
    assert {row["image"]["bytes"]: row["captions"] for row in read} == expected
    assert [row["image"]["bytes"] for row in read] == list(expected)
    web = [row["text"] for row in judged if row["kind"] == "web"]
    assert web == [text for _, texts in ROWS for text in texts]
    assert sum(row["kind"] == "synthetic" for row in judged) == len(ROWS)


def test_all_shapes_are_judged_alike(tmp_path: Path, run: Callable[..., Path]) -> None:
    judged = [read_judged(run(write(tmp_path / shape, ROWS, 6), f"out-{shape}")) for shape, write in SHAPES.items()]
    for other in judged[1:]:
        assert [(row["kind"], row["text"]) for row in other] == [(row["kind"], row["text"]) for row in judged[0]]
        assert [row["score"] for row in other] == pytest.approx([row["score"] for row in judged[0]], abs=2e-6)


def test_tars_keep_pictures_untouched_and_tell_where_they_come_from(tmp_path: Path, run: Callable[..., Path]) -> None:
    output = run(write_tars(tmp_path / "tars", ROWS, 5))
    judged = {(row["source_shard"], row["source_row"], row["kind"], row["text"]): row for row in read_judged(output)}
    found = 0
    for shard, path in enumerate(sorted((output / "data").glob("*.tar"))):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name in (name for name in members if name.endswith(".json")):
            facts, key = json.loads(members[name]), name.removesuffix(".json")
            assert members[f"{key}.jpg"] == ROWS[5 * shard + facts["source_row"]][0]
            assert members[f"{key}.txt"].decode().split("\n") == facts["captions"]
            assert facts["source_shard"] == f"web-{shard:03}.tar"
            assert facts["source_name"] == f"{facts['source_row']:05}.jpg"
            for text, kind, score in zip(facts["captions"], facts["kinds"], facts["scores"], strict=True):
                row = judged[facts["source_shard"], facts["source_row"], kind, text]
                assert row["kept"]
                assert row["score"] == score
                found += 1
    assert found == sum(row["kept"] for row in judged.values())


def test_results_count_what_was_judged(tmp_path: Path, run: Callable[..., Path]) -> None:
    output = run(write_parquet(tmp_path / "parquet", ROWS, 5), num_generations=2)
    results, judged = json.loads((output / "all_results.json").read_text()), read_judged(output)
    for kind in ("web", "synthetic"):
        kept = [row["kept"] for row in judged if row["kind"] == kind]
        assert results[f"{kind}_judged"] == len(kept)
        assert results[f"{kind}_kept"] == sum(kept)
        assert results[f"{kind}_kept_rate"] == pytest.approx(sum(kept) / len(kept))
    assert results["images"] == len(ROWS)
    assert results["images_kept"] == len(load(output / "data"))


def test_captions_belong_to_the_picture_and_not_to_the_batch(tmp_path: Path, run: Callable[..., Path]) -> None:
    def captions(output: Path) -> list[str]:
        return [row["text"] for row in read_judged(output) if row["kind"] == "synthetic"]

    one = captions(run(write_parquet(tmp_path / "one", ROWS, 12), "a", batch_size=5))
    assert captions(run(write_parquet(tmp_path / "many", ROWS, 2), "b", batch_size=1)) == one
    assert captions(run(tmp_path / "one", "c", seed=7)) != one
    backwards = captions(run(write_parquet(tmp_path / "backwards", ROWS[::-1], 4), "d"))
    assert backwards[::-1] == one
    assert len(set(one)) > 1


def test_the_first_samples_do_not_depend_on_their_number() -> None:
    few, many = (picture_uniforms(b"picture", 3, count, 20) for count in (2, 5))
    assert np.array_equal(few, many[:2])
    assert not np.array_equal(few, picture_uniforms(b"picture", 4, 2, 20))
    assert not np.array_equal(few, picture_uniforms(b"another", 3, 2, 20))
    assert len(np.unique(many)) > 95


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (5, 0.9), (3, 1.0), (0, 1.0), (0, 0.05)])
def test_tokens_come_from_the_nucleus_as_often_as_they_are_likely(top_k: int, top_p: float) -> None:
    torch.manual_seed(0)
    logits, draws = 2 * torch.randn(12), 20_000
    ids = torch.zeros((1, 1), dtype=torch.long)
    expected = logits[None].clone()
    if top_k:
        expected = TopKLogitsWarper(top_k)(ids, expected)  # type: ignore[arg-type,assignment]
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(ids, expected)  # type: ignore[arg-type,assignment]
    uniforms = np.random.default_rng(0).random((draws, 1), dtype=np.float32)
    chosen = NucleusSampler(uniforms, top_k=top_k, top_p=top_p)(ids, logits.expand(draws, -1))  # type: ignore[arg-type]
    assert ((chosen == 0).sum(1) == 1).all()
    frequencies = (chosen == 0).float().mean(0)
    probabilities = expected.softmax(1)[0]
    assert (frequencies[probabilities == 0] == 0).all()
    # Four standard deviations of a frequency.
    torch.testing.assert_close(frequencies, probabilities, rtol=0, atol=4 * (0.25 / draws) ** 0.5)


def test_the_largest_random_number_still_chooses_a_token_of_the_nucleus() -> None:
    largest = np.full((1, 1), np.float32(1) - np.float32(2**-24))
    logits = torch.tensor([[0.0, 3.0, -40.0, 1.0]])
    chosen = NucleusSampler(largest, top_k=0, top_p=0.9)(torch.zeros((1, 1), dtype=torch.long), logits)  # type: ignore[arg-type]
    assert chosen.argmax() == 3


def test_scores_are_those_of_the_stock_model(models: dict[str, str]) -> None:
    name = models["filter_name_or_path"]
    model, processor, _ = load_model("filter_name_or_path", name, BlipForRetrieval, dtype=torch.float32)
    stock = BlipForImageTextRetrieval.from_pretrained(name).eval()
    torch.manual_seed(0)
    pixels = torch.randn(4, 3, 96, 96)
    texts = [["A red square."], [], ["two green circles", "a small dog", "cats"], ["three yellow cats"]]
    scores = score_texts(model, processor, pixels, texts, normalize=True)
    assert list(map(len, scores)) == [1, 0, 3, 1]
    encoder = processor.tokenizer.convert_tokens_to_ids("[ENC]")
    for image, own in enumerate(texts):
        for text, score in zip(own, scores[image], strict=True):
            ids = processor.tokenizer(normalize_caption(text), return_tensors="pt").input_ids
            ids[:, 0] = encoder
            with torch.no_grad():
                logits = stock(ids, pixels[image : image + 1]).itm_score
            assert score == pytest.approx(logits.softmax(1)[0, 1].item(), abs=1e-5)


def test_without_generations_only_found_texts_are_judged(tmp_path: Path, run: Callable[..., Path]) -> None:
    output = run(write_tars(tmp_path / "tars", ROWS, 6), num_generations=0, captioner_name_or_path="nobody/nothing")
    assert {row["kind"] for row in read_judged(output)} == {"web"}
    assert json.loads((output / "all_results.json").read_text())["synthetic_judged"] == 0


def test_a_picture_without_a_text_is_written_for(tmp_path: Path, run: Callable[..., Path]) -> None:
    rows = [(jpeg(0), []), (jpeg(1), ["  a \t red   square ", "***", "a red square"]), (jpeg(2), ["..."])]
    output = run(write_parquet(tmp_path / "parquet", rows, 3), filter_threshold=0.0)
    judged = read_judged(output)
    assert [row["text"] for row in judged if row["kind"] == "web"] == ["a red square"]
    assert sum(row["kind"] == "synthetic" for row in judged) == 3
    assert all(row["kept"] for row in judged)


@pytest.mark.parametrize("shape", SHAPES)
def test_only_the_first_images_are_taken(shape: str, tmp_path: Path, run: Callable[..., Path]) -> None:
    output = run(SHAPES[shape](tmp_path / shape, ROWS, 3), max_samples=7, filter_threshold=0.0)
    assert [row["image"]["bytes"] for row in load(output / "data")] == [content for content, _ in ROWS[:7]]


def test_an_imagefolder_is_done_in_parts(
    tmp_path: Path, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_room, "FOLDER_SHARD", 5)
    output = run(write_folder(tmp_path / "folder", ROWS), filter_threshold=0.0)
    assert len(list((output / "data").iterdir())) == 3
    assert [row["image"]["bytes"] for row in load(output / "data")] == [content for content, _ in ROWS]


def test_a_finished_run_does_nothing_again(tmp_path: Path, run: Callable[..., Path]) -> None:
    data = write_tars(tmp_path / "tars", ROWS, 4)
    output = run(data)
    before, times = tree(output), {path: path.stat().st_mtime_ns for path in (output / "data").iterdir()}
    run(data, batch_size=2)
    assert tree(output) == before
    assert {path: path.stat().st_mtime_ns for path in (output / "data").iterdir()} == times


def test_another_recipe_or_other_data_are_refused(tmp_path: Path, run: Callable[..., Path]) -> None:
    data = write_tars(tmp_path / "tars", ROWS, 4)
    output = run(data)
    before = tree(output)
    with pytest.raises(RecipeError, match=r"another recipe.*filter_threshold \(was 0\.5, is 0\.6\)"):
        run(data, filter_threshold=0.6)
    (data / "web-001.tar").rename(data / "web-009.tar")
    with pytest.raises(RecipeError, match="its shards have changed"):
        run(data)
    assert tree(output) == before


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"filter_treshold": 0.5}, "Did you mean 'filter_threshold'"),
        ({"filter_threshold": 1.5}, "filter_threshold is 1.5: expected a probability"),
        ({"top_p": 0}, "top_p is 0"),
        ({"temperature": 0}, "temperature is 0"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1"),
        ({"min_length": 30}, "min_length is 30 and max_length 20"),
        ({"dataset_name": "shapes"}, "expected a Hub id or a directory"),
        ({"split": "test"}, "no split 'test'"),
        ({"image_column": "picture"}, "no column 'picture'"),
        ({"on_bad_image": "ignore"}, "on_bad_image"),
        (
            {"filter_name_or_path": "{captioner}"},
            "filter_name_or_path is .*BlipForConditionalGeneration: expected",
        ),
        ({"prompt": "a picture " * 20}, "max_length is 20, but the prompt"),
    ],
)
def test_what_cannot_be_done_is_said(
    keys: dict[str, Any], message: str, tmp_path: Path, models: dict[str, str], run: Callable[..., Path]
) -> None:
    captioner = models["captioner_name_or_path"]
    keys = {key: value if value != "{captioner}" else captioner for key, value in keys.items()}
    with pytest.raises(RecipeError, match=message):
        run(**({"dataset": write_tars(tmp_path / "tars", ROWS[:2], 2)} | keys))


def test_shards_of_the_hub_have_their_place_in_it_as_their_name(
    tmp_path: Path, models: dict[str, str], hub: HubServer
) -> None:
    data = write_parquet(tmp_path / "parquet", ROWS, 6)
    files = {f"data/train-{number:05}-of-00002.parquet": path for number, path in enumerate(sorted(data.iterdir()))}
    hub.publish_dataset("lab/web", files)
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(models | {"dataset_name": "lab/web", "batch_size": 6}))
    run_checked("blip_recipe.capfilt", recipe, "--output_dir", tmp_path / "out", env=hub.environment())
    judged = read_judged(tmp_path / "out")
    assert list(dict.fromkeys(row["source_shard"] for row in judged)) == list(files)
    assert [row["text"] for row in judged if row["kind"] == "web"] == [text for _, texts in ROWS for text in texts]


@pytest.mark.parametrize("name", ["shapes_capfilt", "capfilt_web"])
def test_recipes_that_travel_with_the_package_are_sound(name: str) -> None:
    arguments = read_arguments([f"recipes/{name}.json"])
    assert arguments.output_dir == f"outputs/{name}"
    assert arguments.filter_threshold == 0.5


def test_output_and_data_may_not_lie_in_each_other(tmp_path: Path, run: Callable[..., Path]) -> None:
    data = write_tars(tmp_path / "tars", ROWS[:2], 2)
    for name in ("tars/out", ".", "tars"):
        with pytest.raises(RecipeError, match="one lies in the other"):
            run(data, name)


def test_help_and_a_missing_recipe() -> None:
    shown = run_module("blip_recipe.capfilt", "--help")
    assert shown.returncode == 0
    assert "--filter_threshold" in shown.stdout
    wrong = run_module("blip_recipe.capfilt", "recipes/nothing.json")
    assert wrong.returncode == 2
    assert "There is no recipe" in wrong.stderr


class Page(HTMLParser):
    """Notes the tags of a page, their attributes, and the texts in `<bdi>`."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.sources: set[str] = set()
        self.texts: list[str] = []
        self.within = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.sources |= {str(value)[:23] for name, value in attrs if name in ("src", "href")}
        if tag == "bdi":
            self.within = True
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.within = self.within and tag != "bdi"

    def handle_data(self, data: str) -> None:
        if self.within:
            self.texts[-1] += data


def test_hostile_captions_are_text_in_the_report(tmp_path: Path, run: Callable[..., Path]) -> None:
    hostile = [
        "<script>alert(1)</script> dog",
        '"><img src=x onerror="alert(1)">',
        "</bdi></div><iframe src='javascript:alert(1)'>",
        "{{ 7 * 7 }} {% raw %} &lt;b&gt; \u202egod",
        "</style><svg onload=alert(1)>",
    ]
    rows = [(jpeg(number), [text]) for number, text in enumerate(hostile)]
    output = run(write_parquet(tmp_path / "parquet", rows, 5), filter_threshold=0.0)
    page = Page()
    page.feed((output / "report.html").read_text())
    assert set(hostile) <= set(page.texts)
    assert not page.tags & {"script", "iframe", "object", "link", "base", "form", "a"}
    assert not any(name.startswith("on") for name in page.attributes)
    assert page.sources == {"data:image/jpeg;base64,"}
    assert "http" not in "".join(page.sources)
    assert load(output / "data")[0]["captions"][0] == hostile[0]
