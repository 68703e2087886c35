"""Self-critical sequence training (Rennie et al., 2017, https://arxiv.org/abs/1612.00563).

Sampled captions become more likely if they score above the baseline of their image, and less likely otherwise.

The objective is the expected reward of a sampled caption, minus `kl_coef` times the KL divergence from the initial
model. The gradient is REINFORCE with an unbiased baseline: the other samples of the image (Luo, 2020,
https://arxiv.org/abs/2003.09971), or its greedy caption (the original).

Three rules keep the gradient unbiased:

- Samples come from the same probabilities that are differentiated: temperature 1, no top-k (transformers' default is
  50), no minimum length, and no dropout in either pass. The original samples and differentiates under one dropout mask;
  two passes would use two masks and bias the gradient.
- All tokens of a sample count, up to and including the first `[SEP]`. A caption that reaches `generation_max_length`
  is rewarded as one without an end token.
- The divergence is subtracted from the reward (as in RLOO, Ahmadian et al., 2024, https://arxiv.org/abs/2402.14740). As
  a separate loss, its sampled gradient would be wrong.

An image is encoded once for samples, log-probabilities and cross entropy. A thread computes the rewards while the model
computes log-probabilities.
"""

from __future__ import annotations

import copy
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from blip_recipe.captioning.arguments import REWARDS
from blip_recipe.captioning.rewards import CaptionReward, PictureRater, caption_statistics
from blip_recipe.captioning.trainer import CaptionTrainer
from blip_recipe.captioning.training_arguments import ScstTrainingArguments
from blip_recipe.data.dataset import CaptionDataset
from blip_recipe.errors import RecipeError
from blip_recipe.models.adapters import is_adapted
from blip_recipe.models.captioner import generate_token_ids
from blip_recipe.models.regularization import set_drop_path
from blip_recipe.models.text import IGNORED, decode_texts
from blip_recipe.models.vision import encode_images
from blip_recipe.training.caption_scoring import count_predicted_tokens
from blip_recipe.training.memory import weight_bytes
from blip_recipe.training.records import MeanRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from concurrent.futures import Future

    from transformers import (
        EvalPrediction,
        PreTrainedTokenizerBase,
    )


logger = logging.getLogger(__name__)

Scored = tuple[torch.Tensor, torch.Tensor | None, dict[str, float]]
"""Rewards `(images, samples)`, rewards of greedy captions `(images,)`, and the statistics of the samples."""


def pack_samples(token_ids: torch.Tensor, prompt: torch.Tensor, sep_token_id: int) -> dict[str, torch.Tensor]:
    """Pack the samples of each image end to end in one row, for `BlipForCaptioning.forward`.

    Args:
        token_ids: `(images, samples, tokens)`, without the prompt. All tokens after the first `[SEP]` are padding.
        prompt: `(tokens,)`, `[DEC]` and the prompt.
        sep_token_id: The id of `[SEP]`.

    Returns:
        `input_ids`, `position_ids` and `labels`, each `(images, samples * (prompt + tokens))`. The sampled tokens and
        the first `[SEP]` are predicted.
    """
    images, samples, _ = token_ids.shape
    is_end = token_ids == sep_token_id
    is_sampled = is_end.cumsum(2) - is_end.long() == 0
    start = prompt.expand(images, samples, -1)
    positions = torch.arange(len(prompt) + token_ids.shape[2], device=token_ids.device)
    is_text = F.pad(is_sampled, (len(prompt), 0), value=True)
    return {
        "input_ids": torch.cat([start, token_ids], 2).flatten(1),
        # Padding has position 0, so it attends only to itself (`packed_mask`).
        "position_ids": (positions * is_text).flatten(1),
        "labels": torch.cat([torch.full_like(start, IGNORED), token_ids.masked_fill(~is_sampled, IGNORED)], 2).flatten(
            1
        ),
    }


def advantages(rewards: torch.Tensor, greedy: torch.Tensor | None = None) -> torch.Tensor:
    """The reward of each sample minus its baseline.

    Args:
        rewards: `(images, samples)`.
        greedy: `(images,)`, the rewards of greedy captions as baselines. By default the baseline of a sample is the
            mean reward of the other samples of its image.
    """
    if greedy is not None:
        return rewards - greedy[:, None]
    samples = rewards.shape[1]
    return (rewards - rewards.mean(1, keepdim=True)) * samples / (samples - 1)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability to 0. Unlike evaluation mode, this keeps gradient checkpointing."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


