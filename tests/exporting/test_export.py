"""`python -m blip_recipe.export`: real ONNX files, which the commands run without torch."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captioners import CAPTIONS, GAIN, draw_pictures, save_adapter, write_recipe
from commands import run_checked
from datasets import Dataset
from exports import needs_openvino, run_command, run_lines
from hub_server import HubServer
from retrievers import build_retriever
from serving import ask, encode_black, measure_load, serve_captioner, stalled_upload
from vqa_models import QUESTIONS, WORDS

from blip_recipe.captioning.modeling import BlipForCaptioning
from blip_recipe.errors import RecipeError
from blip_recipe.export import main
from blip_recipe.exporting.conversion import convert
from blip_recipe.exporting.quantization import FORMS, SCORINGS, Measured, choose, load_scored_split
from blip_recipe.models.processors import save_processor
from blip_recipe.models.tiny import IMAGE_SIZE, build_tokenizer, tiny_config, tiny_processor
from blip_recipe.vqa.modeling import BlipForAnswering
from blip_recipe.vqa.tokens import use_question_token

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

PROMPT = "a picture of "


def save_small(directory: Path, model_class: type[Any], texts: list[str], gain: float) -> Path:
    """An untrained model of one layer: tracing takes seconds for each layer."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(texts)
    config = tiny_config(tokenizer, IMAGE_SIZE)
    for part in (config.text_config, config.vision_config):
        part.num_hidden_layers = 1
    model = model_class(config)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(gain if weights.ndim > 1 else 1.0)
        torch.nn.init.normal_(model.vision_model.embeddings.position_embedding, std=1.0)
    if model_class is BlipForAnswering:
        use_question_token(tokenizer, config.text_config.bos_token_id)
    model.save_pretrained(directory)
    save_processor(tiny_processor(tokenizer, IMAGE_SIZE), directory)
    return directory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def pictures(folder: Path) -> list[Path]:
    return draw_pictures(folder / "pictures", 8, size=IMAGE_SIZE)


@pytest.fixture(scope="module")
def captioner(folder: Path) -> Path:
    """An adapter of a small captioner, with a prompt."""
    base = save_small(folder / "base", BlipForCaptioning, [PROMPT, *CAPTIONS], GAIN)
    keys: dict[str, Any] = {"generation_num_beams": 3, "generation_max_length": 14, "generation_min_length": 6}
    return save_adapter(folder / "adapter", base, prompt=PROMPT, **keys)


@pytest.fixture(scope="module")
def exported(folder: Path, captioner: Path) -> Path:
    main([str(captioner), str(folder / "exported")])
    return folder / "exported"


def lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_an_adapter_is_merged_compared_and_described(exported: Path) -> None:
    record = json.loads((exported / "export.json").read_text())
    assert record["task"] == "captioning"
    assert record["opset"] == 23
    assert {"torch", "transformers", "onnx", "onnxscript", "onnxruntime"} <= record["versions"].keys()
    assert record["decoding"]["prompt"] == PROMPT
    assert record["check"]["difference"] < 1e-4
    assert [record["check"][name] for name in ("pictures", "greedy", "beams", "texts")] == [8, 1.0, 1.0, 1.0]
    readme = (exported / "README.md").read_text()
    assert "100.0%" in readme
    assert "opset: 23" in readme
    assert record["source"] == "adapter"  # no path of this machine


