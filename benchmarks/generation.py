"""Compare the speed of caption generation with the stock class in the same run. From the checkout:

python -m benchmarks.generation                                 # CPU: base width, 4+4 layers, 384 pixels
python -m benchmarks.generation --size base --images 5000       # one GPU: ViT-B, bf16

Weights are random and pictures are synthetic, so every caption has the maximum length; in a second row for each number
of beams, captions end at random lengths, as those of a trained model do. Both sides must write the same captions. They
take turns, and the median turn counts. Times are from pixels to token ids.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import BlipForConditionalGeneration, LogitsProcessor, LogitsProcessorList

from benchmarks.common import RESULTS, machine, seconds_of, write_results
from benchmarks.workload import SIZES, made_images, synchronise
from blip_recipe.captioning.modeling import BlipForCaptioning
from blip_recipe.errors import run_command
from blip_recipe.models.linear import use_onednn

LONGEST = 20
DECODING = {"max_length": LONGEST, "min_length": 5, "do_sample": False}


def main() -> None:
    """Time both sides for each number of beams, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="small is base width with 4+4 layers.")
    parser.add_argument("--images", type=int, default=8, help="Pictures per turn.")
    parser.add_argument("--batch_size", type=int, default=None, help="Default: 8 on a CPU, 64 on a GPU.")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--shortest", type=int, default=8, help="Tokens of the shortest captions of the second rows.")
    parser.add_argument("--turns", type=int, default=3, help="Turns of each side.")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    stock, ours = build(options.size, device, dtype)
    batch = made_images(min(options.images, options.batch_size or (64 if device.type == "cuda" else 8)))
    batch = batch.to(device, dtype)
    rows = [
        compare(stock, ours, batch, beams, options.images, options.turns, shortest)
        for beams in options.beams
        for shortest in (LONGEST, options.shortest)
    ]
    about = {
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
    }
    output = options.output or RESULTS / f"generation_{options.size}_{device.type}.json"
    write_results(output, machine(["torch", "transformers"], **about), rows)


def build(size: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Build the stock model and ours with the same random weights."""
    torch.manual_seed(0)
    config = SIZES[size].config()
    stock = BlipForConditionalGeneration(config).eval().to(device, dtype)
    ours = BlipForCaptioning(config).eval().to(device, dtype)
    ours.load_state_dict(stock.state_dict())
    use_onednn(ours)
    return stock, ours.use_sdpa()


class RandomLengths(LogitsProcessor):
    """End the texts of each image at a random length from `shortest` to `LONGEST` tokens."""

    def __init__(self, images: int, shortest: int, end_token_id: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.lengths = torch.randint(shortest, LONGEST + 1, (images,), generator=generator)
        self.end_token_id = end_token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Let only the end token be possible at the end, and all others before it."""
        lengths = self.lengths.repeat_interleave(len(input_ids) // len(self.lengths)).to(scores.device)
        possible = torch.zeros_like(scores, dtype=torch.bool)
        possible[:, self.end_token_id] = True
        possible ^= (input_ids.shape[1] + 1 < lengths)[:, None]
        return scores.masked_fill(~possible, -torch.inf)


def compare(
    stock: Any, ours: Any, batch: torch.Tensor, beams: int, images: int, turns: int, shortest: int = LONGEST
) -> dict[str, Any]:
    """Measure captions per second of both sides, each for `images` pictures in each of `turns`."""
    batches = -(-images // len(batch))
    decoding: dict[str, Any] = {**DECODING, "num_beams": beams}
    if shortest < LONGEST:
        ends = RandomLengths(len(batch), shortest, stock.config.text_config.sep_token_id)
        decoding["logits_processor"] = LogitsProcessorList([ends])
    written: dict[str, torch.Tensor] = {}
    seconds: dict[str, list[float]] = {"stock": [], "ours": []}

    def caption(side: str, model: Any, times: int) -> None:
        for _ in range(times):
            written[side] = model.generate(pixel_values=batch, **decoding)
        synchronise(batch.device)

    sides = {"stock": stock, "ours": ours}
    for side, model in sides.items():
        caption(side, model, 1)
    for _ in range(turns):
        for side, model in sides.items():
            seconds[side].append(seconds_of(partial(caption, side, model, batches)))
    same = sum(map(torch.equal, written["stock"], written["ours"]))
    rates = {side: batches * len(batch) / statistics.median(times) for side, times in seconds.items()}
    return {
        "beams": beams,
        "tokens": f"{shortest} to {LONGEST}" if shortest < LONGEST else LONGEST,
        "images": batches * len(batch),
        **{f"{side}: captions/s": round(rate, 3) for side, rate in rates.items()},
        "ours / stock": round(rates["ours"] / rates["stock"], 2),
        "ours: seconds for 5,000 captions": round(5000 / rates["ours"], 1),
        "same captions": f"{same} of {len(batch)}",
    }


if __name__ == "__main__":
    run_command(main)
