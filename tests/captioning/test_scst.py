"""Self-critical training: the gradient is that of the expected reward, however a step is cut and wherever it stops."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from captioners import CAPTIONS, draw_pictures, save_captioner
from commands import run_checked
from safetensors.torch import load_file

from blip_recipe.captioning.arguments import ScstArguments
from blip_recipe.captioning.modeling import BlipForCaptioning
from blip_recipe.captioning.rewards import BAD_ENDINGS, CaptionReward, caption_statistics
from blip_recipe.captioning.scst import ScstTrainer, advantages, disable_dropout, pack_samples
from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.errors import RecipeError
from blip_recipe.metrics.cider import Cider
from blip_recipe.metrics.ngram_index import NgramIndex
from blip_recipe.metrics.tokenizer import tokenize
from blip_recipe.models.captioner import generate_token_ids
from blip_recipe.recipe.arguments import FinetuneOptions
from blip_recipe.recipe.parsing import read_recipe
from blip_recipe.recipe.recipe import Recipe

REFERENCES = [["a red circle", "one red circle"], ["two blue squares on a ground", "blue squares"], ["a green cross"]]


# Rewards


def test_without_the_end_token_the_reward_is_the_scorers_cider() -> None:
    tokenized = [tokenize(captions) for captions in REFERENCES]
    captions = ["a red circle", "two blue squares", "a cross a cross"]
    expected = Cider(NgramIndex(tokenized)).score(captions).per_image["cider"]
    reward = CaptionReward(REFERENCES, 1.0, 0.0)
    reward.cider = type(reward.cider)(tokenized)
    found = [reward.cider.score_image([words], each)[0] for words, each in zip(captions, tokenized, strict=True)]
    assert found == pytest.approx(expected, abs=1e-12)


def test_a_caption_without_its_end_or_with_a_bad_one_is_worth_less() -> None:
    reward = CaptionReward(REFERENCES, 1.0, 0.5)
    whole, cut, bad = reward.score(
        1, ["two blue squares on a ground"] * 2 + ["two blue squares on a"], [True, False, True]
    )
    assert whole > cut > 0
    assert whole > bad
    assert reward.score(1, [""], [False]) == [0.0]


def test_rewards_are_the_weighted_sum_of_their_parts() -> None:
    captions, ended = ["a red circle", "red circle on"], [True, True]
    ciders = CaptionReward(REFERENCES, 1.0, 0.0).score(0, captions, ended)
    bleus = CaptionReward(REFERENCES, 0.0, 1.0).score(0, captions, ended)
    mixed = CaptionReward(REFERENCES, 2.0, 3.0).score(0, captions, ended)
    assert mixed == pytest.approx([2 * c + 3 * b for c, b in zip(ciders, bleus, strict=True)])
    assert bleus[0] == pytest.approx(1.0, abs=1e-6)


def test_habits_count_repetitions_bad_endings_and_different_words() -> None:
    habits = caption_statistics(["a man on a man on a man on a", "Two dogs run."])
    assert habits.caption_length == 6.5
    assert habits.distinct_words == pytest.approx(6 / 13)
    assert habits.repeated_ngrams == pytest.approx((1 - 3 / 7) / 2)
    assert habits.bad_endings == 0.5
    assert "a" in BAD_ENDINGS


# The gradient


def tiny_captioner(**changes: Any) -> tuple[BlipForCaptioning, Any]:
    torch.manual_seed(0)
    model, processor = build_tiny_captioner(["a red circle", "two blue squares"])
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(3.0 if weights.ndim > 1 else 1.0)
    return model.use_sdpa().eval(), processor


def test_samples_end_to_end_have_the_log_probabilities_of_the_stock_forward() -> None:
    model, processor = tiny_captioner()
    pixels, sep = torch.randn(2, 3, 96, 96), processor.tokenizer.sep_token_id
    prompt = torch.tensor([processor.tokenizer.bos_token_id, *processor.tokenizer("a").input_ids[1:-1]])
    token_ids = torch.tensor([[[5, 6, sep, 0], [7, 8, 9, 10]], [[sep, 0, 0, 0], [0, 0, sep, 0]]])
    losses = model(pixels, **pack_samples(token_ids, prompt, sep)).token_losses
    found = torch.nn.functional.pad(losses, (1, 0)).view(2, 2, -1).sum(2)
    for image, sample in product(range(2), range(2)):
        ids = token_ids[image, sample].tolist()
        spoken = ids[: ids.index(sep) + 1] if sep in ids else ids
        row = torch.tensor([[*prompt.tolist(), *spoken]])
        told = model(pixels[image : image + 1], input_ids=row).logits[0].log_softmax(-1)
        by_hand = -told[torch.arange(len(spoken)) + len(prompt) - 1, spoken].sum()
        assert found[image, sample].item() == pytest.approx(by_hand.item(), abs=1e-4)


class ToyPolicy:
    """A real tiny captioner whose words are all but a few forbidden, so that its captions can be listed."""

    WORDS, LENGTH = 4, 2

    def __init__(self) -> None:
        self.model, processor = tiny_captioner()
        self.tokenizer, self.sep = processor.tokenizer, processor.tokenizer.sep_token_id
        self.words = [self.sep, *range(5, 5 + self.WORDS - 1)]
        self.bias = self.model.text_decoder.cls.predictions.bias
        with torch.no_grad():
            self.bias.fill_(-1e4)
            self.bias[self.words] = torch.tensor([0.5, 0.2, -0.3, 0.0])
        self.prompt = torch.tensor([self.tokenizer.bos_token_id])
        generator = torch.Generator().manual_seed(3)
        self.embeds = self.model.vision_model(torch.randn(1, 3, 96, 96, generator=generator)).last_hidden_state.detach()
        # Every caption of at most two tokens: one that ends, or is cut.
        self.captions = [[self.sep, 0]] + [list(pair) for pair in product(self.words[1:], self.words)]
        self.rewards = {tuple(caption): math.sin(7.0 * n) + 2.0 for n, caption in enumerate(self.captions)}

    def surprise(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Minus log-probabilities `(images, samples)`."""
        embeds = self.embeds.expand(len(token_ids), -1, -1)
        losses = self.model(image_embeds=embeds, **pack_samples(token_ids, self.prompt, self.sep)).token_losses
        return torch.nn.functional.pad(losses, (1, 0)).view(*token_ids.shape[:2], -1).sum(2)

    def gradient(self, value: torch.Tensor) -> torch.Tensor:
        """Of `value` by the words' biases, which every word depends on."""
        return torch.autograd.grad(value, self.bias, retain_graph=True)[0][self.words]

    def sample(self, count: int) -> torch.Tensor:
        """`(count, tokens)` captions by the settings of training."""
        how: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "num_beams": 1}
        return generate_token_ids(
            self.model,
            self.tokenizer,
            self.embeds,
            "",
            **how,
            num_return_sequences=count,
            min_length=0,
            max_length=1 + self.LENGTH,
        )