@pytest.mark.parametrize(
    "options",
    [[], ["--num_beams", "1"], ["--prompt", "two ", "--num_beams", "5", "--num_captions", "5", "--scores"]],
)
def test_captions_without_torch_are_those_of_torch(
    exported: Path, captioner: Path, pictures: list[Path], options: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    from blip_recipe.caption import main as caption

    caption([str(captioner), *map(str, pictures), "--device", "cpu", *options])
    expected = lines(capfd.readouterr().out)
    found = run_command("caption", exported, *pictures, *options)
    if "--scores" in options:
        for row, other in zip(found, expected, strict=True):
            assert row.pop("scores") == pytest.approx(other.pop("scores"), abs=1e-4)
            assert row.pop("score") == pytest.approx(other.pop("score"), abs=1e-4)
    assert found == expected
    assert len({row["caption"] for row in found}) > 2


def test_samples_are_those_of_torch_and_depend_on_the_seed_alone(
    exported: Path, captioner: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from blip_recipe.caption import main as caption

    pictures = draw_pictures(tmp_path, 8, size=300)
    sample = ["--do_sample", "--seed", "3"]
    caption([str(captioner), *map(str, pictures), "--device", "cpu", *sample])
    found = run_command("caption", exported, *pictures, *sample)
    assert found == lines(capfd.readouterr().out)
    assert run_command("caption", exported, *pictures, *sample, "--batch_size", "1") == found
    assert run_command("caption", exported, *pictures, "--do_sample", "--seed", "4") != found


GENERATE = """
import json, sys
import numpy as np
from blip_recipe.runtime.captioner import ExportedCaptioner
captioner = ExportedCaptioner.load(sys.argv[1], engine=sys.argv[2], threads=1)
pixels = np.concatenate([captioner.folder.read_picture(path) for path in sys.argv[3:]])
for beams in (1, 3):
    print(json.dumps(captioner.generate(pixels, num_beams=beams)[0].tolist()))
"""


@needs_openvino
def test_openvino_gives_the_same_token_ids(exported: Path, pictures: list[Path]) -> None:
    expected, found = (run_lines(GENERATE, exported, engine, *pictures) for engine in ("onnxruntime", "openvino"))
    assert len(expected) == 2
    assert found == expected


@needs_openvino
def test_openvino_files_are_written_and_checked(folder: Path, captioner: Path) -> None:
    run_checked("blip_recipe.export", captioner, folder / "openvino", "--format", "openvino", cold=True)
    record = json.loads((folder / "openvino" / "export.json").read_text())
    assert [record[name] for name in ("format", "suffix", "dtype")] == ["openvino", ".xml", "fp32"]
    assert "openvino" in record["versions"]
    assert [record["check"][name] for name in ("greedy", "beams", "texts")] == [1.0, 1.0, 1.0]
    assert record["check"]["difference"] < 1e-4
    assert "tokenizers openvino" in (folder / "openvino" / "README.md").read_text()


def test_the_server_captions_many_pictures_at_once(exported: Path, pictures: list[Path], tmp_path: Path) -> None:
    expected = [row["caption"] for row in run_command("caption", exported, *pictures)]
    contents = [path.read_bytes() for path in pictures]
    with serve_captioner(exported, tmp_path / "log") as address:
        found = measure_load(address, contents, clients=16, requests=160)
        alone = [ask(f"{address}/caption", content) for content in contents]
        too_long = ask(f"{address}/caption", bytes(20 * 2**20 + 1))
    assert alone == [(200, {"caption": caption}) for caption in expected]
    assert found["statuses"] == {200: 160}
    assert found["equal"] == 160
    assert found["pictures_per_batch"] > 1.5
    assert too_long[0] == 413


def test_the_server_refuses_what_is_too_large_too_slow_or_no_picture(exported: Path, tmp_path: Path) -> None:
    large, huge = (encode_black(size) for size in (6000, 6500))  # small files, which take a while to decode
    with serve_captioner(exported, tmp_path / "log", MAX_SECONDS="0.5", MAX_WAITING="1") as address:
        assert ask(f"{address}/health")[1]["status"] == "ok"
        assert ask(f"{address}/caption", b"no picture")[0] == 422
        assert ask(f"{address}/caption", huge)[0] == 413
        assert ask(f"{address}/caption", large) == (504, {"detail": "There was no caption within 0.5 s."})
        refused = []
        for _ in range(10):  # on a busy machine, the first client may have been sent away before the second comes
            with stalled_upload(address) as answer:
                refused.append(ask(f"{address}/caption", b"no picture")[0])
                assert answer() == 408
            if refused[-1] == 503:
                break
        assert refused[-1] == 503
        assert ask(f"{address}/health")[1]["open"] == 0


@pytest.fixture(scope="module")
def exported_answerer(folder: Path) -> Path:
    words = [word for text in WORDS for word in text.split()]
    model = save_small(folder / "answerer", BlipForAnswering, words, 2.0)
    main([str(model), str(folder / "exported_answerer")])
    return folder / "exported_answerer"


def test_answers_without_torch(
    folder: Path, exported_answerer: Path, pictures: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    from blip_recipe.answer import main as answer

    model = folder / "answerer"
    answers = folder / "answers.txt"
    answers.write_text("red\nyes\na dark red\na dog\n")
    for options in ([], ["--answers", answers, "--top_k", "4"]):
        capfd.readouterr()
        answer([str(model), str(pictures[0]), *QUESTIONS, "--device", "cpu", *map(str, options)])
        expected = lines(capfd.readouterr().out)
        found = run_command("answer", exported_answerer, pictures[0], *QUESTIONS, *options)
        assert [row["answer"] for row in found] == [row["answer"] for row in expected]
        for row, other in zip(found, expected, strict=True):
            ranked = ([each["loss"] for each in one.get("ranked", [])] for one in (row, other))
            assert next(ranked) == pytest.approx(next(ranked), abs=1e-4)


def rows_of(pictures: list[Path], **columns: list[Any]) -> Dataset:
    """Rows of a split."""
    return Dataset.from_dict({"image": [{"bytes": path.read_bytes(), "path": None} for path in pictures], **columns})


def test_answers_of_a_split_are_scored(exported_answerer: Path, pictures: list[Path]) -> None:
    answers = [row["answer"] for row in run_command("answer", exported_answerer, pictures[0], *QUESTIONS)]
    rows = rows_of(
        [pictures[0]] * 4 + [pictures[1]],
        image_id=[7, 7, 7, 7, 8],
        question=[*QUESTIONS, QUESTIONS[0]],
        answers=[*([answer] for answer in answers), ["none of its answers"]],
    )
    assert SCORINGS["vqa"].measure(exported_answerer, rows).scores == pytest.approx(
        {"vqa_accuracy": 0.8, "exact_match": 0.8}
    )
    assert load_scored_split("vqa", {"dataset_name": "shapes"}, None, "validation", 3).num_rows == 3
    without = rows.remove_columns("answers").add_column("answers", [None] * 5)
    with pytest.raises(RecipeError, match="the split has no answers: name another one"):
        SCORINGS["vqa"].measure(exported_answerer, without)


def test_matches_without_torch(folder: Path, pictures: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    from blip_recipe.match import main as match

    model, processor = build_retriever()
    for part in (model.vision_model.encoder, model.text_encoder.encoder):
        name = "layers" if hasattr(part, "layers") else "layer"
        setattr(part, name, getattr(part, name)[:1])
    model.config.text_config.num_hidden_layers = model.config.vision_config.num_hidden_layers = 1
    model.save_pretrained(folder / "matcher")
    save_processor(processor, folder / "matcher")
    main([str(folder / "matcher"), str(folder / "exported_matcher")])
    inputs = [*pictures[:3], *CAPTIONS]
    capfd.readouterr()
    match([str(folder / "matcher"), *map(str, inputs), "--device", "cpu"])
    expected = lines(capfd.readouterr().out)
    found = run_command("match", folder / "exported_matcher", *inputs)
    check_recalls(folder / "exported_matcher", pictures[:3], expected)
    for row, other in zip(found, expected, strict=True):
        for name in ("probability", "cosine"):
            assert row.pop(name) == pytest.approx(other.pop(name), abs=1e-4)
        assert row == other


def check_recalls(exported: Path, pictures: list[Path], lines: list[dict[str, Any]]) -> None:
    """The recalls of three pictures with the texts 0, 1, and 2 and 3, from the lines of `match` in torch."""
    owners = [0, 1, 2, 2]
    rows = rows_of(pictures, captions=[CAPTIONS[:1], CAPTIONS[1:2], CAPTIONS[2:]])
    order = {str(path): number for number, path in enumerate(pictures)}
    found = {name: np.empty((3, 4)) for name in ("cosine", "probability")}
    for line in lines:
        for name, values in found.items():
            values[order[line["image"]], CAPTIONS.index(line["text"])] = line[name]
    own_text = {name: [owners[best] for best in values.argmax(axis=1)] for name, values in found.items()}
    own_picture = found["cosine"].argmax(axis=0)
    assert SCORINGS["retrieval"].measure(exported, rows).scores == {
        "text_recall_1": np.mean(np.array(own_text["cosine"]) == np.arange(3)),
        "image_recall_1": np.mean(own_picture == np.array(owners)),
        "reranked_text_recall_1": np.mean(np.array(own_text["probability"]) == np.arange(3)),
    }


def test_int8_is_chosen_by_the_scores_of_a_split(folder: Path, exported: Path, pictures: list[Path]) -> None:
    """The references are the captions in float32."""
    captions = run_command("caption", exported, *pictures)
    rows = [{"file_name": Path(row["image"]).name, "caption": row["caption"]} for row in captions]
    (folder / "pictures" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    split = load_scored_split("captioning", {}, str(folder / "pictures"), "train", None)
    measure = SCORINGS["captioning"].measure
    plain = measure(exported, split)
    assert plain.scores["exact_match"] == 1.0
    forms = {}
    for form in FORMS:
        (folder / form).mkdir()
        convert(exported, folder / form, ("onnx", form))
        forms[form] = measure(folder / form, split)
        sizes = [sum(path.stat().st_size for path in each.glob("*.onnx")) for each in (folder / form, exported)]
        assert sizes[0] < 0.8 * sizes[1]
    assert forms["int8_weights"].scores["exact_match"] >= 0.75
    worse = Measured({**plain.scores, "cider": plain.scores["cider"] * 0.98}, seconds=0.5)
    same = Measured(plain.scores, seconds=2.0)
    faster = Measured({name: value * 0.995 for name, value in plain.scores.items()}, seconds=1.0)
    assert choose(plain, {"worse": worse, "same": same, "faster": faster}) == "faster"
    with pytest.raises(RecipeError, match="No 8-bit form keeps all scores within 1%: fp32: "):
        choose(plain, {"worse": worse})


def test_push_adds_the_files_to_the_models_repository_in_one_commit(
    hub: HubServer, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hub_server import WRITE_TOKEN
    from huggingface_hub import HfApi

    from blip_recipe.exporting import publishing

    api = HfApi(endpoint=hub.url, token=WRITE_TOKEN)
    api.create_repo("lab/captioner")
    card = b"---\ntags:\n- mine\n---\n\n# Mine\n\nWritten by hand.\n"
    api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="lab/captioner")
    before = api.model_info("lab/captioner").sha
    monkeypatch.setattr(publishing, "HfApi", lambda: api)
    record = json.loads((exported / "export.json").read_text())
    pushed = publishing.push_export(exported, record, "lab/captioner", private=None)
    assert pushed.committed
    assert pushed.revision != before
    files = {each.rfilename for each in api.model_info("lab/captioner").siblings or ()}
    assert {"README.md", "onnx/export.json", "onnx/image_encoder.onnx", "onnx/text_decoder.onnx"} <= files
    text = Path(api.hf_hub_download("lab/captioner", "README.md")).read_text()
    assert "Written by hand." in text
    assert "- onnx" in text
    assert "## Without torch" in text
    again = publishing.push_export(exported, record, "lab/captioner", private=None)
    assert not again.committed
    publishing.push_export(exported, record | {"format": "openvino"}, "lab/captioner", private=None)
    text = Path(api.hf_hub_download("lab/captioner", "README.md")).read_text()
    assert [text.count(part) for part in ("## Without torch", "## With OpenVINO", "Written by hand.")] == [1, 1, 1]


NODE = """
import { AutoProcessor, AutoTokenizer, VisionEncoderDecoderModel, RawImage, env } from "@huggingface/transformers";
env.allowRemoteModels = false;
const [folder, ...pictures] = process.argv.slice(2);
const options = { dtype: "fp32", local_files_only: true };
const processor = await AutoProcessor.from_pretrained(folder, options);
const tokenizer = await AutoTokenizer.from_pretrained(folder, options);
const model = await VisionEncoderDecoderModel.from_pretrained(folder, options);
for (const picture of pictures) {
  const { pixel_values } = await processor(await RawImage.read(picture));
  const ids = await model.generate({ inputs: pixel_values });
  console.log(tokenizer.batch_decode(ids, { skip_special_tokens: true })[0].trim());
}
"""


@pytest.mark.long
def test_node_captions_as_torch(folder: Path, captioner: Path, pictures: list[Path]) -> None:
    """Set NODE_PATH_OF_TRANSFORMERS to a folder whose node_modules has @huggingface/transformers."""
    place = Path(os.environ.get("NODE_PATH_OF_TRANSFORMERS", "/nowhere"))
    if not (place / "node_modules" / "@huggingface" / "transformers").is_dir():
        pytest.skip("no transformers.js: npm install @huggingface/transformers in a folder, and name it")
    base = json.loads((captioner / "adapter_config.json").read_text())["base_model_name_or_path"]
    write_recipe(Path(base), generation_max_length=14, generation_min_length=1, generation_num_beams=1)
    main([base, str(folder / "web"), "--format", "transformers.js"])
    script = place / "caption.mjs"
    script.write_text(NODE)
    done = subprocess.run(
        ["node", str(script), str(folder / "web"), *map(str, pictures)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    from blip_recipe import caption_pipeline

    found = caption_pipeline(base, device="cpu")([str(path) for path in pictures])
    assert done.stdout.splitlines() == [each[0]["generated_text"] for each in found]


def test_wrong_uses_are_told(exported: Path, captioner: Path, pictures: list[Path], tmp_path: Path) -> None:
    from blip_recipe.answer import main as answer
    from blip_recipe.caption import main as caption
    from blip_recipe.match import main as match

    for arguments, message in (
        ([captioner, exported], "not empty"),
        ([captioner, tmp_path / "x", "--eval_split", "test"], "add --dtype int8"),
        ([captioner, tmp_path / "x", "--private"], "--private has an effect only with --push_to_hub"),
    ):
        with pytest.raises(RecipeError, match=message):
            main(list(map(str, arguments)))
    picture = str(pictures[0])
    for command, arguments, message in (
        (caption, [exported, picture, "--dtype", "bfloat16"], "--dtype is given, but .* is an exported model"),
        (answer, [exported, picture, "what is it?"], "is a captioner: expected a question answerer"),
        (match, [exported, picture, "a dog", "--embeddings", tmp_path / "x.npz"], "--embeddings is given, but"),
        (caption, [exported, picture, "--max_length", "2"], "max_length is 2 tokens"),
    ):
        with pytest.raises(RecipeError, match=message):
            command(list(map(str, arguments)))
    (tmp_path / "export.json").write_text('{"record_version": 99}')
    with pytest.raises(RecipeError, match="has the version 99: this blip_recipe reads version 1"):
        caption([str(tmp_path), picture])
