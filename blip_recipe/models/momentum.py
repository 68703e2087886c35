"""The momentum encoders of ITC and the queue of their features.

They are saved in checkpoints for resumption, but are not part of the trained model.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from blip_recipe.models.contrastive import Features
from blip_recipe.models.gathering import gather, rank, world_size

if TYPE_CHECKING:
    from blip_recipe.models.image_text import ImageTextModel

MOMENTUM_FILE = "momentum.safetensors"
"""The file of the momentum state in a checkpoint."""

NO_IMAGE = -100
"""The id of queue entries that are not filled yet."""

ENCODERS = ("vision_model", "vision_proj", "text_encoder", "text_proj")


class MomentumState(nn.Module):
    """Momentum encoders (He et al., 2020, arXiv 1911.05722) and a queue of their latest features.

    The state is the same in all processes: the queue takes the features of all of them.

    Args:
        model: The model; the momentum encoders start as copies of its encoders.
        queue_size: Pairs in the queue. It starts with random directions that belong to no image, as in the original.
        momentum: Momentum of the weights (BLIP: 0.995).
        seed: Seed of the random directions and hard negatives.
    """

    image_queue: torch.Tensor
    text_queue: torch.Tensor
    id_queue: torch.Tensor
    pointer: torch.Tensor

    def __init__(self, model: ImageTextModel, queue_size: int, momentum: float, seed: int) -> None:
        super().__init__()
        self.momentum = momentum
        parts = {name: getattr(model, name) for name in ENCODERS}
        frozen = {id(weight): weight for part in parts.values() for weight in part.parameters() if is_frozen(weight)}
        # Frozen weights, which may be quantised, never move: share them with the model instead of copying them.
        self.encoders = nn.ModuleDict({name: copy.deepcopy(part, dict(frozen)) for name, part in parts.items()})
        self.moving = {name for name, weight in self.named_parameters() if not is_frozen(weight)}
        self.requires_grad_(False)
        self.generator = torch.Generator().manual_seed(seed)
        width = model.config.image_text_hidden_size
        for name in ("image_queue", "text_queue"):
            directions = torch.randn(queue_size, width, generator=self.generator)
            self.register_buffer(name, F.normalize(directions, dim=1))
        self.register_buffer("id_queue", torch.full((queue_size,), NO_IMAGE))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, model: ImageTextModel) -> None:
        """Update the momentum encoders from `model`; called once per optimiser step."""
        for name, encoder in self.encoders.items():
            for kept, learnt in zip(encoder.parameters(), getattr(model, name).parameters(), strict=True):
                if learnt.requires_grad:
                    kept.lerp_(learnt, 1 - self.momentum)

    @torch.no_grad()
    def encode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
    ) -> Features:
        """Encode pairs.

        Args:
            input_ids, attention_mask: `(pairs, tokens)`.
            ids: `(pairs,)`, equal for images with the same captions.
            pixel_values: `(pairs, 3, height, width)`.
            image_embeds: `(pairs, patches, width)`, instead of `pixel_values`. A frozen image encoder never moves, so
                the embeddings by the model are those by its momentum encoder.
        """
        if image_embeds is None:
            image_embeds = self.encoders["vision_model"](pixel_values=pixel_values).last_hidden_state
        images = image_embeds[:, 0]
        texts = self.encoders["text_encoder"](input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return Features(
            F.normalize(self.encoders["vision_proj"](images), dim=-1).float(),
            F.normalize(self.encoders["text_proj"](texts[:, 0]), dim=-1).float(),
            ids,
        )

    def candidates(self, momentum: Features) -> Features:
        """Return the candidates of ITC, and push the batch to the queue in place of the oldest entries.

        The candidates are the batches of all processes, then the queue, so the loss does not depend on the number of
        processes. (The original compares with the batch of its own process and the queue.)

        Args:
            momentum: Features of this process's pairs. All processes must have the same number of pairs.
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
        """Random numbers `(pairs, 2)` for sampling the hard negatives of this process's pairs.

        Every process draws the numbers of all processes and uses its own, so they do not depend on the number of
        processes that share a batch.
        """
        numbers = torch.rand(world_size(), pairs, 2, generator=self.generator)
        return numbers[rank()].to(self.pointer.device)

    def save(self, directory: Path, temperature: torch.Tensor) -> None:
        """Write `MOMENTUM_FILE`, with the learned temperature, which the weight files do not have.

        Frozen weights of the encoders are those of the model, and are not written again.
        """
        state = {name: values.contiguous() for name, values in self.state_dict().items() if self._is_saved(name)}
        save_file(
            {**state, "temperature": temperature.detach().clone(), "generator": self.generator.get_state()},
            directory / MOMENTUM_FILE,
        )

    def load(self, directory: Path) -> None:
        """Restore the state written by `save`, without the temperature (see `saved_temperature`)."""
        state = load_file(directory / MOMENTUM_FILE)
        self.generator.set_state(state.pop("generator"))
        state.pop("temperature")
        # Not strict, for the frozen weights.
        self.load_state_dict({name: state[name] for name in self.state_dict() if self._is_saved(name)}, strict=False)

    def _is_saved(self, name: str) -> bool:
        return name in self.moving or not name.startswith("encoders.")


def is_frozen(weight: nn.Parameter) -> bool:
    """Whether a weight is not trained."""
    return not weight.requires_grad


def saved_temperature(directory: Path) -> torch.Tensor:
    """The exact temperature of the model in a checkpoint."""
    return load_file(directory / MOMENTUM_FILE)["temperature"]
