"""Pictures reach the model as the stock image processor makes them, and training from a cache if one is asked for."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from commands import run_code
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw, ImageFilter
from transformers import BlipImageProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from blip_recipe.captioning.data import build_dataset
from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.captioning.trainer import CaptionTrainingArguments
from blip_recipe.data import images, resized_cache
from blip_recipe.data.dataset import CaptionDataset
from blip_recipe.data.images import BadImageError, open_image
from blip_recipe.data.pixels import normalize_pixels, read_pixels, resize_pixels
from blip_recipe.data.resized_cache import cache_folder, cache_resized_pictures, shorter_side
from blip_recipe.errors import RecipeError
from blip_recipe.models.processors import read_pixel_values
from blip_recipe.pretraining.trainer import PretrainTrainer
from blip_recipe.recipe.arguments import FinetuneOptions
from blip_recipe.recipe.parsing import read_recipe
from blip_recipe.retrieval.trainer import RetrievalTrainer
from blip_recipe.training.training_arguments import cores_of_this_process
from blip_recipe.vqa.trainer import VqaTrainer

SIZE = 48
"""Side of the pictures that the model sees here."""


def photograph(width: int = 300, height: int = 200, seed: int = 0) -> Image.Image:
    """Soft areas and edges, as in a photograph."""
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((width, height))
    ImageDraw.Draw(picture).ellipse((width // 5, height // 4, width // 2, height // 2), fill=(200, 30, 60))
    return picture.filter(ImageFilter.GaussianBlur(1))


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_rows(*pictures: bytes | str) -> Dataset:
    structs = [
        {"bytes": None, "path": each} if isinstance(each, str) else {"bytes": each, "path": None} for each in pictures
    ]
    return Dataset.from_dict(
        {"image": structs, "image_id": list(range(len(structs))), "captions": [["a caption"]] * len(structs)},
        features=Features(
            {"image": ImageFeature(decode=False), "image_id": Value("int64"), "captions": List(Value("string"))}
        ),
    )


def stock_pixel_values(content: bytes, image_processor: BlipImageProcessor) -> torch.Tensor:
    """What a user of transformers computes."""
    return image_processor([Image.open(io.BytesIO(content)).convert("RGB")], return_tensors="pt").pixel_values


@pytest.mark.parametrize("size", [(300, 200), (31, 97), (48, 48), (1, 1)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pixel_values_are_the_stock_processors(size: tuple[int, int], kind: str) -> None:
    content = encode(photograph(*size), kind)
    for image_processor in (
        BlipImageProcessor(size={"height": SIZE, "width": SIZE}),
        BlipImageProcessor(size={"height": 64, "width": 32}, image_mean=[0.5] * 3, image_std=[0.25] * 3, resample=2),
        BlipImageProcessor(size={"height": SIZE, "width": SIZE}, do_normalize=False),
    ):
        pixels = resize_pixels(read_pixels(content), image_processor)
        assert pixels.dtype == torch.uint8
        values = normalize_pixels(pixels[None], image_processor)
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, stock_pixel_values(content, image_processor), rtol=0, atol=1e-6)


def test_pixel_values_of_photographs_are_the_stock_processors(shared: Path) -> None:
    image_processor = BlipImageProcessor()
    for path in sorted((shared / "data/photos/test").glob("*.jpg")):
        values = read_pixel_values(path, image_processor)
        torch.testing.assert_close(values, stock_pixel_values(path.read_bytes(), image_processor), rtol=0, atol=1e-6)


@pytest.mark.parametrize("processor", [BlipImageProcessorPil(), BlipImageProcessor(do_resize=False)])
def test_pixel_values_of_other_processors_are_their_own(processor: Any) -> None:
    content = encode(photograph())
    expected = processor(open_image(content), return_tensors="pt").pixel_values
    assert torch.equal(read_pixel_values(content, processor), expected)


def test_floats_are_taken_for_normalised() -> None:
    values = torch.randn(2, 3, SIZE, SIZE)
    assert normalize_pixels(values, BlipImageProcessor()) is values


def same_pixels(content: bytes) -> bool:
    return bool((read_pixels(content).permute(1, 2, 0).numpy() == np.asarray(open_image(content))).all())


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", range(10))
def test_jpegs_are_decoded_upright_to_pillows_pixels(orientation: int, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert same_pixels(encode(photograph().convert(mode), exif=exif, subsampling=orientation % 3))


def test_progressive_jpegs_and_those_of_cameras_are_pillows_too() -> None:
    assert same_pixels(encode(photograph(), progressive=True))
    assert same_pixels(encode(photograph(), "MPO", save_all=True, append_images=[photograph(seed=1)]))


def test_odd_files_are_read_or_refused_as_pillow_does(shared: Path) -> None:
    for path in sorted((shared / "data/weird").iterdir()):
        if "10000" not in path.name:  # a picture of 100 megapixels is read, in seconds
            assert pixels_or_refusal(path, read_pixels) == pixels_or_refusal(path, to_upright_pixels), path.name


def to_upright_pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(open_image(path))).permute(2, 0, 1)


def pixels_or_refusal(path: Path, read: Callable[[Path], torch.Tensor]) -> list[Any] | str:
    try:
        return read(path).tolist()
    except BadImageError as refusal:
        return str(refusal)


def test_damaged_jpegs_are_read_or_refused_as_pillow_does() -> None:
    rng, whole = np.random.default_rng(0), encode(photograph())
    refused = 0
    for attempt in range(60):
        content = bytearray(whole[: rng.integers(2, len(whole))] if attempt % 2 else whole)
        content[rng.integers(len(content))] = rng.integers(256)
        try:
            open_image(bytes(content))
        except BadImageError:
            refused += 1
            with pytest.raises(BadImageError):
                read_pixels(bytes(content))
        else:
            assert same_pixels(bytes(content))
    assert refused > 20


WITHOUT_DECODER = """
import json, sys
import torchvision.io
del torchvision.io.decode_jpeg
from blip_recipe.data.pixels import read_pixels
print(json.dumps([read_pixels(path).tolist() for path in sys.argv[1:]]))
"""


def test_pillow_reads_jpegs_where_torchvision_no_longer_does(tmp_path: Path) -> None:
    paths = [tmp_path / f"{mode}.jpg" for mode in ("L", "RGB")]
    for path in paths:
        path.write_bytes(encode(photograph(30, 20).convert(path.stem)))
    done = run_code(WITHOUT_DECODER, *paths, cold=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [read_pixels(path).tolist() for path in paths]


def test_a_jpeg_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode(photograph())
    monkeypatch.setattr(images, "MAX_PIXELS", 300 * 200 - 1)
    with pytest.raises(BadImageError, match="300 x 200 pixels"):
        read_pixels(content[: len(content) // 2])


def test_any_number_of_workers_gives_the_same_pictures() -> None:
    dataset = CaptionDataset(
        make_rows(*(encode(photograph(seed=seed)) for seed in range(6))),
        image_size=SIZE,
        captions_per_image=None,
        normalize_captions=True,
        augmentation="blip",
        seed=0,
    )
    seen = [
        torch.cat([batch[0]["image"] for batch in torch.utils.data.DataLoader(dataset, num_workers=n, collate_fn=list)])
        for n in (0, 1, 3)
    ]
    assert seen[0].equal(seen[1])
    assert seen[0].equal(seen[2])


def test_without_a_gpu_the_cores_are_the_models_and_a_number_that_is_given_counts(tmp_path: Path) -> None:
    assert CaptionTrainingArguments(str(tmp_path), use_cpu=True).dataloader_num_workers == 0
    assert CaptionTrainingArguments(str(tmp_path), use_cpu=True, dataloader_num_workers=3).dataloader_num_workers == 3


def test_the_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = cores_of_this_process()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cores_of_this_process() == alone // 2


def test_workers_that_would_score_the_wrong_split_cannot_be_asked_for() -> None:
    words = ["shapes_tiny.json", "--dataloader_persistent_workers", "true"]
    with pytest.raises(RecipeError, match="no key 'dataloader_persistent_workers'"):
        read_recipe(FinetuneOptions, prog="", description="", recipe_needed=True, argv=words)


def test_large_pictures_are_kept_small_and_upright_and_others_read_where_they_are(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    side = shorter_side(SIZE)
    rows = make_rows(encode(photograph(), exif=exif), encode(photograph(side + 50, side)), encode(photograph(), "PNG"))
    kept = cache_resized_pictures(rows, SIZE, tmp_path)
    assert sorted(kept) == [0, 2]
    assert [Image.open(kept[row]).size for row in (0, 2)] == [(side, round(side * 1.5)), (round(side * 1.5), side)]
    for row in (0, 2):
        small, whole = (
            resize_pixels(read_pixels(source), BlipImageProcessor(size={"height": SIZE, "width": SIZE})).int()
            for source in (kept[row], rows[row]["image"])
        )
        assert (small - whole).abs().float().mean() < 2


def test_the_smallest_square_crop_of_training_is_not_enlarged() -> None:
    for image_size in (96, 224, 384):
        assert image_size <= shorter_side(image_size) * 0.5**0.5 < image_size + 1


def test_a_second_start_finds_what_the_first_has_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = make_rows(encode(photograph()), encode(photograph(seed=1)), encode(photograph()))
    with caplog.at_level(logging.INFO):
        kept = cache_resized_pictures(rows, SIZE, tmp_path)
    assert kept[0] == kept[2] != kept[1]
    assert f"3 of 3 pictures are read from {Path(kept[0]).parents[1]} (0.0 MiB)" in caplog.text
    written = {file: Path(file).stat().st_mtime_ns for file in kept.values()}
    assert cache_resized_pictures(rows, SIZE, tmp_path) == kept
    assert {file: Path(file).stat().st_mtime_ns for file in kept.values()} == written
    assert not set(cache_resized_pictures(rows, SIZE + 8, tmp_path).values()) & set(kept.values())


def test_processes_that_start_together_keep_each_picture_once(tmp_path: Path) -> None:
    contents = [encode(photograph(seed=seed)) for seed in range(8)]
    with ProcessPoolExecutor(2) as processes:
        found = [processes.submit(cache_resized_pictures, make_rows(*contents), SIZE, tmp_path) for _ in range(2)]
        first, second = (each.result() for each in found)
    assert first == second
    assert {str(path) for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"} == set(first.values())
    assert all(Image.open(file).size for file in first.values())


def test_a_full_disk_is_said_and_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resized_cache, "RESERVE", 2**60)
    with pytest.raises(RecipeError, match=r"image_cache: the disk of .* less than .* GiB left"):
        cache_resized_pictures(make_rows(encode(photograph())), SIZE, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RecipeError, match=r"image_cache: pictures cannot be written to .*file"):
        cache_resized_pictures(make_rows(encode(photograph())), SIZE, tmp_path / "file")


def test_only_training_reads_the_cache(tmp_path: Path) -> None:
    rows, processor = make_rows(encode(photograph(400, 300))), build_tiny_captioner(["a"], SIZE)[1]
    keys: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True, "augmentation": "none"}
    args = CaptionTrainingArguments(**keys, image_cache=str(tmp_path))
    train, test = (build_dataset(rows, args, processor, training=training)[0] for training in (True, False))
    assert test["image"].shape == (3, 300, 400)
    assert train["image"].shape[1] == shorter_side(SIZE)
    assert train["captions"] == test["captions"]
    plain = build_dataset(rows, CaptionTrainingArguments(**keys), processor, training=True)
    assert plain[0]["image"].shape == (3, 300, 400)


def test_true_is_the_cache_of_hugging_face_and_false_is_none() -> None:
    from huggingface_hub.constants import HF_HOME

    assert cache_folder("true") == Path(HF_HOME) / "blip_recipe" / "pictures"
    assert cache_folder("some/folder") == Path("some/folder")
    assert cache_folder("false") is cache_folder(None) is None


@pytest.mark.parametrize("trainer", [VqaTrainer, RetrievalTrainer, PretrainTrainer])
def test_training_of_other_tasks_reads_the_cache_too(trainer: Any, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True, "augmentation": "none"}
    rows: Any = make_rows(encode(photograph(400, 300)), encode(photograph(400, 300)))
    if trainer is VqaTrainer:
        rows = rows.remove_columns("captions").add_column("question", ["what", "where"])
        rows = rows.add_column("answers", [["a dog"], ["here"]])
    processor = build_tiny_captioner(["a"], SIZE)[1]
    args = trainer.arguments_class(**keys, image_cache=str(tmp_path))
    builder = SimpleNamespace(processor=processor)
    train, test = (
        trainer.build_dataset(builder, rows, args, training=training, name="rows")[0]["image"].shape
        for training in (True, False)
    )
    assert test == (3, 300, 400)
    assert min(train[1:]) == shorter_side(SIZE)
