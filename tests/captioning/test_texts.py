"""The look at the tokenised captions before training, and the lengths that follow it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from captioners import save_captioner
from PIL import Image

from blip_recipe.captioning.trainer import CaptionTrainer
from blip_recipe.captioning.training_arguments import CaptionTrainingArguments
from blip_recipe.data.captions import join_prompt
from blip_recipe.models.processors import load_processor
from blip_recipe.training.caption_texts import PromptedTexts, look_at_captions
from blip_recipe.training.texts import TokenizedTexts, split_texts

LONG = " ".join(["a", "red", "square"] * 20)
POSITIONS = 512


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny captioner that knows the words of `captioners.CAPTIONS`."""
    return save_captioner(tmp_path_factory.mktemp("captioner"))


def arguments(output_dir: Path, **given: Any) -> CaptionTrainingArguments:
    quick: dict[str, Any] = {"max_steps": 1, "use_cpu": True, "report_to": [], "save_strategy": "no"}
    return CaptionTrainingArguments(str(output_dir), augmentation="none", **quick | given)


def look(
    captioner: Path, captions: Sequence[str], references: Sequence[str] = (), positions: int = POSITIONS, **given: Any
) -> tuple[CaptionTrainingArguments, list[str]]:
    args = arguments(Path("outputs"), **given)
    train, scored = (PromptedTexts(list(each), [args.prompt] * len(each)) for each in (captions, references))
    return args, look_at_captions(args, load_processor(str(captioner)).tokenizer, train, scored, positions)


def lengths(args: CaptionTrainingArguments) -> tuple[int | None, ...]:
    return args.max_caption_length, args.generation_min_length, args.generation_max_length


