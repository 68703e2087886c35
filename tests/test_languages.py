"""Captions in languages that BERT's English tokenizer lacks: told, added, learnt, scored, and saved in stock form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from commands import run_checked, run_module
from PIL import Image
from transformers import BertTokenizer, BlipForConditionalGeneration, BlipProcessor

import blip_recipe
from blip_recipe.captioning.modeling import BlipForCaptioning
from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.data.shapes import Scene, Thing, draw_scene, make_scenes, shapes_vocabulary
from blip_recipe.errors import RecipeError
from blip_recipe.models.processors import load_processor, save_processor
from blip_recipe.models.vocabulary import add_tokens, missing_tokens, use_tokenizer
from blip_recipe.retrieval.tiny import build_tiny_retriever
from blip_recipe.retrieval.trainer import RetrievalTrainer
from blip_recipe.retrieval.training_arguments import RetrievalTrainingArguments
from blip_recipe.vqa.tiny import build_tiny_answerer
from blip_recipe.vqa.trainer import VqaTrainer
from blip_recipe.vqa.training_arguments import VqaTrainingArguments

WORDS: dict[str, dict[str, str]] = {
    "Chinese": {
        **{"red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "purple": "紫色", "cyan": "青色"},
        **{"circle": "圆形", "square": "正方形", "triangle": "三角形", "cross": "十字", "small": "小", "large": "大"},
        **{"top left": "左上角", "top right": "右上角", "bottom left": "左下角", "bottom right": "右下角"},
        "caption": "{place}有一个{size}的{colour}{form}",
    },
    "Vietnamese": {
        **{"red": "đỏ", "green": "lục", "blue": "lam", "yellow": "vàng", "purple": "tím", "cyan": "xanh"},
        **{"circle": "hình tròn", "square": "hình vuông", "triangle": "tam giác", "cross": "chữ thập"},
        **{"small": "nhỏ", "large": "lớn", "top left": "trên bên trái", "top right": "trên bên phải"},
        **{"bottom left": "dưới bên trái", "bottom right": "dưới bên phải"},
        "caption": "một {form} {size} màu {colour} ở góc {place}",
    },
}
STEPS = 150


def describe(thing: Thing, language: str) -> str:
    words = WORDS[language]
    named = {key: words[getattr(thing, key)] for key in ("place", "size", "colour", "form")}
    return words["caption"].format(**named)


def scenes() -> list[Scene]:
    """A drawn scene of one thing for each combination of colour and form."""
    found: dict[tuple[str, str], Scene] = {}
    for scene in make_scenes("validation"):
        if len(scene.things) == 1:
            found.setdefault((scene.things[0].colour, scene.things[0].form), scene)
    return list(found.values())


def write_scenes(folder: Path, language: str) -> list[str]:
    """An imagefolder of drawn scenes with captions in a language; returns the captions."""
    train = folder / "train"
    train.mkdir(parents=True)
    captions = [describe(scene.things[0], language) for scene in scenes()]
    for number, scene in enumerate(scenes()):
        draw_scene(scene).save(train / f"{number:02}.png")
    rows = [{"file_name": f"{number:02}.png", "text": caption} for number, caption in enumerate(captions)]
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    (train / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return captions


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny captioner with an English vocabulary, whose tokenizer strips accents and knows no Chinese, as BERT's."""
    folder = tmp_path_factory.mktemp("english")
    torch.manual_seed(0)
    model, processor = build_tiny_captioner(shapes_vocabulary())
    model.save_pretrained(folder)
    save_processor(processor, folder)
    return folder