@pytest.mark.parametrize("baseline", ["leave_one_out", "greedy"])
def test_the_mean_gradient_is_that_of_the_expected_reward_by_enumeration(baseline: str) -> None:
    toy, samples, groups = ToyPolicy(), 3, 3000
    every = torch.tensor(toy.captions)[None]
    probabilities = (-toy.surprise(every)[0]).exp()
    assert probabilities.sum().item() == pytest.approx(1.0, abs=1e-4)
    worth = torch.tensor([toy.rewards[tuple(caption)] for caption in toy.captions])
    exact = toy.gradient((probabilities * worth).sum())

    torch.manual_seed(5)
    drawn = toy.sample(samples * groups)
    # Few different captions: their scores' gradients once, then as often as they were drawn.
    scores = torch.stack([toy.gradient(-surprise) for surprise in toy.surprise(every)[0]])
    numbers = torch.tensor([toy.captions.index(caption) for caption in drawn.tolist()]).view(groups, samples)
    greedy = torch.full((groups,), float(worth[probabilities.argmax()])) if baseline == "greedy" else None
    advantage = advantages(worth[numbers], greedy)
    estimates = (advantage[..., None] * scores[numbers]).mean(1)
    error = estimates.std(0) / math.sqrt(groups)
    deviation = (estimates.mean(0) - exact) / error
    print(f"{baseline}: exact {exact.tolist()}, mean {estimates.mean(0).tolist()}, standard error {error.tolist()}")
    assert deviation.abs().max() < 4
    assert (exact / error).abs().max() > 10, "too few samples to tell anything"
    # Counting a sample's own reward into its baseline, or leaving the end out, would be found out.
    biased = ((worth[numbers] - worth[numbers].mean(1, keepdim=True))[..., None] * scores[numbers]).mean(1)
    assert ((biased.mean(0) - exact) / error).abs().max() > 4


