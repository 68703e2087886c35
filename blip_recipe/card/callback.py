"""A Trainer callback that records hardware, time, memory, parameters and curves for the model card."""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from blip_recipe.card.energy import energy_meter
from blip_recipe.card.facts import EnergyFacts
from blip_recipe.models.adapters import is_adapted, quantization_of
from blip_recipe.models.regularization import describe_regularization
from blip_recipe.models.stock import count_parameters

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from blip_recipe.models.arguments import Quantization


class CardCallback(TrainerCallback, ExportableState):
    """Record facts of a training for the model card. Checkpoints save time, memory and energy across sessions.

    Attributes:
        seconds: Wall-clock time of the training, including evaluations during training.
        peak_memory: Peak memory of this process in bytes: CUDA memory if it trained on a GPU, else main memory.
        energy: Energy use of the machine, or None if it is not measured (see `energy.py`).
        hardware: The GPUs or the processor.
        parameters, trained_parameters: Number of parameters of the model.
        image_size: Side of the model's input pictures in pixels.
        lora: The LoRA configuration, if an adapter was trained.
        quantization: Quantisation of the frozen base, if any.
        has_frozen_vision: Whether the image encoder was frozen.
        regularization: Drop path and dropout of the text, as texts by label.
        log_history: Trainer's log history at the end of training, without later evaluations.
        steps, epochs: Length of the training.
        best_step: Step of the best checkpoint, if it was loaded.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.peak_memory: int | None = None
        self.energy: EnergyFacts | None = None
        self.hardware = ""
        self.parameters = self.trained_parameters = 0
        self.image_size = 0
        self.lora: LoraConfig | None = None
        self.quantization: Quantization | None = None
        self.has_frozen_vision = False
        self.regularization: dict[str, str] = {}
        self.log_history: list[dict[str, float]] = []
        self.steps, self.epochs = 0, 0.0
        self.best_step: int | None = None
        self._resumed_at = time.monotonic()
        self._meter = energy_meter()

    def state(self) -> dict[str, Any]:
        """The state to save in a checkpoint."""
        self._count()
        kept = {"seconds": self.seconds, "peak_memory": self.peak_memory, "energy": self.energy and asdict(self.energy)}
        return {"args": {}, "attributes": kept}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the model and the hardware, and restore the counters of the checkpoint."""
        model = kwargs["model"]
        self.trained_parameters, self.parameters = count_parameters(model)
        self.image_size = model.config.vision_config.image_size
        self.lora = model.active_peft_config if is_adapted(model) else None
        self.quantization = quantization_of(model)
        self.has_frozen_vision = not any(weight.requires_grad for weight in model.vision_model.parameters())
        self.regularization = describe_regularization(model)
        self.hardware = describe_hardware(args.device, args.world_size)
        saved: dict[str, Any] = state.stateful_callbacks.get(type(self).__name__, {}) if state.global_step else {}
        before = saved.get("attributes", {})
        self.seconds, self.peak_memory = before.get("seconds", 0.0), before.get("peak_memory")
        energy = before.get("energy")
        # Do not measure the rest of a training whose beginning was not measured.
        if self._meter and state.is_world_process_zero and (energy or not before):
            self._meter.start(EnergyFacts(**energy) if energy else None)
        self._resumed_at = time.monotonic()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the length of the training and the curves."""
        self._count()
        self.log_history = list(state.log_history)
        self.steps, self.epochs = state.global_step, state.epoch
        self.best_step = state.best_global_step if args.load_best_model_at_end else None

    def speed(self, args: TrainingArguments) -> dict[str, float]:
        """Trainer's speed metrics over all sessions of the run. Trainer's own cover only the last session."""
        images = self.steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return {
            "train_runtime": self.seconds,
            "train_samples_per_second": images / self.seconds,
            "train_steps_per_second": self.steps / self.seconds,
        }

    def _count(self) -> None:
        now = time.monotonic()
        self.seconds += now - self._resumed_at
        self._resumed_at = now
        self.peak_memory = max(filter(None, (self.peak_memory, peak_memory())), default=None)
        self.energy = self._meter.read() if self._meter else None


def describe_hardware(device: torch.device, processes: int) -> str:
    """Describe the GPUs, or the processor and its cores."""
    if device.type == "cuda":
        return f"{processes} × {torch.cuda.get_device_name(device)}"
    if device.type != "cpu":
        return f"{processes} × {device.type}"
    cores = f"{os.cpu_count()} cores" + (f", {processes} processes" if processes > 1 else "")
    return f"{processor_name()} ({cores})"


def processor_name() -> str:
    """The name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


def peak_memory() -> int | None:
    """Peak memory of this process in bytes: CUDA memory if available, else main memory; None on Windows."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return None
    import resource

    # Linux counts in KiB, macOS in bytes (getrusage(2) of each).
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