@pytest.mark.parametrize("language", ["Chinese", pytest.param("Vietnamese", marks=pytest.mark.long)])
def test_captions_of_another_language_are_learnt_and_given_back_letter_for_letter(
    english: Path, tmp_path: Path, language: str
) -> None:
    """By `evaluate`, our pipeline and the stock class, each from the saved model."""
    captions = write_scenes(tmp_path / "scenes", language)
    output = tmp_path / "model"
    recipe = {
        **{"model_name_or_path": str(english), "dataset_name": str(tmp_path / "scenes"), "train_split": "train"},
        **{"output_dir": str(output), "max_steps": STEPS, "per_device_train_batch_size": len(captions)},
        **{"learning_rate": 2e-3, "label_smoothing_factor": 0.0, "augmentation": "none", "save_strategy": "no"},
        **{"generation_num_beams": 1, "score_tokenizer": "char"},
        **{"report_to": "none", "dataloader_num_workers": 0, "warmup_steps": 20},
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    plan = run_checked("blip_recipe.finetune", tmp_path / "recipe.json", "--dry_run", "true").stdout
    assert "The tokenizer changes" in plan
    assert "[UNK]" in plan
    run = run_checked("blip_recipe.finetune", tmp_path / "recipe.json", "--add_tokens", "true")
    assert "The tokenizer changes" not in run.stderr + (output / "README.md").read_text(encoding="utf-8")

    common: list[str | Path] = ["--dataset_name", tmp_path / "scenes", "--eval_split", "train"]
    common += ["--output_dir", tmp_path / "scored"]
    run_checked("blip_recipe.evaluate", "--model", output, *common, "--metrics", "exact_match", "cider")
    lines = (tmp_path / "scored" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["caption"] for line in lines] == captions
    results = json.loads((tmp_path / "scored" / "all_results.json").read_text())
    assert (results["eval_exact_match"], results["score_tokenizer"]) == (1.0, "char")
    assert results["eval_cider"] > 5

    pictures = [Image.open(path) for path in sorted((tmp_path / "scenes" / "train").glob("*.png"))]
    pipe = blip_recipe.caption_pipeline(str(output), device="cpu")
    assert [result[0]["generated_text"] for result in pipe(pictures)] == captions
    model, processor = BlipForConditionalGeneration.from_pretrained(output), BlipProcessor.from_pretrained(output)
    ids = model.generate(**processor(images=pictures, return_tensors="pt"), max_length=40)
    assert processor.batch_decode(ids, skip_special_tokens=True) == captions
    head, words = model.text_decoder.cls.predictions, model.text_decoder.bert.embeddings.word_embeddings
    assert head.decoder.weight is words.weight
    assert len(processor.tokenizer) == model.config.text_config.vocab_size == len(head.bias) == len(words.weight)


def plain_bert(words: list[str], **settings: Any) -> BertTokenizer:
    """A BERT tokenizer without BLIP's own tokens, as published checkpoints have it."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return BertTokenizer(vocab={word: number for number, word in enumerate([*special, *words])}, **settings)


@pytest.fixture
def published(english: Path) -> tuple[Any, BlipProcessor]:
    """The model, with a tokenizer that lacks `[DEC]` and `[ENC]`, whose rows the model has."""
    processor = load_processor(str(english))
    vocabulary = sorted(processor.tokenizer.get_vocab(), key=processor.tokenizer.get_vocab().__getitem__)
    processor.tokenizer = plain_bert(vocabulary[5:-2])
    return BlipForCaptioning.from_pretrained(english), processor


def test_added_tokens_follow_blips_own_and_old_ones_keep_their_rows(published: tuple[Any, BlipProcessor]) -> None:
    model, processor = published
    start = model.config.text_config.bos_token_id
    embeddings = model.text_decoder.bert.embeddings.word_embeddings.weight.detach().clone()
    bias = model.text_decoder.cls.predictions.bias.detach().clone()
    added = add_tokens(model, processor.tokenizer, missing_tokens(["một 红色 circle"], processor.tokenizer))
    assert {"một", "ộ", "##ộ", "红", "##红", "色", "##色"} <= set(added)
    assert processor.tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]", added[0]]) == [start, start + 1, start + 2]
    kept = model.text_decoder.bert.embeddings.word_embeddings.weight[: len(embeddings)]
    assert torch.equal(kept, embeddings)
    assert torch.equal(model.text_decoder.cls.predictions.bias[: len(bias)], bias)
    assert processor.tokenizer.decode(processor.tokenizer("một 红色 circle").input_ids[1:-1]) == "một 红色 circle"


def test_another_tokenizer_keeps_the_rows_of_shared_tokens(
    published: tuple[Any, BlipProcessor], tmp_path: Path
) -> None:
    model, processor = published
    old, known = processor.tokenizer, model.text_decoder.bert.embeddings.word_embeddings.weight.detach().clone()
    start = known[model.config.text_config.bos_token_id]
    plain_bert(["đỏ", "circle", "red"], strip_accents=False).save_pretrained(tmp_path)
    use_tokenizer(model, processor, str(tmp_path))
    tokenizer, config = processor.tokenizer, model.config.text_config
    assert len(tokenizer) == config.vocab_size == 10
    rows = dict(
        zip(
            tokenizer.convert_ids_to_tokens(range(10)),
            model.text_decoder.bert.embeddings.word_embeddings.weight,
            strict=True,
        )
    )
    assert torch.equal(rows["circle"], known[old.convert_tokens_to_ids("circle")])
    assert torch.equal(rows["[DEC]"], start)
    assert (config.bos_token_id, config.sep_token_id) == (tokenizer.bos_token_id, tokenizer.sep_token_id) == (8, 3)
    model.save_pretrained(tmp_path / "saved")
    save_processor(processor, tmp_path / "saved")
    again = load_processor(str(tmp_path / "saved")).tokenizer
    assert again("đỏ Circle").input_ids == tokenizer("đỏ Circle").input_ids == [2, 5, 6, 3]
    loaded = BlipForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert torch.equal(
        loaded.text_decoder.cls.predictions.decoder.weight, loaded.text_decoder.bert.embeddings.word_embeddings.weight
    )


@pytest.mark.parametrize("key", ["tokenizer_name", "add_tokens"])
@pytest.mark.parametrize(
    "words",
    [["--use_peft", "true"], ["--model", "tiny"]],
)
def test_what_cannot_have_another_vocabulary_is_refused(
    english: Path, tmp_path: Path, key: str, words: list[str]
) -> None:
    common: list[str | Path] = ["--model", english, "--dataset_name", "shapes", "--output_dir", tmp_path / "out"]
    (tmp_path / "recipe.json").write_text("{}")
    done = run_module("blip_recipe.finetune", tmp_path / "recipe.json", *common, f"--{key}", "true", *words)
    assert done.returncode == 2
    assert key in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_kind_is_refused(published: tuple[Any, BlipProcessor], tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE({"a": 0}, []))).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match=r"not a WordPiece tokenizer like BERT's"):
        use_tokenizer(*published, str(tmp_path))
    with pytest.raises(RecipeError, match=r"tokenizer_name is .*nowhere', which cannot be loaded"):
        use_tokenizer(*published, str(tmp_path / "nowhere"))


def test_tokens_come_as_a_list_or_from_a_file(tmp_path: Path) -> None:
    from blip_recipe.models.arguments import MISSING, ModelArguments

    (tmp_path / "tokens.txt").write_text("红\n\nđỏ\n", encoding="utf-8")
    given = {"file": [str(tmp_path / "tokens.txt")], "list": ["红", "đỏ"], "all": ["True"], "off": ["false"]}
    read = {name: ModelArguments(add_tokens=tokens).add_tokens for name, tokens in given.items()}
    assert read == {"file": ["红", "đỏ"], "list": ["红", "đỏ"], "all": MISSING, "off": None}
    with pytest.raises(RecipeError, match="with a space"):
        ModelArguments(add_tokens=["hình tròn"])


def test_the_tiny_models_tokenizer_cuts_off_punctuation_and_spells_every_script() -> None:
    _, processor = build_tiny_captioner(["a dog, isn't it?", "con chó đỏ", "红色的狗", "ที่นี่"])
    tokenizer = processor.tokenizer
    assert tokenizer.tokenize("dog, dog?") == ["dog", ",", "dog", "?"]
    for text in ("a dog, isn't it?", "con đỏ chó", "的红色狗", "นี่ที่"):
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("build", [build_tiny_answerer, build_tiny_retriever])
def test_models_of_other_tasks_take_tokens_and_load_in_their_stock_class(build: Any, tmp_path: Path) -> None:
    model, processor = build(["what is it?", "a red dog"])
    added = add_tokens(model, processor.tokenizer, missing_tokens(["con chó đỏ", "红色的狗"], processor.tokenizer))
    model.save_pretrained(tmp_path)
    save_processor(processor, tmp_path)
    loaded, again = model.stock_class.from_pretrained(tmp_path), load_processor(str(tmp_path)).tokenizer
    assert again("con chó đỏ 红色的狗").input_ids == processor.tokenizer("con chó đỏ 红色的狗").input_ids
    assert again.unk_token_id not in again("con chó đỏ 红色的狗").input_ids
    parts = [getattr(loaded, name) for name in ("text_encoder", "text_decoder") if hasattr(loaded, name)]
    for part in parts:
        assert len(part.get_input_embeddings().weight) == len(again) == loaded.config.text_config.vocab_size
        assert torch.equal(
            part.get_input_embeddings().weight[-len(added) :],
            getattr(model, "text_decoder" if part is not parts[0] else "text_encoder")
            .get_input_embeddings()
            .weight[-len(added) :],
        )


def test_a_recipe_names_another_tokenizer(english: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", "Vietnamese")
    words = {
        word for caption in (describe(scene.things[0], "Vietnamese") for scene in scenes()) for word in caption.split()
    }
    plain_bert(sorted(words), strip_accents=False).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "recipe.json").write_text(json.dumps({"model_name_or_path": str(english), "train_split": "train"}))
    common: list[str | Path] = ["--dataset_name", tmp_path / "scenes", "--output_dir", tmp_path / "out", "--dry_run"]
    plan = run_checked("blip_recipe.finetune", tmp_path / "recipe.json", *common).stdout
    assert "The tokenizer changes" in plan
    common += ["--tokenizer_name", tmp_path / "tokenizer"]
    plan = run_checked("blip_recipe.finetune", tmp_path / "recipe.json", *common).stdout
    assert "The tokenizer changes" not in plan
    lengths = [len(describe(scene.things[0], "Vietnamese").split()) for scene in scenes()]
    assert f"generated ones of {min(lengths) + 1} to {max(lengths) + 2}" in plan


def test_questions_and_answers_and_captions_to_match_are_looked_at_too() -> None:
    long = " ".join(["dog"] * 40)
    _, processor = build_tiny_answerer(["what is it?", "a red dog"])
    rows = datasets.Dataset.from_dict({"question": ["是什么?"], "answers": [["a dog", "café", long]]})
    notes = VqaTrainer.look_at_texts(VqaTrainingArguments("outputs"), processor.tokenizer, rows, None, 512)
    assert notes[0].startswith("1 of 3 training answers (33%) are cut to 40 tokens (max_caption_length), such as 'dog")
    assert notes[1].startswith("The tokenizer changes 4 of 47 words of the questions and answers (8.5%), such as '是'")
    captions = datasets.Dataset.from_dict({"captions": [["a dog", "café", long]]})
    arguments = RetrievalTrainingArguments("outputs", max_caption_length=30)
    notes = RetrievalTrainer.look_at_texts(arguments, processor.tokenizer, captions, {"test": captions}, 512)
    assert [note.split(", such as")[0] for note in notes] == [
        "2 of 6 captions (33%) are cut to their first 30 words",
        "2 of 6 captions (33%) are cut to 30 tokens (max_caption_length)",
        "The tokenizer changes 2 of 66 words of the captions (3%)",
    ]


@pytest.mark.parametrize(
    "text",
    {
        "Arabic": "هناك دائرة حمراء",
        "Hindi": "चित्र में एक लाल वृत्त है",
        "Japanese": "左上に小さな赤い丸がある",
        "Korean": "빨간 원이 있다",
        "Russian": "ещё один красный круг",
        "Thai": "มีวงกลมสีแดงอยู่ที่มุมซ้าย",
        "Vietnamese in parts": "một vòng tròn đỏ".replace("ỏ", "o\u0309"),
    }.values(),
)
def test_what_is_added_gives_a_text_back_letter_for_letter(published: tuple[Any, BlipProcessor], text: str) -> None:
    model, processor = published
    tokenizer = processor.tokenizer
    assert tokenizer.decode(tokenizer(text).input_ids[1:-1]) != text
    add_tokens(model, tokenizer, missing_tokens([text], tokenizer))
    assert tokenizer.decode(tokenizer(text).input_ids[1:-1]) == text