def test_sampling_draws_captions_as_often_as_their_log_probabilities_say() -> None:
    toy, count = ToyPolicy(), 4000
    torch.manual_seed(1)
    drawn = [tuple(caption) for caption in toy.sample(count).tolist()]
    probabilities = (-toy.surprise(torch.tensor(toy.captions)[None])[0]).exp().tolist()
    for caption, probability in zip(toy.captions, probabilities, strict=True):
        error = math.sqrt(probability * (1 - probability) / count)
        assert abs(drawn.count(tuple(caption)) / count - probability) < 4.5 * error + 1e-4


def test_dropout_passes_all_in_training_mode() -> None:
    model, _ = tiny_captioner()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    disable_dropout(model.train())
    ids = torch.tensor([[1, 5, 6]])
    pixels = torch.randn(1, 3, 96, 96)
    assert torch.equal(model(pixels, input_ids=ids).logits, model(pixels, input_ids=ids).logits)


# The trainer


SMALL: dict[str, Any] = {
    "stage": "scst",
    "num_generations": 3,
    "augmentation": "none",
    "metrics": ["bleu"],
    "generation_num_beams": 1,
    "generation_max_length": 8,
    "per_device_train_batch_size": 4,
    "max_steps": 4,
    "learning_rate": 1e-3,
    "logging_steps": 2,
    "save_strategy": "no",
    "dataloader_num_workers": 0,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
}


def places(base: Path) -> dict[str, str]:
    return {"model_name_or_path": str(base), "dataset_name": str(base.parent / "pictures")}


