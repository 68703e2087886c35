"""What only a trainer knows of a run: machine, time, memory, parameters and curves."""

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
from blip_recipe.models.stock import count_parameters

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from blip_recipe.models.arguments import Quantization


class CardCallback(TrainerCallback, ExportableState):
    """Notes what only a trainer knows; time, memory and energy survive in checkpoints, so that all sessions count.

    Attributes:
        seconds: Wall-clock time of the training, evaluations within included.
        peak_memory: Most bytes this process held: of CUDA memory if it trained there, else of main memory.
        energy: What the machine used meanwhile; None where nobody asked (see `card_energy`).
        hardware: What it ran on.
        parameters, trained_parameters: Of the model that was trained.
        image_size: Side of the pictures it saw, in pixels.
        lora: The adapter, if one was trained.
        quantization: Precision of the frozen base, if it was quantised.
        has_frozen_vision: Whether the image encoder stayed as it was.
        log_history: Trainer's at the end of training, without what is scored afterwards.
        steps, epochs: How long it was trained.
        best_step: Step of the best checkpoint, if one was chosen.
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
        self.log_history: list[dict[str, float]] = []
        self.steps, self.epochs = 0, 0.0
        self.best_step: int | None = None
        self._resumed_at = time.monotonic()
        self._meter = energy_meter()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        self._count()
        kept = {"seconds": self.seconds, "peak_memory": self.peak_memory, "energy": self.energy and asdict(self.energy)}
        return {"args": {}, "attributes": kept}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the model and the machine, and go on counting where the checkpoint stopped."""
        model = kwargs["model"]
        self.trained_parameters, self.parameters = count_parameters(model)
        self.image_size = model.config.vision_config.image_size
        self.lora = model.active_peft_config if is_adapted(model) else None
        self.quantization = quantization_of(model)
        self.has_frozen_vision = not any(weight.requires_grad for weight in model.vision_model.parameters())
        self.hardware = describe_hardware(args.device, args.world_size)
        saved: dict[str, Any] = state.stateful_callbacks.get(type(self).__name__, {}) if state.global_step else {}
        before = saved.get("attributes", {})
        self.seconds, self.peak_memory = before.get("seconds", 0.0), before.get("peak_memory")
        energy = before.get("energy")
        # Of a training that was measured in part, the card could only tell a part.
        if self._meter and state.is_world_process_zero and (energy or not before):
            self._meter.start(EnergyFacts(**energy) if energy else None)
        self._resumed_at = time.monotonic()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note how long it was trained, and the curves."""
        self._count()
        self.log_history = list(state.log_history)
        self.steps, self.epochs = state.global_step, state.epoch
        self.best_step = state.best_global_step if args.load_best_model_at_end else None

    def speed(self, args: TrainingArguments) -> dict[str, float]:
        """Trainer's figures of time, over all sessions of the run: its own begin anew with each."""
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
    """The GPUs, or the processor and its cores."""
    if device.type == "cuda":
        return f"{processes} × {torch.cuda.get_device_name(device)}"
    if device.type != "cpu":
        return f"{processes} × {device.type}"
    cores = f"{os.cpu_count()} cores" + (f", {processes} processes" if processes > 1 else "")
    return f"{processor_name()} ({cores})"


def processor_name() -> str:
    """The processor's name as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


def peak_memory() -> int | None:
    """Most bytes this process has held: of CUDA memory where there is some, else of main memory; None on Windows."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return None
    import resource

    # Linux counts in KiB, macOS in bytes (getrusage(2) of each).
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