class ScstTrainer(CaptionTrainer):
    """Train a BLIP captioner on the scores of its own captions (self-critical sequence training).

    Use it as a second stage, with a captioner that was trained with cross entropy. All other arguments are those of
    [`CaptionTrainer`].

    Args:
        args ([`ScstTrainingArguments`], *optional*): The training arguments.
        kwargs: Other arguments of [`CaptionTrainer`].

    Raises:
        RecipeError: As [`CaptionTrainer`], or `train_dataset` is a stream.

    Example:
        ```python
        from blip_recipe import ScstTrainer, ScstTrainingArguments

        args = ScstTrainingArguments("outputs/scst", learning_rate=1e-6, captions_per_image=1)
        trainer = ScstTrainer("outputs/mine", args, photos["train"], photos["validation"])
        trainer.train()
        ```
    """

    arguments_class = ScstTrainingArguments

    args: ScstTrainingArguments

    def prepare_task(self) -> None:
        """Like `CaptionTrainer`'s, and disables dropout and records samples."""
        super().prepare_task()
        if getattr(self.train_dataset, "has_prompts", False):
            raise RecipeError(
                "train_dataset has a prompt for each image, but self-critical training samples all captions from one: "
                "remove the column (`dataset.remove_columns('prompt')`), and set the argument `prompt`."
            )
        self.record = MeanRecord()
        self.add_callback(self.record)
        disable_dropout(self.plain_model)
        set_drop_path(self.plain_model, 0.0)
        tokenizer, text_config = self.processor.tokenizer, self.plain_model.config.text_config
        self.prompt_ids = [text_config.bos_token_id, *tokenizer(self.args.prompt).input_ids[1:-1]]
        self.sep_token_id = text_config.sep_token_id

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Like Trainer's, after counting document frequencies and copying the reference model if needed."""
        logger.info("Counting the n-grams of the training captions")
        self.reward = CaptionReward(
            list(self._training_captions()),
            self.args.cider_reward_weight,
            self.args.bleu_reward_weight,
            self.args.score_tokenizer,
        )
        self.reference_model: nn.Module | None = None
        model = self._plain_model()
        if self.args.kl_coef and not is_adapted(model):
            self.reference_model = copy.deepcopy(model).requires_grad_(False).eval().to(self.args.device)
        with ThreadPoolExecutor(1) as self.scoring:
            return super().train(*args, **kwargs)

    def _training_captions(self) -> Iterable[Sequence[str]]:
        if not isinstance(self.train_dataset, CaptionDataset):
            raise RecipeError(
                "train_dataset is a stream, but self-critical training counts the n-grams of all captions first: "
                "expected a data set that is not streamed."
            )
        return self.train_dataset.rows["captions"]

    def _plain_model(self) -> Any:
        return self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False, keep_torch_compile=False)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """Numbers of images and of predicted caption tokens in an optimiser step over all processes, `(2,)`."""
        labels = [batch["labels"] for batch in batch_samples]
        counts = [sum(map(len, labels)), sum(int(count_predicted_tokens(each).sum()) for each in labels)]
        return self.accelerator.reduce(torch.tensor(counts, device=device), "sum")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean of minus advantage times log-probability over all samples of the optimiser step.

        With `xe_weight`, the loss is the weighted mean of this and the cross entropy of the reference captions, without
        label smoothing. Only the gradient of the loss is meaningful, not its value.
        """
        with self.accelerator.autocast():
            image_embeds = self._encode(self._module(model), inputs)
        token_ids, greedy_ids = self._sample(image_embeds.detach())
        scored = self.scoring.submit(self._score, inputs["row"].tolist(), token_ids.cpu(), greedy_ids)
        batch = pack_samples(token_ids, torch.tensor(self.prompt_ids, device=token_ids.device), self.sep_token_id)
        sample_length = batch["labels"].shape[1]
        captions = {name: torch.cat([batch[name], inputs[name]], 1) for name in batch} if self._has_xe else batch
        outputs = model(image_embeds=image_embeds, **captions)
        losses = F.pad(outputs.token_losses, (1, 0))
        nll = losses[:, :sample_length].view(*token_ids.shape[:2], -1).sum(2)
        divergence = self._divergence(inputs, image_embeds, batch, nll.detach())
        rewards, greedy, statistics = self._wait_for_scores(scored)
        penalised = rewards.to(nll) - self.args.kl_coef * divergence
        advantage = advantages(penalised, None if greedy is None else greedy.to(nll))
        images, tokens = (num_items_in_batch / self.accelerator.num_processes).tolist()
        loss = (advantage * nll).sum() / (images * token_ids.shape[1])
        if self._has_xe:
            loss = (1 - self.args.xe_weight) * loss + self.args.xe_weight * losses[:, sample_length:].sum() / tokens
        self._record_samples(
            len(rewards), {"reward": float(rewards.mean()), "kl": float(divergence.mean()), **statistics}
        )
        return (loss, outputs) if return_outputs else loss

    def _wait_for_scores(self, scored: Future[Scored]) -> Scored:
        return scored.result()

    @property
    def _has_xe(self) -> bool:
        return self.args.xe_weight > 0

    def _module(self, model: Any) -> Any:
        """The model without its wrappers for several processes."""
        return self.accelerator.unwrap_model(model, keep_torch_compile=False)

    def _encode(self, module: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Encode the images of a batch, `(images, patches, width)`."""
        if "image_embeds" in inputs:
            return inputs["image_embeds"]
        return encode_images(module.vision_model, inputs["pixel_values"])

    def _sample(self, image_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Sample captions `(images, samples, tokens)`, and generate greedy ones `(images, 1, tokens)` as baseline."""
        count = self.args.num_generations
        model = self._module(self.model)
        common: dict[str, Any] = {
            "num_beams": 1,
            "min_length": 0,
            "max_length": self.args.generation_max_length,
        }
        sampling = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "num_return_sequences": count}
        # In training mode, gradient checkpointing would disable the cache.
        model.eval()
        # Use a separate autocast: weights that it caches here have no gradient and must not be used in the other pass.
        with self.accelerator.autocast():
            drawn, greedy = (
                generate_token_ids(
                    model, self.processor.tokenizer, image_embeds, self.args.prompt, **common, **kwargs
                ).unflatten(0, (len(image_embeds), -1))
                if wanted
                else None
                for wanted, kwargs in ((True, sampling), (self.args.scst_baseline == "greedy", {"do_sample": False}))
            )
        model.train()
        assert drawn is not None
        return drawn, None if greedy is None else greedy.cpu()

    def _score(self, rows: list[int], token_ids: torch.Tensor, greedy_ids: torch.Tensor | None) -> Scored:
        """Rewards `(images, samples)`, rewards of greedy captions `(images,)`, and statistics of the samples."""
        captions, rewards = self._score_captions(rows, token_ids)
        ended = (token_ids == self.sep_token_id).any(2)
        statistics = asdict(caption_statistics(captions)) | {"unfinished": 1 - float(ended.float().mean())}
        greedy = None if greedy_ids is None else self._score_captions(rows, greedy_ids)[1][:, 0]
        return rewards, greedy, statistics

    def _score_captions(self, rows: list[int], token_ids: torch.Tensor) -> tuple[list[str], torch.Tensor]:
        captions = decode_texts(self.processor.tokenizer, token_ids.flatten(0, 1))
        ended = (token_ids == self.sep_token_id).any(2).tolist()
        samples = token_ids.shape[1]
        own = [captions[start : start + samples] for start in range(0, len(captions), samples)]
        rewards = torch.tensor([self.reward.score(*each) for each in zip(rows, own, ended, strict=True)])
        if raters := self._raters():
            # The whole pictures, as evaluations score them; those of the batch are augmented.
            pictures = [self.train_dataset.rows[row]["image"] for row in rows]
            rewards += sum(weight * torch.tensor(rater.rate(pictures, own)) for weight, rater in raters)
        return captions, rewards

    def _raters(self) -> list[tuple[float, PictureRater]]:
        """The models whose scores are part of the reward, with their weights."""
        models, args = self.score_models, self.args
        weights = [(args.clip_reward_weight, models.clip), (args.itm_reward_weight, models.matcher)]
        return [(weight, rater) for weight, rater in weights if weight and rater is not None]

    @torch.no_grad()
    def _divergence(
        self,
        inputs: dict[str, Any],
        image_embeds: torch.Tensor,
        batch: dict[str, torch.Tensor],
        nll: torch.Tensor,
    ) -> torch.Tensor:
        """The log-probability of each sample minus that by the reference model, in nats.

        `nll` `(images, samples)` are the negative log-likelihoods of the samples. The mean over samples estimates the
        KL divergence from the reference model.
        """
        if not self.args.kl_coef:
            return torch.zeros_like(nll)
        if self.reference_model is None:
            model = self._module(self.model)
            with model.disable_adapter():
                return self._reference_nll(model, inputs, image_embeds, batch, nll.shape) - nll
        return self._reference_nll(self.reference_model, inputs, image_embeds, batch, nll.shape) - nll

    def _reference_nll(
        self, model: Any, inputs: dict[str, Any], image_embeds: torch.Tensor, batch: dict[str, torch.Tensor], shape: Any
    ) -> torch.Tensor:
        with self.accelerator.autocast():
            # If the image encoder is trained, the reference model needs its own embeddings.
            embeds = self._encode(model, inputs) if image_embeds.requires_grad else image_embeds
            return F.pad(model(image_embeds=embeds, **batch).token_losses, (1, 0)).view(*shape, -1).sum(2)

    def _record_samples(self, images: int, means: dict[str, float]) -> None:
        """Add the means of all processes to the record."""
        if not self.args.kl_coef:
            means.pop("kl")
        sums = torch.tensor([images, *(images * mean for mean in means.values())])
        sums = self.accelerator.reduce(sums.to(self.args.device), "sum")
        self.record.add(dict(zip(["images", *means], sums.tolist(), strict=True)))

    def count_tokens(self, batch: dict[str, Any]) -> int:
        """None: the captions that are trained on are sampled, not read from batches."""
        return 0

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Like Trainer's, with the means of the samples since the last log line."""
        if "loss" in logs:
            logs = logs | self.record.pop_means()
        super().log(logs, *args, **kwargs)

    def score_on_this_process(self, prediction: EvalPrediction) -> dict[str, float]:
        """Like `CaptionTrainer`'s, with the statistics of the captions."""
        scores = super().score_on_this_process(prediction)
        return scores | asdict(caption_statistics([each["caption"] for each in self.predictions]))

    @classmethod
    def tokens_per_image(cls, args: Any, rows: Any, tokenizer: PreTrainedTokenizerBase) -> int:
        """Tokens of an image's samples, plus those of its captions with `xe_weight`."""
        sampled = args.num_generations * args.generation_max_length
        return sampled + (super().tokens_per_image(args, rows, tokenizer) if args.xe_weight else 0)

    @classmethod
    def bytes_beside(cls, model: Any, args: Any) -> int:
        """The bytes of models of scores, and of the reference model; an adapted model uses its base as reference."""
        reference = weight_bytes(model) if args.kl_coef and not is_adapted(model) else 0
        return super().bytes_beside(model, args) + reference

    @classmethod
    def describe_settings(cls, args: Any, images: int, texts_per_image: float) -> dict[str, str]:
        """The settings of reward, baseline and divergence."""
        baselines = {"leave_one_out": "the mean of the other samples of the image", "greedy": "the greedy caption"}
        rewards = [(label, getattr(args, name)) for name, label in REWARDS.items()]
        settings = super().describe_settings(args, images, texts_per_image)
        return {
            "objective": "expected reward of sampled captions (self-critical sequence training), without dropout",
            "reward": " + ".join(f"{weight:g} × {name}" for name, weight in rewards if weight) + ", end token included",
            "samples per step": f"{images * args.num_generations:,} ({args.num_generations} per image)",
            "baseline of a sample": baselines[args.scst_baseline],
            "KL coefficient": f"{args.kl_coef:g}",
            "weight of cross entropy": f"{args.xe_weight:g}",
            "training captions": settings["training captions"],
            "prompt": settings["prompt"],
        }
