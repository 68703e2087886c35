"""`pipeline("visual-question-answering")` on transformers 5, `answer_pipeline`, and `python -m blip_recipe.answer`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from captioners import draw_pictures, save_captioner
from commands import CHECKOUT, run_checked, run_code, run_module
from PIL import Image
from transformers import BlipForQuestionAnswering, BlipProcessor
from transformers import pipeline as typed_pipeline
from vqa_models import QUESTIONS, save_answerer

import blip_recipe
from blip_recipe.answer import main
from blip_recipe.errors import RecipeError
from blip_recipe.models.loading import load_finished
from blip_recipe.vqa.modeling import BlipForAnswering

pipeline: Any = typed_pipeline  # its type has an overload for each task that transformers has itself
TASK = "visual-question-answering"
RECIPE: dict[str, Any] = {"task": "vqa", "generation_num_beams": 2, "generation_max_length": 7}
SETTINGS = {"num_beams": 2, "max_length": 7, "min_length": 1, "do_sample": False}
CHOICE = ["red", "a dog", "two", "yes", "no"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*map(str, draw_pictures(tmp_path_factory.mktemp("pictures"), 3))]


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_answerer(tmp_path_factory.mktemp("answerer"), **RECIPE)


@pytest.fixture(scope="module")
def expected(answerer: Path, pictures: list[str]) -> list[list[str]]:
    """By the stock class, one question at a time: for each question the answers of all pictures."""
    stock = BlipForQuestionAnswering.from_pretrained(answerer).eval()
    processor = BlipProcessor.from_pretrained(answerer)
    answers: list[list[str]] = []
    for question in QUESTIONS:
        answers.append([])
        for picture in pictures:
            inputs = processor(images=Image.open(picture), text=question, return_tensors="pt")
            ids = stock.generate(inputs.input_ids, inputs.pixel_values, **SETTINGS)
            answers[-1].append(processor.decode(ids[0], skip_special_tokens=True))
    return answers


def texts(results: Any) -> list[str]:
    """The answer to each question, where there is one each."""
    results = list(results)
    assert all(len(result) == 1 for result in results)
    return [result[0]["answer"] for result in results]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_pipeline_gives_the_answers_of_unpadded_questions(
    answerer: Path, pictures: list[str], expected: list[list[str]], batch_size: int
) -> None:
    assert len({answer for answers in expected for answer in answers}) > 2, "the test needs answers that differ"
    pipe = pipeline(TASK, model=str(answerer), device="cpu")
    pairs = [{"image": picture, "question": question} for question in QUESTIONS for picture in pictures]
    flat = [answer for answers in expected for answer in answers]
    assert texts(pipe(pairs, batch_size=batch_size)) == flat
    assert texts(pipe((pair for pair in pairs), batch_size=batch_size)) == flat
    assert texts(pipe(image=pictures, question=QUESTIONS, batch_size=batch_size)) == flat


def test_one_picture_one_question_and_lists_of_either(
    answerer: Path, pictures: list[str], expected: list[list[str]]
) -> None:
    pipe = blip_recipe.answer_pipeline(answerer, device="cpu")
    assert pipe(pictures[0], QUESTIONS[1]) == [{"answer": expected[1][0]}]
    assert pipe({"image": Image.open(pictures[0]), "question": QUESTIONS[1]}) == [{"answer": expected[1][0]}]
    assert texts(pipe(image=pictures, question=QUESTIONS[1])) == expected[1]
    assert texts(pipe(image=pictures[2], question=QUESTIONS)) == [answers[2] for answers in expected]
    assert texts(pipe.ask(pictures[2], QUESTIONS)) == [answers[2] for answers in expected]


def test_questions_are_cleaned_as_in_training(answerer: Path, pictures: list[str], expected: list[list[str]]) -> None:
    pipe = blip_recipe.answer_pipeline(answerer, device="cpu")
    assert pipe(pictures[0], f'  "{QUESTIONS[1].upper()}".')[0]["answer"] == expected[1][0]


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize(("rank_by", "sign"), [("smoothed_loss", 1), ("likelihood", -1)])
def test_answers_of_a_list_are_ranked(
    answerer: Path, pictures: list[str], batch_size: int, rank_by: str, sign: int
) -> None:
    pipe = blip_recipe.answer_pipeline(answerer, device="cpu")
    pairs = [{"image": pictures[0], "question": question} for question in QUESTIONS]
    ranked = pipe(pairs, answers=CHOICE, top_k=len(CHOICE), batch_size=batch_size, rank_by=rank_by)
    for each in ranked:
        assert sorted(found["answer"] for found in each) == sorted(CHOICE)
        name = "loss" if rank_by == "smoothed_loss" else "log_likelihood"
        values = [sign * found[name] for found in each]
        assert values == sorted(values)
    best = pipe(pairs, answers=CHOICE, rank_by=rank_by)
    assert [each[0] for each in best] == [pytest.approx(each[0]) for each in ranked]
    few = pipe(pairs, answers=CHOICE, top_k=len(CHOICE), rank_top_k=2, rank_by=rank_by)
    assert [len(each) for each in few] == [2] * len(pairs)


@pytest.mark.parametrize(
    "decoding",
    [
        {"repetition_penalty": 5.0},
        {"no_repeat_ngram_size": 1},
        {"num_beams": 3, "length_penalty": -9.0, "early_stopping": "never"},
    ],
    ids=lambda decoding: "-".join(decoding),
)
def test_the_command_decodes_as_the_pipeline(
    answerer: Path, pictures: list[str], capsys: pytest.CaptureFixture[str], decoding: dict[str, Any]
) -> None:
    """By the options of `caption`."""
    main([str(answerer), pictures[0], *QUESTIONS, *(f"--{name}={value}" for name, value in decoding.items())])
    written = [json.loads(line)["answer"] for line in capsys.readouterr().out.splitlines()]
    pipe = blip_recipe.answer_pipeline(answerer, device="cpu")
    assert texts(pipe(pictures[0], QUESTIONS, **decoding)) == written
    assert texts(pipe(pictures[0], QUESTIONS)) != written, "the test needs decoding that matters"


def test_a_length_penalty_of_one_beam_is_refused(answerer: Path, pictures: list[str]) -> None:
    with pytest.raises(RecipeError, match="--length_penalty is given, but there is one beam"):
        main([str(answerer), pictures[0], QUESTIONS[0], "--num_beams", "1", "--length_penalty", "2"])


def test_a_model_that_is_loaded_already_answers_as_its_directory(
    answerer: Path, pictures: list[str], expected: list[list[str]]
) -> None:
    stock = BlipForQuestionAnswering.from_pretrained(answerer)
    pipe = pipeline(TASK, model=stock, processor=BlipProcessor.from_pretrained(answerer), device="cpu")
    assert isinstance(pipe.model, BlipForAnswering)
    assert texts(pipe(image=pictures[0], question=QUESTIONS, batch_size=4, **SETTINGS)) == [
        each[0] for each in expected
    ]


def test_a_tokenizer_without_the_first_tokens_learns_them(answerer: Path, pictures: list[str], tmp_path: Path) -> None:
    """As published checkpoints have it: BERT's plain tokenizer, which begins with [CLS]."""
    save_answerer(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    tokenizer = load_finished(str(answerer), BlipForAnswering, device="cpu")[1].tokenizer
    plain = [word for word, _ in sorted(tokenizer.vocab.items(), key=lambda item: item[1])]
    (tmp_path / "vocab.txt").write_text("\n".join(plain[: tokenizer.bos_token_id]) + "\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    pipe = blip_recipe.answer_pipeline(tmp_path, device="cpu")
    assert pipe.tokenizer.convert_ids_to_tokens(pipe.tokenizer("red").input_ids) == ["[ENC]", "red", "[SEP]"]
    same = blip_recipe.answer_pipeline(save_answerer(tmp_path / "same"), device="cpu")
    assert texts(pipe.ask(pictures[0], QUESTIONS)) == texts(same.ask(pictures[0], QUESTIONS))


def test_an_adapter_answers_as_its_merged_model(answerer: Path, pictures: list[str], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from blip_recipe.models.adapters import name_stock_class
    from blip_recipe.models.processors import load_processor, save_processor

    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=BlipForAnswering.lora_layers, task_type=None, init_lora_weights=False)
    model: Any = get_peft_model(BlipForAnswering.from_pretrained(answerer), config)
    places = {name.split(".")[2] for name, _ in model.named_parameters() if ".lora_" in name}
    assert places == {"text_encoder", "text_decoder"}
    model.save_pretrained(str(tmp_path / "adapter"))
    name_stock_class(tmp_path / "adapter", BlipForQuestionAnswering)
    save_processor(load_processor(str(answerer)), tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(str(tmp_path / "merged"))
    save_processor(load_processor(str(answerer)), tmp_path / "merged")
    said = [
        texts(pipeline(TASK, model=str(tmp_path / each), device="cpu")(pictures, QUESTIONS))
        for each in ("adapter", "merged")
    ]
    plain = texts(pipeline(TASK, model=str(answerer), device="cpu")(pictures, QUESTIONS))
    assert said[0] == said[1] != plain


def test_what_is_missing_or_wrong_is_said(answerer: Path, pictures: list[str], tmp_path: Path) -> None:
    pipe = blip_recipe.answer_pipeline(answerer, device="cpu")
    with pytest.raises(ValueError, match="needs a picture and a question"):
        pipe()
    with pytest.raises(ValueError, match="Expected a picture and a question"):
        pipe({"image": pictures[0]})
    with pytest.raises(ValueError, match="expected a list of texts"):
        pipe(pictures[0], "what is it", answers="yes")
    with pytest.raises(ValueError, match="`rank_by` is 'loss': expected one of smoothed_loss, likelihood"):
        pipe(pictures[0], "what is it", answers=["yes"], rank_by="loss")
    with pytest.raises(ValueError, match="num_beams given twice"):
        pipe(pictures[0], "what is it", num_beams=1, generate_kwargs={"num_beams": 2})
    with pytest.raises(RecipeError, match="expected a question answerer"):
        blip_recipe.answer_pipeline(save_captioner(tmp_path), device="cpu")


@pytest.mark.parametrize(
    "imports",
    [
        "import blip_recipe\nfrom transformers import pipeline",
        pytest.param("from transformers import pipeline\nimport blip_recipe", marks=pytest.mark.long),
        pytest.param(
            "from blip_recipe.vqa.pipeline import answer_pipeline\nfrom transformers import pipeline",
            marks=pytest.mark.long,
        ),
        pytest.param("import blip_recipe.models.pipeline\nfrom transformers import pipeline", marks=pytest.mark.long),
    ],
)
def test_importing_blip_recipe_brings_both_tasks_back(
    imports: str, answerer: Path, pictures: list[str], tmp_path: Path
) -> None:
    captioner = save_captioner(tmp_path)
    expected = blip_recipe.caption_pipeline(captioner, device="cpu")(pictures[0])[0]["generated_text"]
    code = f"""
import sys
{imports}
answer = pipeline("{TASK}", model=sys.argv[1], device="cpu")
caption = pipeline("image-to-text", model=sys.argv[2], device="cpu")
print(type(answer).__name__, len(answer(sys.argv[3], "what is it")))
print(type(caption).__name__, caption(sys.argv[3])[0]["generated_text"])
"""
    done = run_code(code, answerer, captioner, pictures[0], env={"HOME": str(Path.home())}, cold=True)
    assert done.stdout.splitlines() == ["VisualQuestionAnsweringPipeline 1", f"ImageToTextPipeline {expected}"]


def test_a_transformers_that_has_the_tasks_is_left_alone() -> None:
    """As 4.57 does: its own classes stay, and none of our rooms is opened."""
    code = """
import sys, types
import blip_recipe
pipelines = types.ModuleType("pipelines")
pipelines.SUPPORTED_TASKS = {"image-to-text": 1, "visual-question-answering": 2}
blip_recipe._register_tasks(pipelines)
print(pipelines.SUPPORTED_TASKS, sorted(name for name in sys.modules if name.startswith("blip_recipe.")))
"""
    done = run_code(code, cold=True)
    assert done.stdout.strip() == "{'image-to-text': 1, 'visual-question-answering': 2} []"


def test_the_command_answers_with_a_line_a_question(
    answerer: Path, pictures: list[str], expected: list[list[str]], tmp_path: Path
) -> None:
    done = run_checked("blip_recipe.answer", answerer, pictures[1], *QUESTIONS, "--device", "cpu")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows == [
        {"image": pictures[1], "question": question, "answer": answers[1]}
        for question, answers in zip(QUESTIONS, expected, strict=True)
    ]
    (tmp_path / "answers.txt").write_text("red\n\nyes\nred\n no \n", encoding="utf-8")
    done = run_checked(
        *("blip_recipe.answer", answerer, pictures[1], QUESTIONS[0], "--device", "cpu"),
        *("--answers", tmp_path / "answers.txt", "--top_k", "5", "--rank_by", "likelihood"),
    )
    (row,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert row["answer"] == row["ranked"][0]["answer"]
    assert sorted(each["answer"] for each in row["ranked"]) == ["no", "red", "yes"]
    likelihoods = [each["log_likelihood"] for each in row["ranked"]]
    assert likelihoods == sorted(likelihoods, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top_k", "2"], "--answers"),
        (["--rank_by", "likelihood"], "--rank_by ranks the answers of a list"),
        (["--answers", "missing.txt"], "missing.txt cannot be read"),
        (["--answers", "empty.txt"], "is empty"),
        (["--answers", "other.json"], "expected a JSON list of texts"),
        (["--max_length", "1"], "Set --max_length"),
        (["--answers", "other.json", "--num_beams", "2"], "--answers and --num_beams contradict each other"),
    ],
)
def test_wrong_arguments_end_with_2(
    answerer: Path, pictures: list[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "other.json").write_text('{"yes": 1}')
    done = run_module("blip_recipe.answer", answerer, pictures[0], "what is it", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_help_comes_at_once() -> None:
    code = "import blip_recipe.answer as a, sys; a.build_parser(); print({'torch', 'transformers'} & set(sys.modules))"
    started = time.process_time()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT, check=True)
    assert done.stdout.strip() == "set()"
    assert time.process_time() - started < 2
    assert "QUESTION" in run_checked("blip_recipe.answer", "--help", cold=True).stdout
