"""Estimate the peak memory of a training step by tracing it on fake tensors."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from blip_recipe.models.adapters import quantization_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import nn

    from blip_recipe.training.training_arguments import BlipTrainingArguments

    Step = Callable[[Any, torch.device], torch.Tensor]
    """The forward pass of a batch of empty tensors, from a model and its device. Its results are losses `(rows,)`, or
    logits `(rows, classes)` of a cross entropy."""

OPTIMIZER_BYTES = {"adamw_torch": 8, "adamw_torch_fused": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2, "sgd": 0}
"""Optimiser state in bytes per trained parameter; 8 (two moments in 32 bits) for optimisers not listed."""
GRADIENT_BYTES = 4
SHARE_OF_MEMORY = 0.9
"""Share of a GPU's free memory that a step may use; the rest is left for fragmentation."""
logger = logging.getLogger(__name__)


def estimate_peak_bytes(model: Any, training: BlipTrainingArguments, step: Step, *, checkpointing: bool) -> int:
    """Peak bytes of a step in one process: weights, optimiser moments, gradients and activations.

    Gradients replace activations during the backward pass, so the larger of the two counts. Both count with gradient
    accumulation, in the buckets of DistributedDataParallel, and on a CPU, where gradients do not fit into freed blocks.

    Args:
        model: The model to train, on its training device.
        training: Precision, optimiser and accumulation.
        step: The forward pass of a batch.
        checkpointing: Whether gradient checkpointing is on.
    """
    stored = weight_bytes(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    moments = OPTIMIZER_BYTES.get(str(getattr(training.optim, "value", training.optim)), 8)
    gradients = GRADIENT_BYTES * trained
    activations = activation_bytes(model, step, bf16=bool(training.bf16), checkpointing=checkpointing)
    if checkpointing:
        # The activations of one layer at a time are recomputed.
        all_layers = activation_bytes(model, step, bf16=bool(training.bf16), checkpointing=False)
        layers = sum(isinstance(module, GradientCheckpointingLayer) for module in model.modules())
        activations += (all_layers - activations) // layers
    kept = training.gradient_accumulation_steps > 1 or training.world_size > 1 or training.device.type == "cpu"
    return stored + moments * trained + (activations + gradients if kept else max(activations, gradients))


def choose_checkpointing(model: Any, training: BlipTrainingArguments, step: Step, *, beside: int = 0) -> int | None:
    """Enable gradient checkpointing if a step would not fit the GPU without it, unless the arguments set it.

    Args:
        model: The model to train.
        training: The training arguments.
        step: The forward pass of a batch.
        beside: Bytes that the training keeps beside the model, such as copies of it.

    Returns:
        Peak bytes of a step with the chosen setting; None if the step cannot be traced.
    """

    def estimate(checkpointing: bool) -> int:
        return beside + estimate_peak_bytes(model, training, step, checkpointing=checkpointing)

    try:
        if training.auto_checkpointing and training.device.type == "cuda":
            if quantization_of(model) is None:
                model.to(training.device)
            free = torch.cuda.mem_get_info(training.device)[0]
            if estimate(checkpointing=False) - weight_bytes(model) > SHARE_OF_MEMORY * free:
                # Trainer reads the new name; accelerate's plugins read the old one.
                training.activation_checkpointing = training.gradient_checkpointing = True
            training.auto_checkpointing = False
        peak = estimate(checkpointing=bool(training.activation_checkpointing))
    except RuntimeError as error:  # a kernel without an implementation for fake tensors
        logger.warning("The memory of a step cannot be estimated on this device: %s", error)
        return None
    logger.info("Memory: %s", describe_peak(training, peak))
    return peak


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights and buffers."""
    return sum_bytes([*model.parameters(), *model.buffers()])


def sum_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of all values of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def describe_peak(training: BlipTrainingArguments, peak: int | None) -> str:
    """Describe the memory of a step, for logs and the plan."""
    if peak is None:
        return "not known"
    checkpointing = ", with gradient checkpointing" if training.activation_checkpointing else ""
    size = f"{peak / 2**30:.1f} GiB" if peak > 2**30 else f"{peak / 2**20:.0f} MiB"
    return f"about {size} at the peak of a step, for each process{checkpointing}"


def caption_step(images: int, tokens: int) -> Step:
    """The step of a captioner.

    Args:
        images: Images per batch and process.
        tokens: Tokens of all captions of an image.
    """

    def step(model: Any, device: torch.device) -> torch.Tensor:
        ids = torch.zeros(images, tokens, dtype=torch.int64, device=device)
        pixel_values = empty_pixels(model, images, device)
        return model(pixel_values=pixel_values, input_ids=ids, position_ids=ids).logits.flatten(0, 1)

    return step


def empty_pixels(model: Any, images: int, device: torch.device) -> torch.Tensor:
    """Pixels `(images, 3, height, width)` of the size that the model expects."""
    size = model.config.vision_config.image_size
    return torch.empty(images, 3, size, size, device=device)


def activation_bytes(model: Any, step: Step, *, bf16: bool, checkpointing: bool) -> int:
    """Bytes that a step saves for the backward pass, plus the gradient of the logits."""
    weights = [*model.parameters(), *model.buffers()]
    # Traced weights are new objects, so they are recognised by shape, also transposed.
    known = {(shape, weight.dtype) for weight in weights for shape in (weight.shape, weight.shape[::-1])}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (tensor.shape, tensor.dtype) not in known:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage
        # Without its history: an output that its own gradient holds would never be freed, nor would the weights.
        return tensor.detach()

    device = weights[0].device
    with (
        training_mode(model, checkpointing),
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast(device.type, torch.bfloat16, enabled=bf16),
    ):
        outputs = step(model, device)
        # Keep the loss until the saved tensors are counted: it owns them.
        loss, of_logits = outputs.sum(), 0
        if outputs.ndim > 1:
            targets = torch.zeros(len(outputs), dtype=torch.int64, device=device)
            loss, of_logits = F.cross_entropy(outputs.float(), targets), 4 * outputs.numel()
        total = sum(storage.nbytes() for storage in kept.values()) + of_logits
    del loss
    return total


@contextmanager
def training_mode(model: Any, checkpointing: bool) -> Iterator[None]:
    """Put the model in training mode, with or without gradient checkpointing, and restore it afterwards."""
    was_training, was_checkpointing = model.training, model.is_activation_checkpointing
    # LLM.int8() selects outliers above a threshold; their number is unknown in a trace.
    outliers = [module.state for module in model.modules() if hasattr(getattr(module, "state", None), "threshold")]
    thresholds = [state.threshold for state in outliers]
    for state in outliers:
        state.threshold = 0.0
    model.train()
    set_checkpointing(model, checkpointing)
    try:
        yield
    finally:
        for state, threshold in zip(outliers, thresholds, strict=True):
            state.threshold = threshold
        model.train(was_training)
        set_checkpointing(model, was_checkpointing)


def set_checkpointing(model: Any, wanted: bool) -> None:
    """Enable or disable non-reentrant gradient checkpointing, which allows inputs without gradients."""
    if wanted == model.is_activation_checkpointing:
        return
    if wanted:
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        model.activation_checkpointing_disable()
