"""`pipeline("image-to-text")` on transformers 5, and `caption_pipeline`."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from captioners import draw_pictures, save_adapter, save_captioner, write_recipe
from commands import run_code
from hub_server import HubServer
from PIL import Image
from safetensors.torch import load_file
from transformers import pipeline as typed_pipeline
from transformers.pipelines.pt_utils import KeyDataset

import blip_recipe
from blip_recipe.captioning.modeling import load_captioner
from blip_recipe.errors import RecipeError
from blip_recipe.models.captioner import generate_captions
from blip_recipe.models.processors import load_processor, save_processor
from blip_recipe.models.weights import PICKLES

pipeline: Any = typed_pipeline  # its type has an overload for each task that transformers has itself
PROMPT = "a picture of "
RECIPE: dict[str, Any] = {
    "prompt": PROMPT,
    "generation_num_beams": 2,
    "generation_max_length": 12,
    "generation_min_length": 6,
}
SETTINGS = {"num_beams": 2, "max_length": 12, "min_length": 6}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw_pictures(tmp_path_factory.mktemp("pictures"), 5)


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_captioner(tmp_path_factory.mktemp("captioner"), **RECIPE)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, captioner: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    keys: dict[str, dict[str, Any]] = {"lora": {}, "8bit": {"load_in_8bit": True}, "4bit": {"load_in_4bit": True}}
    return {name: save_adapter(folder / name, captioner, **RECIPE, **extra) for name, extra in keys.items()}


@pytest.fixture(scope="module")
def captions(captioner: Path, pictures: list[Path]) -> list[str]:
    return evaluated(captioner, pictures)


def evaluated(model_name: Path, pictures: list[Path]) -> list[str]:
    """Captions as training's evaluation makes them: the same model, prompt and decoding."""
    model, processor, settings = load_captioner(str(model_name), device="cpu")
    pixels = processor.image_processor([Image.open(path) for path in pictures], return_tensors="pt").pixel_values
    return generate_captions(model, processor.tokenizer, pixels, prompt=settings.prompt, **SETTINGS)


def texts(results: Any) -> list[str]:
    """The caption of each picture, where there is one a picture."""
    results = list(results)
    assert all(len(result) == 1 for result in results)
    return [result[0]["generated_text"] for result in results]


def run_python(code: str, *arguments: str | Path, env: dict[str, str] | None = None, cold: bool = False) -> str:
    """What a fresh process prints."""
    done = run_code(code, *arguments, env={"HOME": str(Path.home()), **(env or {})}, cold=cold)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


LOAD_AND_CAPTION = """
import sys
pipe = pipeline("image-to-text", model=sys.argv[1], device="cpu")
print(type(pipe).__name__, pipe(sys.argv[2])[0]["generated_text"], sep=": ")
"""


def test_importing_the_pipelines_module_brings_the_task_back(
    captioner: Path, pictures: list[Path], captions: list[str]
) -> None:
    """`tests/vqa/test_pipeline.py` has the other orders of imports."""
    imports = "from blip_recipe.captioning.pipeline import caption_pipeline\nfrom transformers import pipeline"
    printed = run_python(imports + LOAD_AND_CAPTION, captioner, pictures[0], cold=True)
    assert printed == f"ImageToTextPipeline: {captions[0]}"


def test_importing_blip_recipe_imports_nothing_heavy() -> None:
    code = "import blip_recipe, sys; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    heavy = run_python(code, cold=True)
    assert heavy == "set()"


def test_the_pipeline_gives_the_captions_of_the_evaluation(
    captioner: Path, pictures: list[Path], captions: list[str]
) -> None:
    assert len(set(captions)) > 1, "the test needs captions that differ"
    assert texts(pipeline("image-to-text", model=captioner, device="cpu")([*map(str, pictures)])) == captions
    assert texts(blip_recipe.caption_pipeline(captioner, device="cpu")(pictures, batch_size=3)) == captions


