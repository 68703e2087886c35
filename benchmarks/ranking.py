"""Compare the time for ranking 3,128 answers to a question with scoring each of them by its own forward pass. From the
checkout:

python -m benchmarks.ranking                        # CPU: base width, 4+4 layers, 384 pixels
python -m benchmarks.ranking --size base            # ViT-B and BERT-base

Weights are random. Answers are made of word pieces at random, in lengths as of VQAv2's list. Both sides begin with the
encoded question. "One by one" takes each answer through the decoder of the stock class. Some of them are timed, spread
over the list, and their mean time is multiplied by the number of answers. Both sides must give the same losses, and our
ranking must have their order. For this, the 128 answers of the shorter ranking are scored one by one too, untimed.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import BlipForQuestionAnswering

from benchmarks.common import RESULTS, machine, seconds_of, write_results
from benchmarks.workload import SIZES, synchronise
from blip_recipe.errors import run_command
from blip_recipe.models.linear import use_onednn
from blip_recipe.vqa.answer_lists import RANKED_ANSWERS, SMOOTHING
from blip_recipe.vqa.modeling import BlipForAnswering
from blip_recipe.vqa.ranking import Ranking

ANSWERS = 3128
LENGTHS = {1: 0.70, 2: 0.18, 3: 0.09, 4: 0.03}
"""Shares of answers by number of word pieces."""
QUESTION_TOKENS = 10
DEC, SEP, PAD, FIRST_WORD = 30522, 102, 0, 1000


def main() -> None:
    """Time both sides, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="small is base width with 4+4 layers.")
    parser.add_argument("--answers", type=int, default=ANSWERS)
    parser.add_argument("--timed", type=int, default=200, help="Number of answers that are scored one by one.")
    parser.add_argument("--turns", type=int, default=3, help="Turns of our ranking; the fastest counts.")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stock, ours = build(options.size, device)
    states = torch.randn(1, QUESTION_TOKENS, ours.config.text_config.hidden_size, device=device)
    answer_ids = made_answers(options.answers).to(device)
    timed = range(0, options.answers, max(1, options.answers // options.timed))
    alone: dict[int, float] = {}
    one_by_one(stock, states, answer_ids, timed[:3], {})  # warm up, both sides
    ours.rank(states, None, answer_ids, 3)
    seconds = seconds_of(partial(one_by_one, stock, states, answer_ids, timed, alone)) / len(timed) * options.answers
    chosen = ours.rank(states, None, answer_ids, RANKED_ANSWERS).rows[0].tolist()
    one_by_one(stock, states, answer_ids, chosen, alone)
    rows = [
        compare(ours, states, answer_ids, top_k, alone, seconds, options) for top_k in (RANKED_ANSWERS, options.answers)
    ]
    about = {
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "answers timed one by one": len(timed),
    }
    output = options.output or RESULTS / f"ranking_{options.size}_{device.type}.json"
    write_results(output, machine(["torch", "transformers"], **about), rows)


def build(size: str, device: torch.device) -> tuple[Any, BlipForAnswering]:
    """Build the stock model and ours with the same random weights."""
    torch.manual_seed(0)
    config = SIZES[size].config()
    stock = BlipForQuestionAnswering(config).eval().to(device)
    ours = BlipForAnswering(config).eval().to(device)
    ours.load_state_dict(stock.state_dict())
    use_onednn(ours)
    return stock, ours.use_sdpa()


def made_answers(count: int) -> torch.Tensor:
    """Token ids `(answers, tokens)` of answers: `[DEC]`, word pieces, `[SEP]`, padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.full((count, max(LENGTHS) + 2), PAD)
    ids[:, 0] = DEC
    lengths = torch.multinomial(torch.tensor([*LENGTHS.values()]), count, replacement=True, generator=generator)
    for row, length in enumerate([[*LENGTHS][number] for number in lengths]):
        ids[row, 1 : 1 + length] = torch.randint(FIRST_WORD, DEC, (length,), generator=generator)
        ids[row, 1 + length] = SEP
    return ids


@torch.no_grad()
def one_by_one(stock: Any, states: torch.Tensor, answer_ids: torch.Tensor, rows: Any, losses: dict[int, float]) -> None:
    """Score answers by a forward pass each, and keep their losses by row."""
    for row in rows:
        answer = answer_ids[row][answer_ids[row] != PAD]
        logits = stock.text_decoder(answer[None], encoder_hidden_states=states).logits[0, :-1].float()
        loss = F.cross_entropy(logits, answer[1:], reduction="sum", label_smoothing=SMOOTHING["smoothed_loss"])
        losses[row] = loss.item()


def compare(
    ours: BlipForAnswering,
    states: torch.Tensor,
    answer_ids: torch.Tensor,
    top_k: int,
    alone: dict[int, float],
    seconds: float,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Measure our ranking of the `top_k` answers, and compare its losses and order with those of `alone`."""
    found: list[Ranking] = []

    def rank() -> None:
        found.append(ours.rank(states, None, answer_ids, top_k))
        synchronise(states.device)

    took = min(seconds_of(rank) for _ in range(options.turns))
    rows, losses = found[-1].rows[0].tolist(), found[-1].losses[0].tolist()
    both = [row for row in rows if row in alone]
    differences = [abs(loss - alone[row]) for row, loss in zip(rows, losses, strict=True) if row in alone]
    return {
        "compared in full": top_k,
        "answers": len(answer_ids),
        "one by one: s": round(seconds, 2),
        "ours: s": round(took, 2),
        "ours / one by one": round(took / seconds, 4),
        "largest difference of losses": float(f"{max(differences):.1e}"),
        "same order": both == sorted(both, key=lambda row: alone[row]),
        "answers with both losses": len(both),
    }


if __name__ == "__main__":
    run_command(main)
