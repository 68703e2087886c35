"""The memory of a step is found by tracing it, and agrees with what the step really keeps."""

from __future__ import annotations

import gc
import re
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F

from blip_recipe.captioning.modeling import BlipForCaptioning
from blip_recipe.captioning.scst import ScstTrainer
from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.captioning.trainer import CaptionTrainer, CaptionTrainingArguments
from blip_recipe.finetune import main
from blip_recipe.models.adapters import add_lora, lora_config
from blip_recipe.models.arguments import ModelArguments
from blip_recipe.models.matching import tokenize_texts
from blip_recipe.models.momentum import MomentumState
from blip_recipe.pretraining.tiny import build_tiny_pretrained
from blip_recipe.pretraining.trainer import PretrainTrainer
from blip_recipe.recipe.arguments import FinetuneOptions
from blip_recipe.recipe.parsing import Recipe, read_recipe
from blip_recipe.retrieval.tiny import build_tiny_retriever
from blip_recipe.retrieval.trainer import RetrievalTrainer
from blip_recipe.training.memory import (
    activation_bytes,
    caption_step,
    choose_checkpointing,
    estimate_peak_bytes,
    weight_bytes,
)
from blip_recipe.vqa.collator import AnswerCollator
from blip_recipe.vqa.modeling import BlipForAnswering
from blip_recipe.vqa.tiny import build_tiny_answerer
from blip_recipe.vqa.trainer import VqaTrainer
from blip_recipe.vqa.training_arguments import VqaTrainingArguments

if TYPE_CHECKING:
    from blip_recipe.training.memory import Step

IMAGES, TOKENS = 8, 24
STEP = caption_step(IMAGES, TOKENS)


def build(kind: str) -> BlipForCaptioning:
    torch.manual_seed(0)
    model, _ = build_tiny_captioner(["a red circle"], image_size=384)
    model.use_sdpa().train()
    if kind == "frozen":
        model.vision_model.requires_grad_(False)
    config = lora_config(ModelArguments(use_peft=kind == "lora", model_name_or_path="base"))
    return add_lora(model, config) if config else model  # type: ignore[return-value]


def kept_by(model: Any, batch: dict[str, Any], bf16: bool = False) -> int:
    """Bytes of what autograd keeps for the gradient of a step, weights not counted, and the gradient of logits."""
    own = {weight.untyped_storage().data_ptr() for weight in [*model.parameters(), *model.buffers()]}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", enabled=bf16):
        outputs, of_logits = model(**batch), 0
        if "logits" in outputs:
            logits = outputs.logits.flatten(0, 1)
            targets = torch.zeros(len(logits), dtype=torch.int64)
            loss, of_logits = F.cross_entropy(logits.float(), targets), 4 * logits.numel()
        else:
            loss = (outputs.contrastive_losses + outputs.matching_losses.mean(1)).sum()
            loss = loss + (outputs.token_losses.sum() if "token_losses" in outputs else 0)
        total = sum(storage.nbytes() for storage in kept.values()) + of_logits
    del loss
    return total


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["full", "frozen", "lora"])
def test_traced_activations_are_those_of_a_real_step(kind: str, checkpointing: bool, bf16: bool) -> None:
    model = build(kind)
    traced = activation_bytes(model, STEP, bf16=bf16, checkpointing=checkpointing)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    ids = torch.zeros(IMAGES, TOKENS, dtype=torch.int64)
    batch = {"pixel_values": torch.zeros(IMAGES, 3, 384, 384), "input_ids": ids, "position_ids": ids}
    assert traced == pytest.approx(kept_by(model, batch, bf16), rel=0.02)


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = build("full").eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    activation_bytes(model, STEP, bf16=False, checkpointing=True)
    assert not model.training
    assert not model.is_activation_checkpointing
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_an_estimate_keeps_nothing_of_the_model(tmp_path: Path) -> None:
    model = build("full")
    weight = weakref.ref(model.text_decoder.bert.embeddings.word_embeddings.weight)
    training = CaptionTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    estimate_peak_bytes(model, training, STEP, checkpointing=False)
    del model
    gc.collect()
    assert weight() is None