@pytest.mark.parametrize("kind", ["lora", "8bit", "4bit"])
def test_an_adapter_gives_the_captions_of_its_evaluation(
    kind: str, adapters: dict[str, Path], pictures: list[Path], captions: list[str]
) -> None:
    expected = evaluated(adapters[kind], pictures)
    assert expected != captions, "the test needs an adapter that changes captions"
    pipe = pipeline("image-to-text", model=str(adapters[kind]), device="cpu")
    assert texts(pipe(pictures)) == expected
    assert texts(blip_recipe.caption_pipeline(adapters[kind], device="cpu")(pictures)) == expected
    quantised = {type(module).__name__ for module in pipe.model.modules()} & {"Linear8bitLt", "Linear4bit"}
    assert quantised == {"lora": set(), "8bit": {"Linear8bitLt"}, "4bit": {"Linear4bit"}}[kind]


def test_a_quantised_adapter_can_be_put_on_the_full_base(adapters: dict[str, Path]) -> None:
    pipe = blip_recipe.caption_pipeline(adapters["8bit"], device="cpu", quantization=None)
    assert "Linear8bitLt" not in {type(module).__name__ for module in pipe.model.modules()}


def test_a_full_model_can_be_loaded_quantised(captioner: Path, pictures: list[Path]) -> None:
    from transformers import BitsAndBytesConfig

    wish = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    pipe = pipeline("image-to-text", model=captioner, model_kwargs=wish, device_map="cpu")
    assert "Linear8bitLt" in {type(module).__name__ for module in pipe.model.modules()}
    assert pipe(pictures[0])[0]["generated_text"]


