"""Write `index.html`, a page that captions pictures in the browser with the files of transformers.js beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from blip_recipe.card.page import hash_source, read_parts, to_json
from blip_recipe.errors import RecipeError
from blip_recipe.runtime.resizing import FILTERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blip_recipe.exporting.kinds import Source

VERSION = "4.3.2"
"""The version of transformers.js that the page was tested with."""

CDN = "https://cdn.jsdelivr.net"
"""Where the page loads transformers.js from by default; transformers.js itself loads its WebAssembly from there."""

LIBRARY_FOLDER = "transformers_js"
"""Folder beside the page with the local copy of transformers.js."""

LIBRARY = "transformers.min.js"
WASM = ("ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm")
PACKAGES = {"@huggingface/transformers": ("LICENSE", f"dist/{LIBRARY}"), "onnxruntime-web": [f"dist/{f}" for f in WASM]}
"""The files of npm packages that the page needs."""

DTYPES = {"fp32": "32 bits", "q8": "8 bits: smaller and faster"}
"""The precisions of transformers.js, and their labels on the page."""

FOLDER = Path(__file__).parent


def write_demo(source: Source, folder: Path, record: Mapping[str, Any], library: Path | None = None) -> None:
    """Write the page into a folder in the layout of transformers.js.

    Args:
        source: The exported captioner.
        folder: The folder.
        record: The content of its `export.json`.
        library: A folder in which `npm install @huggingface/transformers` ran, from which transformers.js is copied;
            without it, the page loads transformers.js from its CDN.

    Raises:
        RecipeError: transformers.js is not in `library`, or the page does not know the model's filter for resizing.
    """
    if record["image"]["resample"] not in FILTERS:
        raise RecipeError(
            f"{source.name} resizes pictures with filter {record['image']['resample']}: the page knows "
            f"{' and '.join(map(str, map(int, FILTERS)))}, Pillow's bilinear and bicubic. Leave --demo out."
        )
    if library is not None:
        copy_library(library, folder / LIBRARY_FOLDER)
    dtypes = ["q8", "fp32"] if record["dtype"] == "int8" else ["fp32"]
    prompt = source.processor.tokenizer(source.settings.prompt, add_special_tokens=False).input_ids
    place = f"./{LIBRARY_FOLDER}/" if library else f"{CDN}/npm/@huggingface/transformers@{VERSION}/dist/"
    settings = {
        "library": place + LIBRARY,
        "wasm": place if library else None,
        "wasm_files": WASM,
        "dtype": dtypes[0],
        "image": record["image"],
        "prompt_ids": [record["tokens"]["start"], *prompt],
    }
    page = render_demo(source.name, settings, {name: DTYPES[name] for name in dtypes}, None if library else CDN)
    (folder / "index.html").write_text(page, encoding="utf-8")


def render_demo(name: str, settings: Mapping[str, Any], dtypes: Mapping[str, str], host: str | None) -> str:
    """The page. Its policy allows requests to its own server, and to the host of transformers.js, alone.

    Args:
        name: The name of the model.
        settings: What the script reads.
        dtypes: The precisions to choose from, with their labels.
        host: The host of transformers.js; None: the page's own.
    """
    style = read_parts("page.css") + _read("demo.css")
    script = _read("pixels.js") + _read("demo.js")
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("demo.html.jinja").render(
        name=name,
        dtypes=dtypes,
        host=host,
        settings=to_json(settings),
        style=style,
        script=script,
        policy=demo_policy(style, script, host),
    )


def demo_policy(style: str, script: str, host: str | None) -> Markup:
    """The content security policy of the page."""
    places = f"'self' {host}" if host else "'self'"
    directives = {
        "default-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "img-src": "blob: data:",
        "style-src": hash_source(style),
        # WebAssembly must be allowed. Its threads, on servers that allow them, start from blobs.
        "script-src": f"{hash_source(script)} {places} 'wasm-unsafe-eval' blob:",
        "worker-src": f"{places} blob:",
        "connect-src": f"{places} blob: data:",
    }
    return Markup("; ".join(f"{name} {value}" for name, value in directives.items()))


def copy_library(library: Path, folder: Path) -> None:
    """Copy what the page needs of transformers.js and ONNX Runtime.

    Raises:
        RecipeError: A file is missing.
    """
    folder.mkdir()
    modules = library / "node_modules"
    for package, names in PACKAGES.items():
        nested = modules / "@huggingface" / "transformers" / "node_modules" / package
        place = nested if nested.is_dir() else modules / package
        for name in names:
            if not (place / name).is_file():
                raise RecipeError(
                    f"{place / name} does not exist: --transformers_js takes a folder in which `npm install "
                    f"@huggingface/transformers@{VERSION}` ran."
                )
            shutil.copyfile(place / name, folder / Path(name).name)


def _read(name: str) -> Markup:
    return Markup((FOLDER / name).read_text(encoding="utf-8"))