def build(folder: Path, base: Path, **keys: Any) -> tuple[ScstTrainer, Recipe[FinetuneOptions]]:
    """A trainer as the command builds it."""
    from blip_recipe.data.load import load_splits
    from blip_recipe.recipe.building import build_model

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "recipe.json"
    file.write_text(json.dumps(SMALL | places(base) | {"output_dir": str(folder / "out")} | keys))
    recipe = read_recipe(FinetuneOptions, prog="", description="", recipe_needed=True, argv=[str(file)])
    splits = load_splits(recipe.data, recipe.task.load_split)
    model, processor = build_model(recipe, splits["train"])
    trainer = recipe.trainer(model, recipe.training, splits["train"], splits.get("eval"), processing_class=processor)
    assert isinstance(trainer, ScstTrainer)
    return trainer, recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioner that says something else of every picture, with a folder of pictures beside it."""
    folder = tmp_path_factory.mktemp("base")
    for split, count in {"train": 24, "validation": 4, "test": 4}.items():
        pictures = draw_pictures(folder / "pictures" / split, count)
        lines = [
            {"file_name": path.name, "captions": [CAPTIONS[number % 4], CAPTIONS[(number + 1) % 4]]}
            for number, path in enumerate(pictures)
        ]
        (folder / "pictures" / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return save_captioner(folder / "model")


def trained(trainer: ScstTrainer) -> dict[str, torch.Tensor]:
    trainer.train()
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters() if weight.requires_grad}


def test_a_step_moves_every_weight_and_logs_what_samples_are_like(tmp_path: Path, base: Path) -> None:
    trainer, _ = build(tmp_path, base, kl_coef=0.1, xe_weight=0.2, scst_baseline="greedy", bleu_reward_weight=1.0)
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    after = trained(trainer)
    still = [name for name in after if torch.equal(before[name], after[name])]
    assert [name for name in still if "position_embedding" not in name and "pooler" not in name] == []
    line = next(entry for entry in trainer.state.log_history if "reward" in entry)
    assert {"kl", "caption_length", "distinct_words", "repeated_ngrams", "bad_endings", "unfinished"} <= line.keys()
    assert line["caption_length"] > 0
    assert trainer.model.training


def test_bf16_trains_every_weight_too(tmp_path: Path, base: Path) -> None:
    trainer, _ = build(tmp_path, base, bf16=True, max_steps=1, warmup_steps=0)
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    after = trained(trainer)
    moved = [name for name in after if not torch.equal(before[name], after[name]) and "query.weight" in name]
    assert len(moved) == 4


def test_a_step_is_the_same_however_it_is_accumulated(tmp_path: Path, base: Path) -> None:
    # One image after the other: samples are drawn in the order of images only where batches are drawn one by one.
    def step(folder: str, batch: int, accumulation: int) -> dict[str, torch.Tensor]:
        trainer, _ = build(
            tmp_path / folder,
            base,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            optim="sgd",
            learning_rate=1e-3,
            max_grad_norm=0.0,
            warmup_steps=0,
            xe_weight=0.5,
        )
        # The captions of an image must not depend on those drawn before it.
        draw = trainer._sample

        def draw_anew(image_embeds: torch.Tensor) -> Any:
            each = []
            for embeds in image_embeds:
                torch.manual_seed(int(embeds.sum().abs() * 1e3))
                ids = draw(embeds[None])[0]
                each.append(torch.nn.functional.pad(ids, (0, 8 - ids.shape[2])))
            return torch.cat(each), None

        trainer._sample = draw_anew  # type: ignore[method-assign]
        return trained(trainer)

    whole, cut = step("whole", 6, 1), step("cut", 2, 3)
    start = dict(build(tmp_path / "start", base)[0].model.named_parameters())
    assert max((whole[name] - start[name]).abs().max().item() for name in whole) > 1e-4
    assert max((whole[name] - cut[name]).abs().max().item() for name in whole) < 1e-6


def test_a_resumed_run_draws_and_learns_bit_for_bit(tmp_path: Path, base: Path) -> None:
    keys: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": 3,
        "kl_coef": 0.1,
        "max_steps": 6,
        "logging_steps": 4,
    }
    straight, _ = build(tmp_path / "straight", base, **keys)
    expected = trained(straight)
    again, _ = build(tmp_path / "again", base, **keys)
    again.train(resume_from_checkpoint=str(tmp_path / "straight" / "out" / "checkpoint-3"))
    for name, weight in again.model.named_parameters():
        assert torch.equal(weight, expected[name]), name
    lines = [[e for e in each.state.log_history if "reward" in e] for each in (straight, again)]
    assert [e["reward"] for e in lines[0]] == [e["reward"] for e in lines[1]]
    assert [e["kl"] for e in lines[0]] == [e["kl"] for e in lines[1]]


@pytest.mark.parametrize("eight_bit", [False, True])
def test_an_adapter_is_pulled_to_the_base_and_nothing_else_is_trained(
    tmp_path: Path, base: Path, eight_bit: bool
) -> None:
    trainer, _ = build(
        tmp_path, base, use_peft=True, load_in_8bit=eight_bit, lora_r=2, lora_dropout=0.5, kl_coef=0.5, max_steps=2
    )
    after = trained(trainer)
    assert all("lora" in name for name in after)
    assert any(weight.abs().max() > 0 for name, weight in after.items() if "lora_B" in name)
    assert trainer.reference_model is None
    kls = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert kls
    assert all(math.isfinite(kl) for kl in kls)


def test_before_the_first_step_nothing_diverges_from_the_start(tmp_path: Path, base: Path) -> None:
    trainer, _ = build(tmp_path, base, kl_coef=1.0, max_steps=1, learning_rate=0.0, logging_steps=1)
    trainer.train()
    assert next(e["kl"] for e in trainer.state.log_history if "kl" in e) == pytest.approx(0.0, abs=1e-5)


def test_it_stops_when_validation_no_longer_gets_better(tmp_path: Path, base: Path) -> None:
    keys: dict[str, Any] = {
        "eval_split": "validation",
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
    }
    best = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "bleu_4",
        "early_stopping_patience": 2,
        "save_steps": 1,
    }
    trainer, _ = build(tmp_path, base, **keys, **best, learning_rate=0.0, max_steps=9)
    trainer.train()
    assert trainer.state.global_step == 3
    assert "eval_repeated_ngrams" in trainer.state.log_history[-2]


@pytest.mark.parametrize(
    "keys", [{"num_generations": 1}, {"xe_weight": 1.0}, {"kl_coef": -1.0}, {"cider_reward_weight": 0.0}]
)
def test_keys_that_cannot_work_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(keys))):
        ScstArguments(**keys)


def test_two_processes_train_and_the_card_tells_of_it(tmp_path: Path, base: Path) -> None:
    file = tmp_path / "scst.json"
    recipe = SMALL | places(base) | {"test_split": "test", "allow_shared_images": True, "max_steps": 3, "kl_coef": 0.1}
    file.write_text(json.dumps(recipe | {"logging_steps": 1, "per_device_train_batch_size": 2}))
    out = tmp_path / "out"
    run_checked("blip_recipe.finetune", file, "--output_dir", out, processes=2)
    results = json.loads((out / "all_results.json").read_text())
    assert {"baseline_bleu_4", "test_bleu_4", "baseline_repeated_ngrams", "test_repeated_ngrams"} <= results.keys()
    card = (out / "README.md").read_text()
    assert "## Self-critical training" in card
    assert (out / "training_curves.png").stat().st_size > 10_000
    assert load_file(out / "model.safetensors")
