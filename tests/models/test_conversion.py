"""Weights in the original's form become a model of transformers with the same outputs, to the bit."""

from __future__ import annotations

import copy
import json
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from captioners import CAPTIONS, draw_pictures
from retrievers import load_exactly
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering, pipeline

from blip_recipe import caption_pipeline
from blip_recipe.convert import main
from blip_recipe.errors import RecipeError
from blip_recipe.models.conversion import FORMS
from blip_recipe.models.processors import load_processor, save_processor
from blip_recipe.models.tiny import HEADS
from blip_recipe.pretraining.modeling import BlipForPretraining
from blip_recipe.recipe.arguments import TaskName
from blip_recipe.recipe.tasks import find_task
from blip_recipe.retrieval.modeling import BlipForRetrieval

HEAD_OPTIONS = ("--vision_heads", str(HEADS), "--text_heads", str(HEADS))

ORIGINAL = (
    (r"^vision_model\.embeddings\.class_embedding$", "visual_encoder.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm(\d)\.", r"visual_encoder.blocks.\1.norm\2."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.qkv\.", r"visual_encoder.blocks.\1.attn.qkv."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection\.", r"visual_encoder.blocks.\1.attn.proj."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.mlp\.", r"visual_encoder.blocks.\1.mlp."),
    (r"^vision_model\.post_layernorm\.", "visual_encoder.norm."),
)
"""The original's names (`models/vit.py`); those of the text networks (`models/med.py`) are the same."""


def original_name(name: str) -> str:
    """The original's name of a tensor of a stock class."""
    for stock, original in ORIGINAL:
        name, found = re.subn(stock, original, name)
        if found:
            break
    return name


def original_weights(stock: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a stock model under the original's names, with what else its files have."""
    weights = {original_name(name): values.clone() for name, values in stock.state_dict().items()}
    for part in ("text_encoder", "text_decoder.bert"):
        if f"{part}.embeddings.word_embeddings.weight" in weights:
            weights[f"{part}.embeddings.position_ids"] = torch.arange(512)[None]
    return weights


NAMES: list[TaskName] = ["captioning", "vqa", "retrieval"]
"""The tasks whose weights are converted."""


class Tiny:
    """A stock model of a task with its processor and its original weights, and the command line that converts them."""

    def __init__(self, task: TaskName, folder: Path) -> None:
        torch.manual_seed(0)
        ours, self.processor = find_task(task).build_tiny([*CAPTIONS, "a picture of", "what is it ?"], None)
        stock_class: Any = ours.stock_class
        self.model = stock_class(copy.deepcopy(ours.config)).eval()
        with torch.no_grad():
            for weights in self.model.parameters():
                weights.normal_(std=0.1)
        self.folder = folder
        save_processor(self.processor, folder / "tokenizer")

    def save(self, **more: Any) -> Path:
        """Save the weights as the original does, beside `more`; weights may be among them."""
        path = self.folder / "weights.pth"
        torch.save({"model": original_weights(self.model), "epoch": 4, **more}, path)
        return path

    def convert(self, source: Path, *words: str) -> Path:
        """Run the command."""
        target = self.folder / f"target-{len(list(self.folder.iterdir()))}"
        main([str(source), str(target), "--tokenizer", str(self.folder / "tokenizer"), *HEAD_OPTIONS, *words])
        return target


@pytest.fixture(params=NAMES)
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> Tiny:
    return Tiny(request.param, tmp_path)


@pytest.fixture
def captioner(tmp_path: Path) -> Tiny:
    return Tiny("captioning", tmp_path)


def outputs_of(model: Any, processor: Any) -> list[torch.Tensor]:
    """What a stock model computes for a picture and a text."""
    size = processor.image_processor.size["height"]
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    ids = processor.tokenizer(["a red square", "two cats"], return_tensors="pt", padding=True)
    with torch.no_grad():
        if isinstance(model, BlipForConditionalGeneration):
            return [
                model(pixel_values=pixels, **ids).logits,
                model.generate(pixels, max_length=12, num_beams=2, do_sample=False),
            ]
        if isinstance(model, BlipForQuestionAnswering):
            start = torch.full((2, 1), model.config.text_config.bos_token_id)
            return [
                model(pixel_values=pixels, decoder_input_ids=start, **ids).image_embeds,
                model.generate(pixel_values=pixels, max_length=8, num_beams=2, do_sample=False, **ids),
            ]
        return [model(pixel_values=pixels, use_itm_head=itm, **ids)[0] for itm in (True, False)]


def test_a_converted_model_is_the_stock_model_to_the_bit(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    target = tiny.convert(tiny.save())
    converted = load_exactly(type(tiny.model), target).eval()
    own, found = tiny.model.state_dict(), converted.state_dict()
    assert own.keys() == found.keys()
    assert all(own[name].equal(found[name]) for name in own)
    processor = load_processor(str(target))
    for before, after in zip(
        outputs_of(tiny.model, tiny.processor), outputs_of(converted, tiny.processor), strict=True
    ):
        assert before.equal(after)
    assert processor.tokenizer.get_vocab() == tiny.processor.tokenizer.get_vocab()
    vision, text = converted.config.vision_config, converted.config.text_config
    assert (vision.image_size, vision.patch_size, vision.layer_norm_eps) == (96, 48, 1e-6)
    assert (text.hidden_dropout_prob, text.eos_token_id) == (0.1, tiny.processor.tokenizer.sep_token_id)
    assert "position_ids" in capsys.readouterr().out


def test_a_converted_captioner_captions_in_plain_transformers_and_here(captioner: Tiny) -> None:
    target = captioner.convert(captioner.save(), "--prompt", "a picture of ")
    picture = draw_pictures(captioner.folder / "pictures", 1)[0]
    assert json.loads((target / "recipe.json").read_text()) == {"task": "captioning", "prompt": "a picture of "}
    here = caption_pipeline(str(target))(str(picture))[0]["generated_text"]
    there = pipeline("image-to-text", model=str(target))(str(picture))[0]["generated_text"]  # type: ignore[call-overload]
    assert isinstance(there, str)
    captioner.model.save_pretrained(captioner.folder / "before")
    save_processor(captioner.processor, captioner.folder / "before")
    (captioner.folder / "before/recipe.json").write_text((target / "recipe.json").read_text())
    assert here == caption_pipeline(str(captioner.folder / "before"))(str(picture))[0]["generated_text"]


def with_prefix(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {f"module.{name}": values for name, values in weights.items()}


def in_half(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: values.half() if values.is_floating_point() else values for name, values in weights.items()}


@pytest.mark.parametrize(
    ("change", "wrap"),
    [
        (with_prefix, "model"),
        (dict, "state_dict"),
        (dict, None),
    ],
    ids=["names of DistributedDataParallel", "another key", "tensors alone"],
)
def test_the_forms_that_other_programs_save_are_read(
    change: Callable[..., dict[str, Any]], wrap: str | None, captioner: Tiny
) -> None:
    weights = change(original_weights(captioner.model))
    path = captioner.folder / "other.pth"
    torch.save({wrap: weights} if wrap else weights, path)
    converted = load_exactly(BlipForConditionalGeneration, captioner.convert(path))
    assert all(values.equal(converted.state_dict()[name]) for name, values in captioner.model.state_dict().items())


def test_half_precision_becomes_single(captioner: Tiny) -> None:
    target = captioner.convert(captioner.save(model=in_half(original_weights(captioner.model))))
    weights = load_exactly(BlipForConditionalGeneration, target).state_dict()
    name = "text_decoder.bert.embeddings.word_embeddings.weight"
    assert weights[name].dtype == torch.float32
    assert weights[name].equal(captioner.model.state_dict()[name].half().float())


def pretrained(folder: Path) -> tuple[Tiny, dict[str, Any]]:
    """Weights with the parts of all tasks, as pretraining leaves them, momentum encoders and queues included."""
    parts = [Tiny(task, folder / task) for task in NAMES]
    weights: dict[str, torch.Tensor] = {}
    for part in parts:
        weights = original_weights(part.model) | weights
    averaged = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
    momentum = {
        name.replace(".", "_m.", 1): values for name, values in weights.items() if name.split(".")[0] in averaged
    }
    queues = {"image_queue": torch.zeros(8, 4), "text_queue": torch.zeros(8, 4), "idx_queue": torch.zeros(1, 4)}
    counters = {"queue_ptr": torch.zeros(1), "ptr_queue": torch.zeros(1), "temp": torch.tensor(0.03)}
    return parts[0], weights | momentum | queues | counters


@pytest.mark.parametrize("task", NAMES)
def test_pretrained_weights_have_several_tasks_of_which_one_is_asked_for(task: TaskName, tmp_path: Path) -> None:
    tiny, weights = pretrained(tmp_path)
    path = tmp_path / "pretrained.pth"
    torch.save({"model": weights}, path)
    with pytest.raises(RecipeError, match=r"Name one with --task: captioning or vqa or retrieval\."):
        tiny.convert(path)
    converted = load_exactly(find_task(task).trainer.model_class.stock_class, tiny.convert(path, "--task", task))
    for name, values in converted.state_dict().items():
        assert values.equal(weights[original_name(name)])


def test_pretraining_goes_on_from_all_that_the_original_pretrained(tmp_path: Path) -> None:
    tiny, weights = pretrained(tmp_path)
    # Encoder and decoder share all but self-attention (`tie_encoder_decoder_weights` in `models/blip_pretrain.py`).
    for name in [name for name in weights if name.startswith("text_encoder.") and ".attention." not in name]:
        weights[name] = weights[name.replace("text_encoder.", "text_decoder.bert.")]
    path = tmp_path / "pretrained.pth"
    torch.save({"model": weights}, path)
    target = tiny.convert(path, "--task", "captioning")
    words = ["--task", "retrieval", "--tokenizer", str(tiny.folder / "tokenizer"), *HEAD_OPTIONS]
    main([str(path), str(target / "matcher"), *words])
    model = BlipForPretraining.from_pretrained(target)
    assert (
        model.temperature.item()
        == BlipForRetrieval.from_pretrained(target / "matcher").temperature.item()
        == pytest.approx(0.03)
    )
    state = {name: values for name, values in model.state_dict().items() if name != "temperature"}
    assert {"text_encoder", "text_decoder", "itm_head", "text_proj"} <= {name.split(".")[0] for name in state}
    for name, values in state.items():
        assert values.equal(weights[original_name(name)]), name


def test_a_vocabulary_may_be_a_list_of_words(captioner: Tiny) -> None:
    vocabulary = captioner.processor.tokenizer.get_vocab()
    words = [word for word in sorted(vocabulary, key=vocabulary.get) if word not in ("[DEC]", "[ENC]")]
    (captioner.folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    target = captioner.convert(captioner.save(), "--tokenizer", str(captioner.folder / "vocab.txt"))
    texts = ["a picture of a small dog", "unheard of!"]
    found = load_processor(str(target)).tokenizer
    assert found(texts).input_ids == captioner.processor.tokenizer(texts).input_ids
    assert found.get_vocab() == vocabulary


Change = Callable[[dict[str, torch.Tensor]], object]


def drop(*names: str) -> Change:
    return lambda weights: [weights.pop(name) for name in names]


def put(name: str, *shape: int) -> Change:
    return lambda weights: weights.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop("visual_encoder.norm.weight", "visual_encoder.norm.bias"),
         r"2 are missing \(vision_model\.post_layernorm\.bias, vision_model\.post_layernorm\.weight\)"),
        (put("text_decoder.cls.predictions.extra", 3), r"1 are unknown \(text_decoder\.cls\.predictions\.extra\)"),
        (put("cls_head.0.weight", 2, 2), r"1 are unknown \(cls_head\.0\.weight\)"),
        (put("visual_encoder.norm.weight", 7),
         r"1 have another shape \(vision_model\.post_layernorm\.weight \(7 for 128\)\)"),
        (put("text_decoder.cls.predictions.decoder.bias", 10), "another shape"),
        (put("temp", 2), r"temp has the shape \(2,\): expected 0 dimensions"),
        (put("visual_encoder.pos_embed", 1, 7, 128), "pos_embed has 7 positions: expected a square"),
        (put("text_decoder.bert.embeddings.word_embeddings.weight", 7, 128),
         r"has [\d,]+ words .* the weights have 7:"),
        (drop("visual_encoder.patch_embed.proj.weight"), r"no visual_encoder\.patch_embed\.proj\.weight"),
        (lambda weights: weights["text_decoder.cls.predictions.bias"].add_(1), "has one tensor for both"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named(change: Change, says: str, captioner: Tiny) -> None:
    weights = original_weights(captioner.model)
    change(weights)
    with pytest.raises(RecipeError, match=says):
        captioner.convert(captioner.save(model=weights))
    assert not list(captioner.folder.glob("target*"))


def test_a_task_whose_parts_are_not_there_is_refused(captioner: Tiny) -> None:
    path = captioner.save()
    with pytest.raises(RecipeError, match="have no text_encoder, which a model for vqa needs"):
        captioner.convert(path, "--task", "vqa")
    torch.save({"model": {"encoder.weight": torch.zeros(2)}}, path)
    with pytest.raises(RecipeError, match=r"no visual_encoder among the 1 tensors \(encoder\.weight\)"):
        captioner.convert(path)
    torch.save({"model": {"visual_encoder.norm.weight": torch.zeros(2)}}, path)
    with pytest.raises(RecipeError, match="no task's model"):
        captioner.convert(path)


def test_heads_that_tensors_do_not_tell_are_asked_for(captioner: Tiny) -> None:
    words = [str(captioner.save()), str(captioner.folder / "out"), "--tokenizer", str(captioner.folder / "tokenizer")]
    with pytest.raises(RecipeError, match=r"A width of 128 is no multiple of 3: .* --text_heads"):
        main([*words, "--text_heads", "3"])
    main(words)
    config = BlipForConditionalGeneration.from_pretrained(captioner.folder / "out").config
    assert (config.text_config.num_attention_heads, config.vision_config.num_attention_heads) == (2, 2)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


def test_code_in_a_file_is_never_run(captioner: Tiny) -> None:
    touched = captioner.folder / "touched"
    for more in ({"config": Evil(touched)}, {"args": Namespace(lr=1)}):
        with pytest.raises(RecipeError, match=r"cannot be read: it has code \([\w.]+\), which is never run"):
            captioner.convert(captioner.save(**more))
    assert not touched.exists()


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "cannot be read"), (b"not a model", "not a file of torch.save"), (None, "No such file")]
)
def test_what_is_no_file_of_weights_is_said(content: bytes | None, says: str, captioner: Tiny) -> None:
    path = captioner.folder / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=says):
        captioner.convert(path)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"model": {"a": 1}}, {}, torch.zeros(1)])
def test_what_has_no_tensors_by_name_is_said(content: Any, captioner: Tiny) -> None:
    path = captioner.folder / "weights.pth"
    torch.save(content, path)
    with pytest.raises(RecipeError, match="no dictionary of tensors"):
        captioner.convert(path)


def test_a_directory_with_files_is_left_alone(captioner: Tiny) -> None:
    with pytest.raises(RecipeError, match="not empty"):
        main([str(captioner.save()), str(captioner.folder)])


def test_each_task_has_its_stock_class() -> None:
    assert {task: form.stock_class for task, form in FORMS.items()} == {
        task: find_task(task).trainer.model_class.stock_class for task in NAMES
    }
    assert FORMS["retrieval"].stock_class is BlipForImageTextRetrieval
