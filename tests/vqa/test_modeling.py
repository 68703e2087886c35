"""`BlipForAnswering` learns by the paper's formula, sees no padding, and has the stock class's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertTokenizer, BlipForQuestionAnswering, BlipProcessor
from vqa_models import ANSWERS, QUESTIONS, WORDS, loud

from blip_recipe.errors import RecipeError
from blip_recipe.models.processors import load_processor, save_processor
from blip_recipe.vqa.collator import AnswerCollator, encode_answers
from blip_recipe.vqa.modeling import BlipForAnswering
from blip_recipe.vqa.tiny import build_tiny_answerer
from blip_recipe.vqa.tokens import use_question_token

ATTENTIONS = pytest.mark.parametrize("attention", ["sdpa", "eager"])
GREEDY = {"num_beams": 1, "max_length": 8, "min_length": 1, "do_sample": False}


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BlipProcessor]:
    torch.manual_seed(0)
    model, processor = build_tiny_answerer(WORDS)
    directory = tmp_path_factory.mktemp("answerer")
    loud(model).eval().save_pretrained(directory)
    save_processor(processor, directory)
    return directory, processor


def load(directory: Path, attention: str = "sdpa") -> BlipForAnswering:
    model = BlipForAnswering.from_pretrained(directory).eval()
    return model.use_sdpa() if attention == "sdpa" else model


def batch(processor: BlipProcessor, images: list[int] | None = None) -> dict[str, torch.Tensor]:
    """Questions of different lengths with one to three different answers; `images` says which are about one picture."""
    generator = torch.Generator().manual_seed(1)
    images = images or list(range(len(QUESTIONS)))
    pixels = torch.randint(0, 256, (max(images) + 1, 3, 96, 96), dtype=torch.uint8, generator=generator)
    collate = AnswerCollator(processor)
    rows = [
        {"row": row, "image_key": images[row], "image": pixels[images[row]], "question": question, "answers": answers}
        for row, (question, answers) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
    ]
    inputs = collate(rows)
    inputs["pixel_values"] = inputs["pixel_values"].float() / 128 - 1
    return inputs


def forward(model: BlipForAnswering, inputs: dict[str, torch.Tensor], **kwargs: Any) -> Any:
    return model(**{name: values for name, values in inputs.items() if name not in ("row", "answer_weights")}, **kwargs)


def our_loss(model: BlipForAnswering, inputs: dict[str, torch.Tensor], smoothing: float) -> torch.Tensor:
    losses = forward(model, inputs, label_smoothing=smoothing).token_losses
    return (losses * inputs["answer_weights"][:, 1:]).sum() / len(losses)


def paper_loss(
    stock: BlipForQuestionAnswering, processor: BlipProcessor, inputs: dict[str, torch.Tensor], smoothing: float
) -> torch.Tensor:
    """The formula word by word, a question and an answer at a time, so that nothing is ever padded.

    Mean over questions of the sum over answers of share times the sum over tokens of the cross entropy.
    """
    tokenizer, text = processor.tokenizer, stock.config.text_config
    encoder, decoder = tokenizer.convert_tokens_to_ids("[ENC]"), tokenizer.convert_tokens_to_ids("[DEC]")
    images: Any = inputs.get("image_index", torch.arange(len(QUESTIONS)))
    total = torch.zeros(())
    for question, answers, image in zip(QUESTIONS, ANSWERS, images.tolist(), strict=True):
        embeds = stock.vision_model(inputs["pixel_values"][image][None]).last_hidden_state
        question_ids = [encoder, *tokenizer(question, add_special_tokens=False).input_ids, text.sep_token_id]
        states = stock.text_encoder(torch.tensor([question_ids]), encoder_hidden_states=embeds).last_hidden_state
        for answer in set(answers):
            words = tokenizer(answer, add_special_tokens=False).input_ids
            answer_ids = torch.tensor([[decoder, *words, text.sep_token_id]])
            logits = stock.text_decoder(answer_ids, encoder_hidden_states=states).logits[0, :-1]
            log_probabilities = torch.log(torch.softmax(logits, dim=-1))
            for position, target in enumerate(answer_ids[0, 1:]):
                hard = -log_probabilities[position, target]
                smooth = -log_probabilities[position].mean()
                share = answers.count(answer) / len(answers)
                total = total + share * ((1 - smoothing) * hard + smoothing * smooth)
    return total / len(QUESTIONS)


@ATTENTIONS
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("images", [None, [0, 1, 0, 1]])
def test_loss_and_gradients_equal_the_formula(
    answerer: tuple[Path, BlipProcessor], attention: str, smoothing: float, images: list[int] | None
) -> None:
    directory, processor = answerer
    model, stock = load(directory, attention), BlipForQuestionAnswering.from_pretrained(directory).eval()
    inputs = batch(processor, images)
    ours, theirs = our_loss(model, inputs, smoothing), paper_loss(stock, processor, inputs, smoothing)
    ours.backward()
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    expected = {name: p.grad for name, p in stock.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3, msg=name)


def test_gradient_checkpointing_changes_nothing(answerer: tuple[Path, BlipProcessor]) -> None:
    model, inputs = load(answerer[0]), batch(answerer[1])
    loss = our_loss(model, inputs, 0.1)
    model.train().activation_checkpointing_enable({"use_reentrant": False})  # the tiny model has no dropout
    assert our_loss(model, inputs, 0.1).item() == pytest.approx(loss.item(), abs=1e-6)


@ATTENTIONS
def test_padding_of_questions_changes_nothing(answerer: tuple[Path, BlipProcessor], attention: str) -> None:
    directory, processor = answerer
    # In double precision, where rounding is far below what padding could change.
    model, inputs = load(directory, attention).double(), batch(processor)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    longer = dict(inputs)
    for name, value in (("input_ids", 7), ("attention_mask", 0)):
        filling = torch.full((len(QUESTIONS), 9), value)
        longer[name] = torch.cat([inputs[name], filling], dim=1)
    losses, padded = forward(model, inputs).token_losses, forward(model, longer).token_losses
    torch.testing.assert_close(padded, losses, atol=1e-6, rtol=0)
    # And it would: without the mask, the same padding is seen.
    unmasked = longer | {"attention_mask": torch.ones_like(longer["attention_mask"])}
    assert (forward(model, unmasked).token_losses - losses).abs().max() > 1e-2


@ATTENTIONS
def test_an_answer_sees_neither_its_neighbours_nor_padding(
    answerer: tuple[Path, BlipProcessor], attention: str
) -> None:
    directory, processor = answerer
    model, inputs = load(directory, attention), batch(processor)
    losses = forward(model, inputs).token_losses
    changed = dict(inputs) | {"decoder_input_ids": inputs["decoder_input_ids"].clone()}
    second = int((inputs["decoder_position_ids"][1] == 0).nonzero()[1])
    changed["decoder_input_ids"][1, second:] = 7
    torch.testing.assert_close(forward(model, changed).token_losses[1, : second - 1], losses[1, : second - 1])
    assert not torch.allclose(forward(model, changed).token_losses[1], losses[1])


@ATTENTIONS
def test_logits_of_an_unpadded_question_are_the_stock_ones(
    answerer: tuple[Path, BlipProcessor], attention: str
) -> None:
    directory, processor = answerer
    model, stock = load(directory, attention), BlipForQuestionAnswering.from_pretrained(directory).eval()
    question = processor.tokenizer(QUESTIONS[0], return_tensors="pt")
    answer = torch.tensor([[processor.tokenizer.bos_token_id, *processor.tokenizer("red cat").input_ids[1:]]])
    pixels = batch(processor)["pixel_values"][:1]
    ours = model(pixels, question.input_ids, question.attention_mask, answer).logits
    embeds = stock.vision_model(pixels).last_hidden_state
    states = stock.text_encoder(question.input_ids, encoder_hidden_states=embeds).last_hidden_state
    theirs = stock.text_decoder(answer, encoder_hidden_states=states).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    stock_loss = stock(question.input_ids, pixels, labels=answer, attention_mask=question.attention_mask).loss
    our = model(pixels, question.input_ids, question.attention_mask, answer, labels=answer).token_losses.mean()
    assert our.item() == pytest.approx(stock_loss.item(), abs=1e-5)


@ATTENTIONS
@pytest.mark.parametrize("beams", [1, 3])
def test_answers_of_a_padded_batch_are_the_stock_answers_one_by_one(
    answerer: tuple[Path, BlipProcessor], attention: str, beams: int
) -> None:
    directory, processor = answerer
    model, stock = load(directory, attention), BlipForQuestionAnswering.from_pretrained(directory).eval()
    inputs = batch(processor)
    decoding: dict[str, Any] = {**GREEDY, "num_beams": beams}
    asked: dict[str, Any] = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    ours = processor.tokenizer.batch_decode(model.generate(**asked, **decoding), skip_special_tokens=True)
    theirs = []
    for question, pixels in zip(QUESTIONS, inputs["pixel_values"], strict=True):
        encoded = processor.tokenizer(question, return_tensors="pt")
        ids = stock.generate(encoded.input_ids, pixels[None], **decoding)
        theirs += processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert ours == theirs
    assert len(set(ours)) > 1


@ATTENTIONS
def test_ranking_without_smoothing_is_by_likelihood(answerer: tuple[Path, BlipProcessor], attention: str) -> None:
    directory, processor = answerer
    model, inputs = load(directory, attention), batch(processor)
    candidates = ["red", "red cat", "blue", "a blue dog", "two", "yes", "no"]
    answer_ids = encode_answers(processor.tokenizer, candidates)
    embeds = model.vision_model(inputs["pixel_values"]).last_hidden_state
    states = model.encode_questions(embeds, inputs["input_ids"], inputs["attention_mask"])
    rows, losses, likelihoods = model.rank(states, inputs["attention_mask"], answer_ids, label_smoothing=0)
    torch.testing.assert_close(losses, -likelihoods)
    assert rows.shape == likelihoods.shape == (len(QUESTIONS), len(candidates))
    for question, (order, ranked) in enumerate(zip(rows.tolist(), likelihoods.tolist(), strict=True)):
        by_hand = [likelihood(model, processor, inputs, question, candidate) for candidate in candidates]
        assert order == sorted(range(len(candidates)), key=lambda row: -by_hand[row])
        assert ranked == pytest.approx(sorted(by_hand, reverse=True), abs=1e-4)


@torch.no_grad()
def likelihood(
    model: BlipForAnswering, processor: BlipProcessor, inputs: dict[str, torch.Tensor], question: int, answer: str
) -> float:
    """Of all tokens of `answer` and its end, by the stock class, of the question alone."""
    words = int(inputs["attention_mask"][question].sum())
    ids = [processor.tokenizer.bos_token_id, *processor.tokenizer(answer).input_ids[1:]]
    logits = model(
        inputs["pixel_values"][question][None],
        inputs["input_ids"][question, :words][None],
        decoder_input_ids=torch.tensor([ids]),
    ).logits[0]
    return float(sum(logits[at].log_softmax(0)[token] for at, token in enumerate(ids[1:])))


def test_only_answers_of_the_most_likely_first_tokens_are_compared(answerer: tuple[Path, BlipProcessor]) -> None:
    model, processor, inputs = load(answerer[0]), answerer[1], batch(answerer[1])
    candidates = ["red", "blue", "two", "yes", "no"]
    answer_ids = encode_answers(processor.tokenizer, candidates)
    embeds = model.vision_model(inputs["pixel_values"]).last_hidden_state
    states = model.encode_questions(embeds, inputs["input_ids"], inputs["attention_mask"])
    rows = model.rank(states, inputs["attention_mask"], answer_ids, top_k=2).rows
    for question, found in enumerate(rows.tolist()):
        start = torch.tensor([[processor.tokenizer.bos_token_id]])
        words = int(inputs["attention_mask"][question].sum())
        logits = model(
            inputs["pixel_values"][question][None],
            inputs["input_ids"][question, :words][None],
            decoder_input_ids=start,
        ).logits[0, 0]
        best = logits[answer_ids[:, 1]].topk(2).indices.tolist()
        assert sorted(found) == sorted(best)


def test_saved_weights_and_names_are_the_stock_ones(answerer: tuple[Path, BlipProcessor]) -> None:
    directory, _ = answerer
    assert json.loads((directory / "config.json").read_text())["architectures"] == ["BlipForQuestionAnswering"]
    stock = BlipForQuestionAnswering.from_pretrained(directory).state_dict()
    assert set(load_file(directory / "model.safetensors")) <= set(stock)
    assert all(torch.equal(stock[name], weight) for name, weight in load(directory).state_dict().items())


def test_stock_weights_load_and_are_saved_without_a_renamed_key(
    answerer: tuple[Path, BlipProcessor], tmp_path: Path
) -> None:
    stock = BlipForQuestionAnswering.from_pretrained(answerer[0])
    stock.save_pretrained(tmp_path / "stock")
    load(tmp_path / "stock").save_pretrained(tmp_path / "ours")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("stock", "ours"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_saved_tokenizer_asks_as_the_model_was_trained(answerer: tuple[Path, BlipProcessor]) -> None:
    """The stock classes take questions as the tokenizer gives them."""
    tokenizer = load_processor(str(answerer[0])).tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer("red cat").input_ids) == ["[ENC]", "red", "cat", "[SEP]"]
    assert tokenizer.decode(tokenizer("red cat").input_ids, skip_special_tokens=True) == "red cat"
    before = len(tokenizer)
    use_question_token(tokenizer, tokenizer.bos_token_id)
    assert len(tokenizer) == before


def test_a_plain_bert_tokenizer_learns_the_first_tokens_in_the_original_order() -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "cat"]
    tokenizer = BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})
    use_question_token(tokenizer, 7)
    assert tokenizer("red cat").input_ids == [8, 5, 6, 3]
    assert tokenizer.bos_token_id == 7


def test_another_models_tokenizer_is_told_apart() -> None:
    tokenizer = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4})
    with pytest.raises(RecipeError, match=r"\[DEC\] as token 5.*bos_token_id 30522"):
        use_question_token(tokenizer, 30522)
