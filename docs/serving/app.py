"""Serve an exported captioner over HTTP: `CAPTIONER=exported/my_captioner uvicorn app:app`.

POST the bytes of a picture to `/caption`. Requests that wait at the same time are captioned in one batch.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, HTTPException, Request

from blip_recipe.data.images import BadImageError
from blip_recipe.runtime.captioner import ExportedCaptioner

MAX_BYTES = 20 * 2**20
"""Largest picture in bytes."""

MAX_SECONDS = 30.0
"""Longest time from the picture to its caption."""

MAX_BATCH = 8
"""Pictures in a batch."""

MAX_WAITING = 64
"""Pictures that may wait; more are refused."""

Waiting = asyncio.Queue[tuple[Any, asyncio.Future[str]]]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the model, and caption what waits until the server stops."""
    app.state.captioner = ExportedCaptioner.load(os.environ["CAPTIONER"])
    app.state.waiting = Waiting(MAX_WAITING)
    worker = asyncio.create_task(caption_batches(app.state.captioner, app.state.waiting))
    yield
    worker.cancel()
    with suppress(asyncio.CancelledError):
        await worker


app = FastAPI(lifespan=lifespan)


@app.get("/health")
def health() -> dict[str, str]:
    """Whether the server runs."""
    return {"status": "ok"}


@app.post("/caption")
async def caption(request: Request) -> dict[str, str]:
    """Caption the picture in the body."""
    content = await read_body(request)
    state = request.app.state
    try:
        pixels = (await asyncio.to_thread(state.captioner.preprocess, content))["pixel_values"]
    except BadImageError as error:
        raise HTTPException(422, str(error)) from error
    found: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    try:
        state.waiting.put_nowait((pixels, found))
        async with asyncio.timeout(MAX_SECONDS):
            return {"caption": await found}
    except (asyncio.QueueFull, TimeoutError) as error:
        raise HTTPException(503, "Too many pictures wait: try again later.") from error


async def read_body(request: Request) -> bytes:
    """The body, as long as it is not too large."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BYTES:
            raise HTTPException(413, f"The picture has more than {MAX_BYTES:,} bytes.")
    return bytes(content)


async def caption_batches(captioner: ExportedCaptioner, waiting: Waiting) -> None:
    """Caption what waits, in batches."""
    while True:
        batch = [await waiting.get()]
        while len(batch) < MAX_BATCH and not waiting.empty():
            batch.append(waiting.get_nowait())
        batch = [each for each in batch if not each[1].done()]  # a client may have left
        if not batch:
            continue
        try:
            captions, _ = await asyncio.to_thread(captioner.caption_pixels, [pixels for pixels, _ in batch])
        except Exception as error:
            for _, found in batch:
                if not found.done():
                    found.set_exception(error)
            continue
        for (_, found), own in zip(batch, captions, strict=True):
            if not found.done():
                found.set_result(own[0])
