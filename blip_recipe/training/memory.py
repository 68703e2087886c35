"""How much memory a training step takes, found without taking it: by tracing the step on tensors without numbers."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from blip_recipe.models.adapters import quantization_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from blip_recipe.training.training_arguments import BlipTrainingArguments

OPTIMIZER_BYTES = {"adamw_torch": 8, "adamw_torch_fused": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2, "sgd": 0}
"""Bytes that an optimiser keeps for each trained number; two moments in 32 bits where it is not listed."""
GRADIENT_BYTES = 4
SHARE_OF_MEMORY = 0.9
"""Of a GPU's free memory, what a step may take: the rest is lost between blocks."""
logger = logging.getLogger(__name__)


def estimate_peak_bytes(
    model: Any, training: BlipTrainingArguments, images: int, tokens: int, *, checkpointing: bool
) -> int:
    """Bytes at the peak of a step of one process: weights, moments of the optimiser, gradients and activations.

    Gradients come into being while activations go, unless they are summed up over several batches, kept in the buckets
    of DistributedDataParallel, or, on a CPU, allocated where freed blocks do not fit.

    Args:
        model: The model as it is trained, on the device that it is trained on.
        training: Precision, optimiser and accumulation.
        images: Images of a batch of one process.
        tokens: Tokens of the captions of an image together.
        checkpointing: Whether activations are computed again for the gradient.
    """
    stored = weight_bytes(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    moments = OPTIMIZER_BYTES.get(str(getattr(training.optim, "value", training.optim)), 8)
    gradients = GRADIENT_BYTES * trained
    activations = activation_bytes(model, images, tokens, bf16=bool(training.bf16), checkpointing=checkpointing)
    if checkpointing:
        # One layer after the other is computed again.
        all_layers = activation_bytes(model, images, tokens, bf16=bool(training.bf16), checkpointing=False)
        vision, text = model.config.vision_config, model.config.text_config
        activations += (all_layers - activations) // (vision.num_hidden_layers + text.num_hidden_layers)
    kept = training.gradient_accumulation_steps > 1 or training.world_size > 1 or training.device.type == "cpu"
    return stored + moments * trained + (activations + gradients if kept else max(activations, gradients))


def choose_checkpointing(model: Any, training: BlipTrainingArguments, tokens: int, *, copies: int = 0) -> int | None:
    """Switch gradient checkpointing on where a step would not fit a GPU without, unless the arguments decide it.

    Args:
        model: The model as it will be trained.
        training: How.
        tokens: Tokens of the texts of an image together.
        copies: Frozen copies of the model that are kept beside it.

    Returns:
        Bytes at the peak of a step, as it will be taken; nothing where a step cannot be traced.
    """
    start = copies * weight_bytes(model)

    def estimate(checkpointing: bool) -> int:
        return start + estimate_peak_bytes(
            model, training, training.train_batch_size, tokens, checkpointing=checkpointing
        )

    try:
        if training.auto_checkpointing and training.device.type == "cuda":
            if quantization_of(model) is None:
                model.to(training.device)
            free = torch.cuda.mem_get_info(training.device)[0]
            if estimate(checkpointing=False) - weight_bytes(model) > SHARE_OF_MEMORY * free:
                # Trainer reads the new name, accelerate's plugins the old one.
                training.activation_checkpointing = training.gradient_checkpointing = True
            training.auto_checkpointing = False
        peak = estimate(checkpointing=bool(training.activation_checkpointing))
    except RuntimeError as error:  # a kernel of a device that says nothing about the shape of its results
        logger.warning("The memory of a step cannot be estimated here: %s", error)
        return None
    logger.info("Memory: %s", describe_peak(training, peak))
    return peak


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the weights and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])


def describe_peak(training: BlipTrainingArguments, peak: int | None) -> str:
    """The memory of a step in words."""
    if peak is None:
        return "not known"
    checkpointing = ", with gradient checkpointing" if training.activation_checkpointing else ""
    size = f"{peak / 2**30:.1f} GiB" if peak > 2**30 else f"{peak / 2**20:.0f} MiB"
    return f"about {size} at the peak of a step, for each process{checkpointing}"


def activation_bytes(model: Any, images: int, tokens: int, *, bf16: bool, checkpointing: bool) -> int:
    """Bytes of what a step keeps for its gradient, with the gradient of the logits at its turning point."""
    weights = [*model.parameters(), *model.buffers()]
    # A traced weight is another object, so that weights are known by shape, also lying on their side.
    known = {(shape, weight.dtype) for weight in weights for shape in (weight.shape, weight.shape[::-1])}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (tensor.shape, tensor.dtype) not in known:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage
        return tensor

    device, size = weights[0].device, model.config.vision_config.image_size
    with (
        training_mode(model, checkpointing),
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast(device.type, torch.bfloat16, enabled=bf16),
    ):
        pixel_values = torch.empty(images, 3, size, size, device=device)
        ids = torch.zeros(images, tokens, dtype=torch.int64, device=device)
        logits = model(pixel_values=pixel_values, input_ids=ids, position_ids=ids).logits.flatten(0, 1)
        # Held until all has been counted: it owns what was kept.
        loss = F.cross_entropy(logits.float(), ids.flatten())
        total = sum(storage.nbytes() for storage in kept.values()) + 4 * logits.numel()
    del loss
    return total


@contextmanager
def training_mode(model: Any, checkpointing: bool) -> Iterator[None]:
    """The model in training mode, with gradient checkpointing or without, for a while."""
    was_training, was_checkpointing = model.training, model.is_activation_checkpointing
    # LLM.int8() looks for outliers above a threshold, whose number no trace can know.
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
    """Gradient checkpointing on or off, of the kind that takes inputs without gradients."""
    if wanted == model.is_activation_checkpointing:
        return
    if wanted:
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        model.activation_checkpointing_disable()
