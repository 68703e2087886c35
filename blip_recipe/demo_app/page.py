"""Build the page: a picture, and a tab for everything that its models can do."""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from blip_recipe.demo_app.models import Answerer, Captioner, LoadedModel, PictureMatcher, Sampling
from blip_recipe.errors import RecipeError

logger = logging.getLogger(__name__)

DELETE_AFTER = (600, 3600)
"""Every 10 minutes, files that are an hour old are deleted (seconds); when the server ends, all are."""

MOST_CAPTIONS = 10
SEARCH, SAMPLE = "beam search", "sampling"


def build_page(models: Sequence[LoadedModel]) -> gr.Blocks:
    """Build the page of one or two models, which are shown side by side where they are of the same kind."""
    title = " and ".join(Path(model.name).name for model in models)
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=DELETE_AFTER) as page, gr.Row():
        with gr.Column(scale=2, min_width=280):
            picture = picture_input()
        with gr.Column(scale=3, min_width=320), gr.Tabs():
            for label, kind, build_tab in TABS:
                fitting = [model for model in models if isinstance(model, kind)]
                if fitting:
                    with gr.Tab(label):
                        build_tab(picture, fitting)
    return page


def picture_input() -> gr.Image:
    """The picture: dropped, chosen, pasted, or taken with a camera. Functions get its path."""
    picture = gr.Image(
        type="filepath", label="Picture", sources=["upload", "clipboard", "webcam"], height=320, elem_id="picture"
    )
    # Gradio would open the file itself, with another message for bad ones and without our limits.
    picture.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    return picture


def caption_tab(picture: gr.Image, models: Sequence[Captioner]) -> None:
    """Captions, by beam search or sampling."""
    own = " / ".join(dict.fromkeys(repr(model.settings.prompt) for model in models if model.settings.prompt))
    prompt = gr.Textbox(label="Prompt", info=f"Empty: the model's own{f', {own}' if own else ''}.", elem_id="prompt")
    with gr.Row():
        count = gr.Slider(1, MOST_CAPTIONS, value=1, step=1, label="Captions", elem_id="count")
        how = gr.Radio([SEARCH, SAMPLE], value=SEARCH, label="Decoding", elem_id="decoding")
    with gr.Accordion("Settings of decoding", open=False):
        beams = gr.Slider(1, MOST_CAPTIONS, value=models[0].settings.num_beams, step=1, label="Beams")
        with gr.Row():
            temperature = gr.Slider(0.1, 2, value=1, step=0.1, label="Temperature")
            top_p = gr.Slider(0.05, 1, value=0.9, step=0.05, label="Top p")
            seed = gr.Number(42, precision=0, minimum=0, label="Seed")

    def run(model: Captioner, path: str, *settings: Any) -> str:
        text, number, decoding, width, *sampling = settings
        chosen = Sampling(*sampling) if decoding == SAMPLE else None
        return "\n".join(model.caption(path, text, int(number), int(width), chosen))

    inputs = [prompt, count, how, beams, temperature, top_p, seed]
    add_action("Caption", picture, models, inputs, run, partial(text_output, "Captions"))


def answer_tab(picture: gr.Image, models: Sequence[Answerer]) -> None:
    """Answers to a question."""
    question = gr.Textbox(label="Question", elem_id="question")
    choices = gr.Textbox(
        label="Answers to choose from", info="One on each line. Empty: the model writes its answer.", lines=2
    )
    inputs = [question, choices]
    add_action("Ask", picture, models, inputs, lambda model, *each: model.answer(*each), partial(text_output, "Answer"))


def match_tab(picture: gr.Image, models: Sequence[PictureMatcher]) -> None:
    """Probabilities that texts match the picture."""
    texts = gr.Textbox(label="Texts", info="One on each line.", lines=4, elem_id="texts")
    add_action("Match", picture, models, [texts], lambda model, *each: model.match(*each), table_output)


def explain_tab(picture: gr.Image, models: Sequence[LoadedModel]) -> None:
    """Heat maps of words."""
    text = gr.Textbox(
        label="Text", info="A question, a text to match, or a caption. Empty: the caption that the model writes."
    )
    add_action("Explain", picture, models, [text], lambda model, *each: model.explain(*each), picture_output, 600)


TABS: tuple[tuple[str, type[LoadedModel], Callable[..., None]], ...] = (
    ("Captions", Captioner, caption_tab),
    ("Questions", Answerer, answer_tab),
    ("Matches", PictureMatcher, match_tab),
    ("Where it looks", LoadedModel, explain_tab),
)
"""The label of each tab, the models that it is for, and its builder."""


def add_action(
    label: str,
    picture: gr.Image,
    models: Sequence[Any],
    inputs: list[Any],
    run: Callable[..., Any],
    output: Callable[[str], Any],
    width: int = 200,
) -> None:
    """Add a button, and a column of results for each model.

    Args:
        label: The text of the button.
        picture: The picture.
        models: The models.
        inputs: Further inputs, whose values `run` gets.
        run: Gives the result of a model for the path of a picture and the values of `inputs`.
        output: Makes the component of the result of the model of a name.
        width: Smallest width of a result in pixels; those that do not fit beside others stand below them.
    """
    button = gr.Button(label, variant="primary", elem_id=label.lower())
    outputs = []
    with gr.Row():
        for model in models:
            with gr.Column(min_width=width):
                outputs.append(output(model.name))

    def run_all(path: str | None, *values: Any) -> Any:
        if path is None:
            raise gr.Error("There is no picture: choose one first.", print_exception=False)
        try:
            found = [run(model, path, *values) for model in models]
        except (RecipeError, ValueError) as error:
            # Gradio shows messages as HTML. The user knows the picture by its name, not by our temporary path.
            message = str(error).replace(path, Path(path).name)
            raise gr.Error(html.escape(message), print_exception=False) from error
        return found if len(found) > 1 else found[0]

    gr.on([button.click], run_all, [picture, *inputs], outputs, api_name=label.lower())


def text_output(label: str, name: str) -> gr.Textbox:
    """Texts of a model."""
    return gr.Textbox(label=f"{label} of {name}", interactive=False, buttons=["copy"], elem_classes="result")


def table_output(name: str) -> gr.Dataframe:
    """Texts and probabilities of a model."""
    columns = ["text", "probability"]
    return gr.Dataframe(headers=columns, datatype=["str", "number"], interactive=False, label=name, wrap=True)


def picture_output(name: str) -> gr.Image:
    """Heat maps of a model, below its name: a label would cover the first of them."""
    with gr.Accordion(name):
        return gr.Image(show_label=False, interactive=False, format="png", buttons=["download", "fullscreen"])