def test_adapters_and_checkpointing_save_memory(tmp_path: Path) -> None:
    training = CaptionTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    full, lora = (estimate_peak_bytes(build(kind), training, STEP, checkpointing=False) for kind in ("full", "lora"))
    checkpointed = estimate_peak_bytes(build("full"), training, STEP, checkpointing=True)
    assert lora < checkpointed < full


@pytest.mark.parametrize("asked", [None, True])
def test_checkpointing_is_left_alone_where_there_is_no_gpu(asked: bool | None, tmp_path: Path) -> None:
    choice = [] if asked is None else [f"--activation_checkpointing={asked}"]
    recipe = read(tmp_path, *choice)
    assert choose_checkpointing(build("full"), recipe.training, STEP)
    assert recipe.training.activation_checkpointing is bool(asked)


def test_a_step_of_self_critical_training_counts_its_samples_and_its_start(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"captions": [["a red circle"], ["a red circle", "a red circle"]]})
    tokenizer = build_tiny_captioner(["a red circle"])[1].tokenizer
    words = ["--stage=scst", "--num_generations=4", "--kl_coef=0.1"]
    plain, second = (read(tmp_path, *added).training for added in ([], words))
    plain.captions_per_image = None
    assert CaptionTrainer.tokens_per_image(plain, rows, tokenizer) == 10
    assert ScstTrainer.tokens_per_image(second, rows, tokenizer) == 4 * second.generation_max_length
    model = build("full")
    plain_peak = choose_checkpointing(model, plain, STEP, beside=CaptionTrainer.bytes_beside(model, plain)) or 0
    second_peak = choose_checkpointing(model, second, STEP, beside=ScstTrainer.bytes_beside(model, second)) or 0
    assert second_peak - plain_peak == weight_bytes(model)


def read(tmp_path: Path, *words: str) -> Recipe[FinetuneOptions]:
    argv = ["recipes/shapes_tiny.json", "--use_cpu=true", f"--output_dir={tmp_path / 'run'}", *words]
    return read_recipe(FinetuneOptions, prog="", description="", recipe_needed=True, argv=argv)


QUESTIONS: dict[str, list[Any]] = {
    "image_id": [0, 0, 1, 2],
    "question": ["is it red", "how many red things are there in the whole picture", "what is it", "is it a circle"],
    "answers": [["yes"], ["1", "one", "1"], ["a red circle", "a circle", "a red circle", "circle"], ["yes", "no"]],
}