@pytest.fixture(scope="module")
def address(pictures: list[Path]) -> Iterator[str]:
    """A web server that has the pictures."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(pictures[0].parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_pictures_come_in_any_form(captioner: Path, pictures: list[Path], captions: list[str], address: str) -> None:
    import numpy as np
    from datasets import Dataset
    from datasets import Image as ImageFeature

    pipe = blip_recipe.caption_pipeline(captioner, device="cpu")
    opened = [Image.open(path) for path in pictures]
    table = Dataset.from_dict({"image": [*map(str, pictures)]}).cast_column("image", ImageFeature())
    forms: dict[str, Any] = {
        "paths": pictures,
        "names": tuple(map(str, pictures)),
        "open": opened,
        "bytes": [path.read_bytes() for path in pictures],
        "arrays": [np.asarray(picture.convert("RGB")) for picture in opened],
        "addresses": [f"{address}/{path.name}" for path in pictures],
        "generator": (path for path in pictures),
        "data set": table,
        "column": table["image"],
        "stream": table.to_iterable_dataset(),
        "rows": [{"image": path, "caption": "one"} for path in pictures],
        "torch data set": KeyDataset(table, "image"),
    }
    for form, images in forms.items():
        assert texts(pipe(images, batch_size=2)) == captions, form
    for image in (pictures[1], str(pictures[1]), opened[1], f"{address}/{pictures[1].name}"):
        assert pipe(image) == pipe(images=image) == [{"generated_text": captions[1]}]
    assert pipe([]) == []


def test_captioning_starts_before_a_generator_ends(captioner: Path, pictures: list[Path]) -> None:
    taken: list[int] = []

    def endless() -> Iterator[Path]:
        while True:
            taken.append(len(taken))
            yield pictures[0]

    results = iter(blip_recipe.caption_pipeline(captioner, device="cpu")(endless(), batch_size=2))
    assert next(results)
    assert len(taken) < 10


def test_the_recorded_prompt_is_left_out_and_a_given_one_is_part_of_the_text(
    captioner: Path, pictures: list[Path], captions: list[str]
) -> None:
    pipe = blip_recipe.caption_pipeline(captioner, device="cpu")
    # A piece that goes on with the prompt's last word is joined to it.
    expected = [f"a picture of {text}".replace(" ##", "") for text in captions]
    assert texts(pipe(pictures, prompt="A picture of", batch_size=2)) == expected
    given = pipe(pictures[0], prompt="two green circles")[0]["generated_text"]
    assert given.startswith("two green circles")
    assert blip_recipe.caption_pipeline(captioner, device="cpu", prompt="two green circles")(pictures[0]) == [
        {"generated_text": given}
    ]
    assert not pipe(pictures[0], prompt="")[0]["generated_text"].startswith("a picture of")
    with pytest.raises(ValueError, match="one text"):
        pipe(pictures[:2], prompt=["a", "b"])


def test_several_captions_a_picture_come_together(captioner: Path, pictures: list[Path]) -> None:
    pipe = pipeline("image-to-text", model=captioner, device="cpu")
    one_by_one = [pipe(path, generate_kwargs={"num_beams": 4, "num_return_sequences": 3}) for path in pictures]
    batched = pipe(pictures, batch_size=2, num_beams=4, num_return_sequences=3)
    assert batched == one_by_one
    assert [len({entry["generated_text"] for entry in result}) for result in batched] == [3] * len(pictures)
    sampled = pipe(pictures, batch_size=2, do_sample=True, num_return_sequences=4, prompt="two green circles")
    assert [len(result) for result in sampled] == [4] * len(pictures)
    texts_of_all = [entry["generated_text"] for result in sampled for entry in result]
    assert all(text.startswith("two green circles") for text in texts_of_all)


def test_seeded_samples_depend_on_the_picture_alone(captioner: Path, pictures: list[Path]) -> None:
    sampling: dict[str, Any] = {"do_sample": True, "temperature": 3.0, "num_return_sequences": 2}
    pipe = blip_recipe.caption_pipeline(captioner, device="cpu", **sampling)
    expected = [pipe(path, seed=1) for path in pictures]
    assert len({entry["generated_text"] for result in expected for entry in result}) > 5
    assert pipe(pictures[::-1], batch_size=3, seed=1) == expected[::-1]
    assert pipe([Image.open(path) for path in pictures], batch_size=2, seed=1) == expected
    assert [pipe(path, seed=2) for path in pictures] != expected
    with pytest.raises(ValueError, match="nothing is sampled"):
        pipe(pictures[0], do_sample=False, seed=1)


def test_a_recorded_length_penalty_counts_the_prompt(tmp_path: Path, pictures: list[Path]) -> None:
    keys: dict[str, Any] = {"num_beams": 4, "length_penalty": 8.0, "max_length": 12, "early_stopping": "never"}
    recipe: dict[str, Any] = {"prompt": PROMPT, **{f"generation_{name}": value for name, value in keys.items()}}
    plain = save_captioner(tmp_path / "plain", **recipe)
    counting = save_captioner(tmp_path / "counting", **recipe, generation_length_penalty_counts_prompt=True)
    for directory, counts in ((plain, False), (counting, True)):
        pipe = blip_recipe.caption_pipeline(directory, device="cpu")
        given = blip_recipe.caption_pipeline(plain, device="cpu", length_penalty_counts_prompt=counts)
        assert pipe.settings.length_penalty_counts_prompt is counts
        assert texts(pipe(pictures)) == texts(given(pictures))
        assert texts(pipe(pictures, num_beams=1)), "one beam has no length penalty"


def test_explicit_decoding_wins_over_the_recipe(captioner: Path, pictures: list[Path]) -> None:
    pipe = pipeline("image-to-text", model=captioner, device="cpu", prompt="", num_beams=1)
    pixels = pipe.preprocess(pictures[0])["pixel_values"]

    def generated(**decoding: Any) -> list[dict[str, str]]:
        captions = generate_captions(pipe.model, pipe.tokenizer, pixels, num_beams=1, **decoding)
        return [{"generated_text": caption} for caption in captions]

    eight = generated(max_new_tokens=8, min_new_tokens=8)
    assert eight != generated(max_length=12, min_length=6), "the test needs decoding that matters"
    assert pipe(pictures[0], max_new_tokens=8, min_new_tokens=8) == eight
    assert pipe(pictures[0], generate_kwargs={"max_new_tokens": 8, "min_new_tokens": 8}) == eight
    assert pipe(pictures[0], max_length=9, min_length=9) == generated(max_length=9, min_length=9)
    assert pipe(pictures[0]) == generated(max_length=12, min_length=6)
    torch.manual_seed(0)
    sampled = pipe(pictures[0], do_sample=True, num_return_sequences=4, temperature=3.0)
    assert len({entry["generated_text"] for entry in sampled}) > 1
    with pytest.raises(ValueError, match="given twice"):
        pipe(pictures[0], max_new_tokens=8, generate_kwargs={"max_new_tokens": 8})
    with pytest.raises(ValueError, match="colour"):
        pipe(pictures[0], colour="red")


@pytest.mark.parametrize("dtype", [torch.bfloat16, "float16", torch.float32])
def test_precision_and_device_are_those_asked_for(dtype: Any, captioner: Path, pictures: list[Path]) -> None:
    for make in (functools.partial(pipeline, "image-to-text"), blip_recipe.caption_pipeline):
        pipe = make(captioner, dtype=dtype, device="cpu")
        assert pipe.model.dtype == (torch.float16 if dtype == "float16" else dtype)
        assert pipe.device == torch.device("cpu")
        assert pipe(pictures[0])[0]["generated_text"]


def test_a_model_that_is_loaded_already_needs_its_processor(captioner: Path, pictures: list[Path]) -> None:
    from transformers import BlipForConditionalGeneration

    model = BlipForConditionalGeneration.from_pretrained(captioner)
    parts: Any = load_processor(str(captioner))
    expected = pipeline("image-to-text", model=model, processor=parts, device="cpu")(pictures)
    separate = {"tokenizer": parts.tokenizer, "image_processor": parts.image_processor}
    assert pipeline("image-to-text", model=model, device="cpu", **separate)(pictures) == expected
    names = {"tokenizer": str(captioner), "image_processor": str(captioner)}
    assert pipeline("image-to-text", model=model, device="cpu", **names)(pictures) == expected
    with pytest.raises(ValueError, match="`processor` is missing"):
        pipeline("image-to-text", model=model, device="cpu")


def test_another_kind_of_model_becomes_what_transformers_makes_of_it(tmp_path: Path, pictures: list[Path]) -> None:
    from transformers import (
        BertTokenizer,
        CLIPImageProcessor,
        GitConfig,
        GitForCausalLM,
        GitProcessor,
        ImageTextToTextPipeline,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = BertTokenizer(vocab=vocabulary, model_input_names=["input_ids", "attention_mask"])
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = GitConfig(
        vision_config={**shape, "image_size": 32, "patch_size": 16},
        vocab_size=7,
        bos_token_id=2,
        eos_token_id=3,
        **shape,
    )
    GitForCausalLM(config).save_pretrained(tmp_path)
    size: dict[str, Any] = {"size": {"height": 32, "width": 32}, "crop_size": {"height": 32, "width": 32}}
    GitProcessor(CLIPImageProcessor(**size), tokenizer).save_pretrained(tmp_path)
    pipe = pipeline("image-to-text", model=tmp_path, device="cpu")
    assert isinstance(pipe, ImageTextToTextPipeline)
    assert pipe(images=str(pictures[0]), text="a", max_new_tokens=3)[0]["generated_text"]


def test_what_cannot_caption_is_refused_with_one_message(tmp_path: Path, captioner: Path) -> None:
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(
        tmp_path
    )
    with pytest.raises(RecipeError, match="bert"):
        blip_recipe.caption_pipeline(tmp_path)
    with pytest.raises(RecipeError, match="no_such_model"):
        blip_recipe.caption_pipeline(tmp_path / "no_such_model", local_files_only=True)
    with pytest.raises(RecipeError, match="colour"):
        pipeline("image-to-text", model=captioner, model_kwargs={"colour": "red"})


@pytest.fixture(params=["model", "adapter_model"])
def pickled(request: pytest.FixtureRequest, tmp_path: Path, captioner: Path, adapters: dict[str, Path]) -> Path:
    """A copy of a captioner whose weights are in a pickle file: the path of that file."""
    shutil.copytree(captioner if request.param == "model" else adapters["lora"], tmp_path, dirs_exist_ok=True)
    weights = tmp_path / f"{request.param}.safetensors"
    pickle_file = tmp_path / f"{PICKLES[request.param]}.bin"
    torch.save(load_file(weights), pickle_file)
    weights.unlink()
    return pickle_file


def test_weights_in_pickle_files_are_refused_unless_they_are_asked_for(
    pickled: Path, adapters: dict[str, Path], captioner: Path, pictures: list[Path]
) -> None:
    name = str(pickled.parent)
    for load in (blip_recipe.caption_pipeline, functools.partial(pipeline, "image-to-text")):
        with pytest.raises(RecipeError, match=r"--allow_pickle.*allow_pickle=True.*safetensors"):
            load(name)
    expected = evaluated(adapters["lora"] if pickled.stem == "adapter_model" else captioner, pictures)
    assert texts(blip_recipe.caption_pipeline(name, device="cpu", allow_pickle=True)(pictures)) == expected
    wish = {"allow_pickle": True}
    assert texts(pipeline("image-to-text", model=name, device="cpu", model_kwargs=wish)(pictures)) == expected


def test_the_advice_of_the_refusal_converts_a_pickle(
    pickled: Path, adapters: dict[str, Path], captioner: Path, pictures: list[Path]
) -> None:
    with pytest.raises(RecipeError) as refusal:
        load_captioner(str(pickled.parent))
    advice = str(refusal.value).rpartition('python -c "')[2].removesuffix('"')
    run_python(advice.replace("DIR", str(pickled.parent)))
    expected = evaluated(adapters["lora"] if pickled.stem == "adapter_model" else captioner, pictures)
    assert evaluated(pickled.parent, pictures) == expected


class Malice:
    """What runs code when it is unpickled."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.ran,)