@pytest.mark.parametrize(
    ("captions", "given", "expected"),
    {
        # [DEC] dog [SEP] are 3 tokens, 2 of them before [SEP].
        "one word": (["dog", "dog"], {}, (40, 2, 3)),
        "a prompt counts": (["dog"], {"prompt": "a picture of "}, (40, 5, 6)),
        "shortest and longest": (["dog", LONG], {}, (62, 2, 62)),
        "bounded by the model": ([LONG * 20], {}, (512, 512, 512)),
        "nothing to train on": ([], {}, (40, 5, 20)),
        "given values stay": (
            ["dog"],
            {"max_caption_length": 7, "generation_min_length": 1, "generation_max_length": 9},
            (7, 1, 9),
        ),
        "a given maximum bounds the minimum": ([LONG], {"generation_max_length": 8}, (62, 8, 8)),
        "a given minimum raises the maximum": (["dog"], {"generation_min_length": 8}, (40, 8, 8)),
    }.values(),
)
def test_lengths_that_are_not_given_follow_the_training_captions(
    captioner: Path, captions: list[str], given: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    args, notes = look(captioner, captions, **given)
    assert lengths(args) == expected
    assert any("model reads at most 512" in note for note in notes) == (expected[0] == 512)


def test_what_does_not_fit_is_told_with_number_share_example_and_what_would_fit(captioner: Path) -> None:
    given = {"max_words": 30, "max_caption_length": 20, "generation_min_length": 5, "generation_max_length": 20}
    _, notes = look(captioner, ["two green circles", "dog", LONG, LONG], ["dog", "two green circles on", LONG], **given)
    assert notes == [
        f"2 of 4 training captions (50%) are cut to their first 30 words (max_words), such as '{LONG[:59]}…': "
        "max_words 60 would keep all of them.",
        f"2 of 4 training captions (50%) are cut to 20 tokens (max_caption_length), such as '{LONG[:59]}…': "
        "max_caption_length 32 would keep all of them.",
        "1 of 3 references (33%) are shorter than generation_min_length 5, such as 'dog': generation_min_length 2 fits "
        "the shortest.",
        f"1 of 3 references (33%) are longer than generation_max_length 20, such as '{LONG[:59]}…': "
        "generation_max_length 62 fits the longest, 6 fits 99% of them.",
    ]


def test_a_caption_as_long_as_generate_can_write_is_not_told(captioner: Path) -> None:
    """`[DEC]` and four words: a minimum and a maximum of 5 tokens allow it, with or without `[SEP]`."""
    _, notes = look(captioner, [], ["two green circles on"], generation_min_length=5, generation_max_length=5)
    assert notes == []


def test_words_that_the_tokenizer_changes_are_told_with_examples(captioner: Path) -> None:
    _, notes = look(captioner, ["a café", "a 猫", "a DOG, a cat"])
    assert notes == [
        "The tokenizer changes 3 of 9 words of the captions (33%), such as 'café' to 'cafe', '猫' to '[UNK]', "
        "',' to '[UNK]'; 10% of all tokens are [UNK]: set add_tokens to true, which adds what is missing, or "
        "tokenizer_name to another tokenizer."
    ]


def test_captions_as_written_are_cut_at_tokens_alone(captioner: Path) -> None:
    args, notes = look(captioner, [LONG], normalize_captions=False, max_words=30)
    assert lengths(args) == (62, 61, 62)
    assert notes == []


def test_a_long_caption_is_trained_whole(captioner: Path, tmp_path: Path) -> None:
    """Beyond the original's 30 words, unless the limit is set."""
    rows = datasets.Dataset.from_list([{"image": Image.new("RGB", (96, 96)), "captions": [LONG]}])
    for words, tokens in ((None, 62), (30, 32)):
        trainer = CaptionTrainer(str(captioner), arguments(tmp_path, max_words=words), rows)
        (batch,) = trainer.get_train_dataloader()
        assert batch["input_ids"].shape == (1, tokens)


def test_a_trainer_looks_once_warns_and_leaves_its_arguments_as_they_were(
    captioner: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    rows = datasets.Dataset.from_list(
        [
            {"image": Image.new("RGB", (96, 96), (60 * n, 9, 9)), "captions": ["dog" if n else "two green circles"]}
            for n in range(3)
        ]
    )
    args = arguments(tmp_path, generation_max_length=3)
    with caplog.at_level(logging.WARNING):
        trainer = CaptionTrainer(str(captioner), args, rows, {"one": rows, "two": rows})
    assert lengths(args) == (None, None, 3)
    assert lengths(trainer.args) == (40, 2, 3)
    warned = [record.getMessage() for record in caplog.records if "generation_max_length" in record.getMessage()]
    assert len(warned) == 1
    assert warned[0].startswith("2 of 6 references (33%) are longer than generation_max_length 3, such as 'two green")
    trainer.train()
    trainer.evaluate(rows)
    trainer.save_model()
    trainer.create_model_card()
    recipe, card = ((tmp_path / name).read_text(encoding="utf-8") for name in ("recipe.json", "README.md"))
    assert '"generation_min_length": 2' in recipe
    assert "- 2 of 6 references" in card
    assert all(len(each["caption"].split()) <= 2 for each in trainer.predictions)


@pytest.mark.parametrize("prompt", ["", "a picture of ", "two-"])
def test_lengths_from_words_are_those_of_whole_texts(captioner: Path, prompt: str) -> None:
    tokenizer = load_processor(str(captioner)).tokenizer
    texts = [
        "two green circles",
        "a dog, isn't it?  two\tdogs",
        "",
        "...",
        "caf\u00e9 \u732b\u732b [SEP] unknownword",
        LONG,
    ]
    read = TokenizedTexts.read(split_texts(texts, tokenizer), tokenizer, prompt)
    ids = [tokenizer(join_prompt(prompt, text)).input_ids for text in texts]
    assert read.lengths == list(map(len, ids))
    of_prompts = len(texts) * tokenizer(prompt).input_ids.count(tokenizer.unk_token_id)
    assert read.unknown == sum(each.count(tokenizer.unk_token_id) for each in ids) - of_prompts
