"""What the contrastive loss keeps beside the model: momentum encoders and the queue of their features.

None of it is part of the finished model. It lies in checkpoints, so that a resumed run goes on as if it had never
stopped.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from blip_recipe.retrieval.gathering import gather, rank, world_size
from blip_recipe.retrieval.losses import Features

if TYPE_CHECKING:
    from blip_recipe.retrieval.modeling import BlipForRetrieval

MOMENTUM_FILE = "momentum.safetensors"
"""Where a checkpoint keeps it."""

NO_IMAGE = -100
"""The id of queue entries that no pair has filled yet."""

ENCODERS = ("vision_model", "vision_proj", "text_encoder", "text_proj")


class MomentumState(nn.Module):
    """Momentum encoders (He et al., 2020, arXiv 1911.05722) and a queue of the features they gave last.

    The same in all processes: the queue takes the features of all of them.

    Args:
        model: What the encoders are copies of at first.
        queue_size: Pairs in the queue; at first random directions that belong to no image, as in the original.
        momentum: How much of their weights encoders keep in a step (BLIP: 0.995).
        seed: What random directions and hard negatives are drawn from.
    """

    image_queue: torch.Tensor
    text_queue: torch.Tensor
    id_queue: torch.Tensor
    pointer: torch.Tensor

    def __init__(self, model: BlipForRetrieval, queue_size: int, momentum: float, seed: int) -> None:
        super().__init__()
        self.momentum = momentum
        self.encoders = nn.ModuleDict({name: copy.deepcopy(getattr(model, name)) for name in ENCODERS})
        self.requires_grad_(False)
        self.generator = torch.Generator().manual_seed(seed)
        width = model.config.image_text_hidden_size
        for name in ("image_queue", "text_queue"):
            directions = torch.randn(queue_size, width, generator=self.generator)
            self.register_buffer(name, F.normalize(directions, dim=1))
        self.register_buffer("id_queue", torch.full((queue_size,), NO_IMAGE))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, model: BlipForRetrieval) -> None:
        """Move the encoders towards those of `model`, once an optimiser step."""
        for name, encoder in self.encoders.items():
            for kept, learnt in zip(encoder.parameters(), getattr(model, name).parameters(), strict=True):
                if learnt.requires_grad:
                    kept.lerp_(learnt, 1 - self.momentum)

    @torch.no_grad()
    def encode(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor, ids: torch.Tensor
    ) -> Features:
        """Features of pairs: pixels `(pairs, 3, height, width)`, tokens `(pairs, tokens)`, image ids `(pairs,)`."""
        images = self.encoders["vision_model"](pixel_values=pixel_values).last_hidden_state[:, 0]
        texts = self.encoders["text_encoder"](input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return Features(
            F.normalize(self.encoders["vision_proj"](images), dim=-1).float(),
            F.normalize(self.encoders["text_proj"](texts[:, 0]), dim=-1).float(),
            ids,
        )

    def candidates(self, momentum: Features) -> Features:
        """What pairs are compared with, and the queue for the next ones, which takes the place of the oldest.

        The batches of all processes, then the queue: so one process with all pairs finds the same. (The original
        compares with its own process's batch and the queue.)

        Args:
            momentum: Features of this process's pairs, of which all processes have as many.
        """
        batch = Features(*map(gather, momentum))
        queue = Features(self.image_queue, self.text_queue, self.id_queue)
        candidates = Features(*(torch.cat(parts) for parts in zip(batch, queue, strict=True)))
        self._push(batch)
        return candidates

    def _push(self, batch: Features) -> None:
        size = len(self.id_queue)
        newest = Features(*(part[-size:] if size else part[:0] for part in batch))
        places = (self.pointer + torch.arange(len(newest.ids), device=self.pointer.device)) % max(size, 1)
        for queue, part in zip((self.image_queue, self.text_queue, self.id_queue), newest, strict=True):
            queue[places] = part
        self.pointer.copy_((self.pointer + len(newest.ids)) % max(size, 1))

    def uniform(self, pairs: int) -> torch.Tensor:
        """Random numbers `(pairs, 2)` for the hard negatives of this process's pairs.

        They are drawn for all processes alike, each of which takes its own: what is drawn does not depend on how many
        processes share a batch.
        """
        numbers = torch.rand(world_size(), pairs, 2, generator=self.generator)
        return numbers[rank()].to(self.pointer.device)

    def save(self, directory: Path, temperature: torch.Tensor) -> None:
        """Write `MOMENTUM_FILE`, with the learnt temperature, which no file of weights has."""
        state = {name: values.contiguous() for name, values in self.state_dict().items()}
        save_file(
            {**state, "temperature": temperature.detach().clone(), "generator": self.generator.get_state()},
            directory / MOMENTUM_FILE,
        )

    def load(self, directory: Path) -> None:
        """Go on from what `save` wrote, but for the temperature (`saved_temperature`)."""
        state = load_file(directory / MOMENTUM_FILE)
        self.generator.set_state(state.pop("generator"))
        state.pop("temperature")
        self.load_state_dict(state)


def saved_temperature(directory: Path) -> torch.Tensor:
    """The temperature of the model in a checkpoint, to the last bit."""
    return load_file(directory / MOMENTUM_FILE)["temperature"]
