"""Reading data sets of a loopback Hub in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from commands import run_code
from hub_server import HubServer

SCRIPT = """
import json, sys
from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.checks import check_splits
from blip_recipe.data.images import open_image
from blip_recipe.data.load import load_split
from blip_recipe.errors import RecipeError
for keys, split in json.loads(sys.argv[1]):
    try:
        max_samples = keys.pop("max_samples", None)
        arguments = CaptionDataArguments(**keys)
        rows = load_split(arguments, split, max_samples=max_samples)
        if sys.argv[2:]:
            check_splits({"eval": rows}, arguments)
    except RecipeError as error:
        print(json.dumps({"error": str(error)}))
    else:
        ids, sizes = list(rows["image_id"]), [open_image(image).size for image in rows["image"]]
        print(json.dumps({"ids": ids, "captions": list(rows["captions"]), "sizes": sizes}))
"""


def read(
    hub: HubServer, *requests: tuple[dict[str, Any], str], home: Path | None = None, checked: bool = False
) -> list[dict[str, Any]]:
    """What `load_split` gives in a process that knows this Hub alone; `checked` as the split of evaluation."""
    options = ["checked"] if checked else []
    done = run_code(SCRIPT, json.dumps(requests), *options, env=hub.environment(None, home))
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