def of_questions(tmp_path: Path, **keys: Any) -> tuple[BlipForAnswering, Step, dict[str, torch.Tensor]]:
    """A model, the step that is traced for it, and a real batch of the same size."""
    torch.manual_seed(0)
    # Activations of the shape of a weight are not counted: no vocabulary of 96 words for 8 x 12 tokens.
    words = [*QUESTIONS["question"], "yes", "no", "one", "a circle", "blue", "green", "square"]
    model, processor = build_tiny_answerer(words, image_size=384)
    args = VqaTrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=IMAGES, **keys)
    step = VqaTrainer.traced_step(args, Dataset.from_dict(QUESTIONS), processor.tokenizer)
    longest = {"question": QUESTIONS["question"][1], "answers": QUESTIONS["answers"][2]}
    images = [number // 2 if keys else number for number in range(IMAGES)]
    pixels = torch.zeros(3, 384, 384, dtype=torch.uint8)
    batch = AnswerCollator(processor)(
        [{"row": row, "image_key": image, "image": pixels, **longest} for row, image in enumerate(images)]
    )
    kept = {name: values for name, values in batch.items() if name not in ("row", "answer_weights", "labels")}
    return model.use_sdpa().train(), step, kept | {"pixel_values": batch["pixel_values"].float()}


def of_pairs(tmp_path: Path, task: str = "retrieval") -> tuple[Any, Step, dict[str, Any]]:
    """The same for retrieval, or for pre-training."""
    torch.manual_seed(0)
    captions = ["a red circle", "two blue squares beside a red circle"]
    kinds: dict[str, Any] = {
        "retrieval": (RetrievalTrainer, build_tiny_retriever),
        "pretrain": (PretrainTrainer, build_tiny_pretrained),
    }
    trainer, build_model = kinds[task]
    model, processor = build_model(captions, image_size=384)
    args: Any = trainer.arguments_class(
        str(tmp_path), use_cpu=True, per_device_train_batch_size=IMAGES, queue_size=32, logging_steps=1
    )
    rows = Dataset.from_dict({"captions": [captions]})
    step = trainer.traced_step(args, rows, processor.tokenizer)
    tokens = tokenize_texts(processor.tokenizer, [captions[1]] * IMAGES)
    momentum = MomentumState(model, 32, 0.995, 0)
    batch: dict[str, Any] = {"pixel_values": torch.zeros(IMAGES, 3, 384, 384), **tokens}
    features = momentum.encode(**batch, ids=torch.arange(IMAGES))
    batch |= {"momentum": features, "candidates": momentum.candidates(features), "alpha": 0.4}
    batch |= {"uniform": momentum.uniform(IMAGES)}
    batch |= {"labels": tokens["input_ids"], "label_smoothing": 0.1} if task == "pretrain" else {}
    assert trainer.bytes_beside(model, args) == weight_bytes(momentum) - buffer_bytes(momentum)
    return model.use_sdpa().train(), step, batch


def buffer_bytes(momentum: MomentumState) -> int:
    """Bytes of the constants of momentum encoders, such as position ids, and of the queue's pointer."""
    constants = [value for name, value in momentum.named_buffers() if "queue" not in name]
    return sum(value.numel() * value.element_size() for value in constants)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("task", ["vqa", "vqa grouped", "retrieval", "pretrain"])
def test_traced_activations_of_other_tasks_are_those_of_a_real_step(
    task: str, checkpointing: bool, tmp_path: Path
) -> None:
    keys = {"group_questions": True} if task == "vqa grouped" else {}
    is_of_questions = task.startswith("vqa")
    model, step, batch = of_questions(tmp_path, **keys) if is_of_questions else of_pairs(tmp_path, task)
    traced = activation_bytes(model, step, bf16=False, checkpointing=checkpointing)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    # With `group_questions`, the trace has as many questions an image as the first rows: 4 for 3.
    assert traced == pytest.approx(kept_by(model, batch), rel=0.6 if keys else 0.02)
    assert traced > kept_by(model, batch) * 0.98


@pytest.mark.parametrize("name", ["shapes_vqa", "shapes_retrieval", "shapes_pretrain"])
def test_plans_of_all_tasks_tell_the_memory_of_a_step(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"max_train_samples": 8, "max_eval_samples": 4, "use_cpu": True, "output_dir": tmp_path / "run"}
    main([f"recipes/{name}.json", "--dry_run", *(f"--{key}={value}" for key, value in keys.items())])
    assert re.search(r"^memory +about [\d.]+ [MG]iB at the peak of a step", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("task", ["captioning", "vqa", "retrieval", "pretrain"])
def test_checkpointing_is_turned_on_where_a_step_would_not_fit(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without a GPU, its memory is played; all that is counted is real."""
    if task == "captioning":
        model: Any = build("full")
        step, keys = STEP, ["recipes/shapes_tiny.json"]
    else:
        model, step, _ = of_questions(tmp_path) if task == "vqa" else of_pairs(tmp_path, task)
        keys = [f"recipes/shapes_{task}.json"]
    argv = [*keys, "--use_cpu=true", f"--output_dir={tmp_path / 'run'}"]
    for share, wanted in ((0.5, True), (2.0, False)):
        training = read_recipe(FinetuneOptions, prog="", description="", recipe_needed=True, argv=argv).training
        needed = estimate_peak_bytes(model, training, step, checkpointing=False) - weight_bytes(model)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=needed * share: (int(free), int(free)))
        monkeypatch.setattr(type(training), "device", property(lambda self: PlayedGpu()))
        monkeypatch.setattr(model, "to", lambda device, model=model: model)
        choose_checkpointing(model, training, step)
        assert training.activation_checkpointing is wanted
        monkeypatch.undo()


class PlayedGpu:
    """What `choose_checkpointing` asks of a device."""

    type = "cuda"
