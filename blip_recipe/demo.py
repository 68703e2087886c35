"""Open a page to try a trained BLIP in the browser, or two of them side by side.

python -m blip_recipe.demo outputs/my_captioner
python -m blip_recipe.demo outputs/my_captioner --compare Salesforce/blip-image-captioning-base --port 8080
"""

from __future__ import annotations

import argparse
import os
import tempfile
from importlib.util import find_spec

from blip_recipe.errors import RecipeError, run_command
from blip_recipe.recipe.command_line import add_model_options, load_options, positive

PROG = "python -m blip_recipe.demo"


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Load the models, and serve the page until Ctrl+C."""
    arguments = build_parser(prog).parse_args(argv)
    if find_spec("gradio") is None:
        raise RecipeError("Gradio is missing, which shows the page: run `pip install 'blip-recipe[demo]'`.")

    from blip_recipe.demo_app.models import load_model

    options = load_options(arguments)
    models = [load_model(arguments.model, **options)]
    if arguments.compare:
        models.append(load_model(arguments.compare, **options | {"revision": None}))
    with tempfile.TemporaryDirectory(prefix="blip_recipe_demo_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # deleted at the end, with all pictures
        # Gradio sends usage statistics unless this is set before it is imported.
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

        from blip_recipe.demo_app.page import build_page

        build_page(models).launch(
            server_name=arguments.host, server_port=arguments.port, share=arguments.share, footer_links=[]
        )


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Open a page to try a model in the browser: captions, questions, matches, and where the model "
        "looks. Pictures are deleted after about an hour, or when the command ends.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="directory or Hub id of any BLIP, full or LoRA")
    add("--compare", metavar="MODEL2", help="another model, to show its results beside those of the first")
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0: all addresses of this machine; default: 127.0.0.1",
    )
    add("--port", type=positive, metavar="N", help="port to listen on; default: the first free one from 7860")
    add("--share", action="store_true", help="also serve the page at a public address of Gradio, for up to a week")
    add_model_options(parser)
    return parser


if __name__ == "__main__":
    run_command(main)
