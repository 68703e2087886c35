"""Tiny models of matching for tests, and the paper's training step written out plainly."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from captioners import CAPTIONS, GAIN
from torch.nn import functional as F
from transformers import BlipForImageTextRetrieval, BlipImageProcessor, BlipProcessor

from blip_recipe.models.matching import tokenize_texts
from blip_recipe.models.tiny import IMAGE_SIZE, build_tokenizer, tiny_config
from blip_recipe.retrieval.modeling import BlipForRetrieval

TEXTS = [*CAPTIONS, "a dog", "four blue squares beside a red dog", "two cats", "small"]


def build_retriever(seed: int = 0) -> tuple[BlipForRetrieval, BlipProcessor]:
    """An untrained model that looks at its pictures and texts."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(TEXTS)
    model = BlipForRetrieval(tiny_config(tokenizer, IMAGE_SIZE)).use_sdpa()
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(GAIN if weights.ndim > 1 else 1.0)
    image_processor = BlipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return model, BlipProcessor(image_processor, tokenizer)


def draw_pairs(processor: BlipProcessor, ids: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Pairs of random pictures and texts of several lengths, those of one id with the same picture."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randn(max(ids) + 1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    texts = [TEXTS[number % len(TEXTS)] for number in range(len(ids))]
    return {
        "pixel_values": pictures[ids],
        **tokenize_texts(processor.tokenizer, texts),
        "ids": torch.tensor(ids),
    }


@dataclass
class PlainMomentum:
    """What the paper's step keeps between steps: a momentum model and lists of features, newest first."""

    model: BlipForImageTextRetrieval
    images: list[torch.Tensor]
    texts: list[torch.Tensor]
    ids: list[int]


def plain_step(
    stock: BlipForImageTextRetrieval,
    kept: PlainMomentum,
    pairs: dict[str, torch.Tensor],
    temperature: torch.Tensor,
    alpha: float,
    uniform: torch.Tensor,
    enc_token_id: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """ITC and ITM of a batch as the paper and ALBEF write them, pair by pair, through the stock class alone.

    Returns their means, and moves `kept` on.
    """
    ids = pairs["ids"].tolist()
    inputs = {name: values for name, values in pairs.items() if name != "ids"}
    for old, new in zip(kept.model.parameters(), stock.parameters(), strict=True):
        old.data = 0.995 * old.data + 0.005 * new.data
    images, texts, embeds = plain_features(stock, inputs)
    with torch.no_grad():
        images_m, texts_m, _ = plain_features(kept.model, inputs)
    all_images, all_texts = torch.stack([*images_m, *kept.images]), torch.stack([*texts_m, *kept.texts])
    all_ids = [*ids, *kept.ids]
    contrastive = []
    for row, own in enumerate(ids):
        positives = torch.tensor([float(other == own) for other in all_ids])
        hard = positives / positives.sum()
        for query, query_m, candidates in (
            (images[row], images_m[row], all_texts),
            (texts[row], texts_m[row], all_images),
        ):
            target = (alpha * F.softmax(candidates @ query_m / temperature, 0) + (1 - alpha) * hard).detach()
            contrastive.append(-(target * F.log_softmax(candidates @ query / temperature, 0)).sum())
    matching = []
    for row, own in enumerate(ids):
        pair = inputs["input_ids"][row], inputs["attention_mask"][row]
        matching.append(-plain_match(stock, embeds[row], *pair, enc_token_id).log_softmax(0)[1])
        others = [number for number, other in enumerate(ids) if other != own]
        for column, (query, candidates) in enumerate(((images[row], texts), (texts[row], images))):
            shares = torch.tensor([(candidates[number] @ query / temperature).exp().item() for number in others])
            below = torch.cumsum(shares / shares.sum(), 0) <= uniform[row, column]
            drawn = others[int(below.sum())]
            other_text = inputs["input_ids"][drawn], inputs["attention_mask"][drawn]
            logits = (
                plain_match(stock, embeds[row], *other_text, enc_token_id)
                if column == 0
                else plain_match(stock, embeds[drawn], *pair, enc_token_id)
            )
            matching.append(-logits.log_softmax(0)[0])
    size = len(kept.ids)
    kept.images = [*reversed(images_m), *kept.images][:size]
    kept.texts = [*reversed(texts_m), *kept.texts][:size]
    kept.ids = [*reversed(ids), *kept.ids][:size]
    return torch.stack(contrastive).mean(), torch.stack(matching).mean()


def plain_features(
    stock: BlipForImageTextRetrieval, inputs: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image features, text features and image embeddings."""
    embeds = stock.vision_model(inputs["pixel_values"]).last_hidden_state
    states = stock.text_encoder(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
    images, texts = stock.vision_proj(embeds[:, 0]), stock.text_proj(states[:, 0])
    return images / images.norm(dim=1, keepdim=True), texts / texts.norm(dim=1, keepdim=True), embeds


def plain_match(
    stock: BlipForImageTextRetrieval, embeds: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, enc_token_id: int
) -> torch.Tensor:
    """Logits `(2,)` of one pair, its padding cut off."""
    tokens = ids[mask.bool()].clone()
    tokens[0] = enc_token_id
    states = stock.text_encoder(tokens[None], encoder_hidden_states=embeds[None]).last_hidden_state
    return stock.itm_head(states[0, 0])


def load_exactly(model_class: Any, directory: Path) -> Any:
    """A saved model of `model_class`, whose weights are all there, and no others."""
    model, report = model_class.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report
    return model


def stock_copy(model: BlipForRetrieval) -> BlipForImageTextRetrieval:
    """The stock class with the same weights."""
    stock = BlipForImageTextRetrieval(copy.deepcopy(model.config))
    weights = {name: values for name, values in model.state_dict().items() if name != "temperature"}
    stock.load_state_dict(weights)
    return stock
