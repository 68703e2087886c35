"""Photographs captioned without torch by every format of a model that the original code trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import run_code
from exports import needs_openvino, run_command, run_lines

from blip_recipe import caption_pipeline
from blip_recipe.data.storage import read_json
from blip_recipe.errors import RecipeError
from blip_recipe.export import main
from blip_recipe.runtime.captioner import ExportedCaptioner
from blip_recipe.runtime.engines import ENGINES, choose_engine

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formats")


@pytest.fixture(scope="module")
def photographs(shared: Path) -> list[str]:
    return sorted(str(path) for path in (shared / "data" / "photos").rglob("*.jpg"))


@pytest.fixture(scope="module")
def expected(shared: Path, photographs: list[str]) -> list[str]:
    """The captions of the original model in torch."""
    captioner = caption_pipeline(shared / "data" / "parity" / "model", device="cpu", batch_size=8)
    return [each[0]["generated_text"] for each in captioner(photographs)]


@pytest.fixture(scope="module")
def exported(shared: Path, folder: Path) -> Path:
    main([str(shared / "data" / "parity" / "model"), str(folder / "onnx")])
    return folder / "onnx"


def converted(exported: Path, form: tuple[str, str]) -> Path:
    made = exported.with_name("_".join(form))
    made.mkdir()
    code = "import sys; from pathlib import Path; from blip_recipe.exporting.conversion import convert;"
    run_lines(f"{code} convert(Path(sys.argv[1]), Path(sys.argv[2]), {form!r})", exported, made)
    return made


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".onnx", ".xml", ".bin"))


def test_86_photographs_without_torch(exported: Path, photographs: list[str], expected: list[str]) -> None:
    found = [row["caption"] for row in run_command("caption", exported, *photographs)]
    assert len(found) == 86
    assert len(set(expected)) > 10  # the captions differ
    assert [pair for pair in zip(expected, found, strict=True) if pair[0] != pair[1]] == []


@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def test_engines_report_nothing(engine: str, exported: Path, tmp_path: Path) -> None:
    """They would keep an id of this machine below the home directory."""
    code = (
        "import sys; from blip_recipe.runtime.captioner import ExportedCaptioner;"
        "ExportedCaptioner.load(sys.argv[1], engine=sys.argv[2])"
    )
    done = run_code(code, exported, engine, env={"HOME": str(tmp_path)}, cold=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("*")) == []


def test_float16_halves_the_files_and_keeps_captions(exported: Path, photographs: list[str]) -> None:
    half = converted(exported, ("onnx", "fp16"))
    assert size_of(half) < 0.6 * size_of(exported)
    assert read_json(half / "export.json")["dtype"] == "fp16"
    first, second = (ExportedCaptioner.load(each, threads=1) for each in (exported, half))
    pixels = np.concatenate([first.folder.read_picture(path) for path in photographs])
    captions = [captioner.caption_pixels([pixels])[0] for captioner in (first, second)]
    assert sum(a == b for a, b in zip(*captions, strict=True)) >= 80


@needs_openvino
def test_openvino_reads_its_own_files_without_torch_and_onnx_runtime(
    exported: Path, photographs: list[str], expected: list[str]
) -> None:
    made = converted(exported, ("openvino", "fp32"))
    assert {path.suffix for path in made.glob("*_*coder.*")} == {".xml", ".bin"}
    found = [row["caption"] for row in run_command("caption", made, *photographs, without=("onnxruntime",))]
    assert found == expected
    half = converted(exported, ("openvino", "fp16"))
    assert size_of(half) < 0.6 * size_of(made)


def test_engines_and_precisions_that_do_not_fit_are_told(exported: Path, tmp_path: Path) -> None:
    for format, dtype, known in (("openvino", "int8", "fp32, fp16"), ("transformers.js", "fp16", "fp32, int8")):
        with pytest.raises(RecipeError, match=f"--format {format} has no --dtype {dtype}: expected one of {known}"):
            main([str(exported), str(tmp_path / "out"), "--format", format, "--dtype", dtype])
    with pytest.raises(RecipeError, match=r"files that end in \.xml need openvino or openvino_bf16"):
        choose_engine(".xml", "onnxruntime")
    assert next(iter(ENGINES)) == choose_engine(".onnx") == "onnxruntime"