def test_nothing_but_tensors_is_taken_from_a_pickle(pickled: Path, tmp_path: Path) -> None:
    torch.save({"weights": Malice(tmp_path / "ran")}, pickled)
    for content in (None, b"no pickle", b""):
        if content is not None:
            pickled.write_bytes(content)
        with pytest.raises(RecipeError, match="cannot be read"):
            load_captioner(str(pickled.parent), device="cpu", allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_damaged_weights_are_named(tmp_path: Path, captioner: Path, adapters: dict[str, Path]) -> None:
    for name, directory in {"model": captioner, "adapter_model": adapters["lora"]}.items():
        copy = shutil.copytree(directory, tmp_path / name)
        weights = copy / f"{name}.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(RecipeError, match=f"weights of '{copy}' cannot be read"):
            load_captioner(str(copy), device="cpu")


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path, captioner: Path) -> None:
    import json

    shutil.copytree(captioner, tmp_path, dirs_exist_ok=True)
    ran = tmp_path / "ran"
    (tmp_path / "code.py").write_text(f"open({str(ran)!r}, 'w')\nfrom transformers import BlipConfig as Own\n")
    config = json.loads((tmp_path / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "code.Own", "AutoModel": "code.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config | own))
    with pytest.raises(RecipeError, match=r"custom code.*Read that code first; to run it, set trust_remote_code"):
        blip_recipe.caption_pipeline(tmp_path)
    with pytest.raises(ValueError, match="trust_remote_code"):
        pipeline("image-to-text", model=tmp_path)
    assert not ran.exists()


def test_repositories_on_the_hub_load_by_name_in_a_fresh_process(
    tmp_path: Path, captioner: Path, pictures: list[Path], captions: list[str]
) -> None:
    adapter = save_adapter(tmp_path / "adapter", "lab/base", base_directory=captioner, **RECIPE)
    expected = evaluated(save_adapter(tmp_path / "local", captioner, **RECIPE), pictures)
    code = """
import sys, blip_recipe
from transformers import pipeline
base, adapter, revision, picture = sys.argv[1:]
pipes = [pipeline("image-to-text", model=name, device="cpu") for name in (base, adapter)]
pipes.append(pipeline("image-to-text", model=adapter, revision="main", device="cpu"))
pipes.append(blip_recipe.caption_pipeline(adapter, revision=revision, device="cpu"))
print(*(pipe(picture)[0]["generated_text"] for pipe in pipes), sep="\\n")
"""
    offline = """
import sys, blip_recipe
pipes = [blip_recipe.caption_pipeline(name, local_files_only=True, device="cpu") for name in sys.argv[1:3]]
print(*(pipe(sys.argv[3])[0]["generated_text"] for pipe in pipes), sep="\\n")
"""
    with HubServer() as hub:
        environment = hub.environment(home=tmp_path / "home")
        hub.publish_model("lab/base", captioner)
        first = hub.publish_model("lab/adapter", adapter)
        write_recipe(adapter, **RECIPE | {"generation_max_length": 7})
        hub.publish_model("lab/adapter", adapter)
        printed = run_python(code, "lab/base", "lab/adapter", first, pictures[0], env=environment).splitlines()
    assert printed[0] == captions[0]
    assert printed[1] != expected[0], "the test needs revisions that differ"
    # For a commit, transformers' own `pipeline` would ask the base model's repository too, which has no such commit.
    assert printed[2:] == [printed[1], expected[0]]
    assert run_python(offline, "lab/base", "lab/adapter", pictures[0], env=environment).splitlines() == printed[:2]


def test_a_repository_loads_with_plain_transformers_5(captioner: Path, pictures: list[Path]) -> None:
    code = """
import sys
from transformers import pipeline
pipe = pipeline("image-text-to-text", model=sys.argv[1], device="cpu", max_new_tokens=12)
print(pipe(images=sys.argv[2], text="two green circles")[0]["generated_text"])
"""
    greedy = {"num_beams": 1, "min_length": 0, "max_new_tokens": 12, "prompt": "two green circles"}
    expected = blip_recipe.caption_pipeline(captioner, device="cpu")(pictures[0], **greedy)
    assert run_python(code, captioner, pictures[0]) == expected[0]["generated_text"]


def test_the_tiny_model_has_room_for_what_older_transformers_ask_for(captioner: Path, pictures: list[Path]) -> None:
    pipe = blip_recipe.caption_pipeline(captioner, device="cpu", num_beams=1)
    assert pipe(pictures[0], max_new_tokens=256, min_new_tokens=256)[0]["generated_text"]
    assert pipe.model.config.text_config.max_position_embeddings == 512


def test_saved_processors_have_the_form_that_older_transformers_read(tmp_path: Path, captioner: Path) -> None:
    import json

    config = json.loads((captioner / "tokenizer_config.json").read_text())
    assert "extra_special_tokens" not in config
    assert config["additional_special_tokens"] == ["[ENC]"]
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    processor = load_processor(str(captioner))
    assert json.loads((captioner / "preprocessor_config.json").read_text())["size"] == dict(
        processor.image_processor.size
    )
    save_processor(processor, tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (captioner / file.name).read_bytes(), f"{file.name} changes when it is saved again"


def test_an_adapter_without_processor_files_uses_its_base_models(tmp_path: Path, captioner: Path) -> None:
    adapter = save_adapter(tmp_path, captioner)
    for name in ("tokenizer_config.json", "tokenizer.json", "processor_config.json", "preprocessor_config.json"):
        (adapter / name).unlink()
    expected = load_processor(str(captioner))
    processor = load_processor(str(adapter))
    assert processor.image_processor.size == expected.image_processor.size
    assert processor.tokenizer("two green circles").input_ids == expected.tokenizer("two green circles").input_ids
