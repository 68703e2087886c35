"""Serve an exported captioner over HTTP: `CAPTIONER=exported/my_captioner uvicorn app:app`.

POST the bytes of a picture to `/caption`. Requests that wait at the same time are captioned in one batch.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from starlette.requests import ClientDisconnect

from blip_recipe.data.images import BadImageError, open_lazily, wrap_image_errors
from blip_recipe.runtime.captioner import ExportedCaptioner

MAX_BYTES = int(os.environ.get("MAX_BYTES", 20 * 2**20))
"""Largest picture in bytes."""

MAX_PIXELS = int(os.environ.get("MAX_PIXELS", 40_000_000))
"""Largest picture in pixels: a small file may need gigabytes when it is decoded."""

MAX_SECONDS = float(os.environ.get("MAX_SECONDS", 30))
"""Longest time from the first byte of a picture to its caption."""

MAX_BATCH = int(os.environ.get("MAX_BATCH", 8))
"""Pictures in a batch."""

MAX_WAITING = int(os.environ.get("MAX_WAITING", 64))
"""Requests that may be open; more are refused."""

Waiting = asyncio.Queue[tuple[np.ndarray, asyncio.Future[str]]]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the model, and caption what waits until the server stops."""
    state = app.state
    state.captioner = ExportedCaptioner.load(os.environ["CAPTIONER"])
    state.waiting, state.open, state.pictures, state.batches = Waiting(), 0, 0, 0
    worker = asyncio.create_task(caption_batches(state))
    yield
    worker.cancel()
    with suppress(asyncio.CancelledError):
        await worker


app = FastAPI(lifespan=lifespan)


@app.get("/health")
async def health(request: Request) -> dict[str, Any]:
    """That the server runs, and how many pictures it has captioned in how many batches."""
    state = request.app.state
    return {"status": "ok", "open": state.open, "pictures": state.pictures, "batches": state.batches}


@app.post("/caption")
async def caption(request: Request) -> dict[str, str]:
    """Caption the picture in the body."""
    state = request.app.state
    if state.open >= MAX_WAITING:
        raise HTTPException(503, "Too many pictures wait: try again later.", {"Retry-After": "1"})
    state.open += 1
    try:
        deadline = asyncio.get_running_loop().time() + MAX_SECONDS
        return {"caption": await caption_content(state, await read_body(request, deadline), deadline)}
    finally:
        state.open -= 1


async def read_body(request: Request, deadline: float) -> bytes:
    """The body, as long as it is not too large and comes in time."""
    content = bytearray()
    try:
        async with asyncio.timeout_at(deadline):
            async for part in request.stream():
                content += part
                if len(content) > MAX_BYTES:
                    raise HTTPException(413, f"The picture has more than {MAX_BYTES:,} bytes.")
    except TimeoutError as error:
        raise HTTPException(408, f"The picture did not come within {MAX_SECONDS:g} s.") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "The picture did not come to its end.") from error
    return bytes(content)


async def caption_content(state: Any, content: bytes, deadline: float) -> str:
    """The caption of an encoded picture, if it is there in time."""
    found: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    try:
        async with asyncio.timeout_at(deadline):
            state.waiting.put_nowait((await asyncio.to_thread(read_pixels, state.captioner, content), found))
            return await found
    except TimeoutError as error:
        raise HTTPException(504, f"There was no caption within {MAX_SECONDS:g} s.") from error


def read_pixels(captioner: ExportedCaptioner, content: bytes) -> np.ndarray:
    """The pixels of an encoded picture, which is decoded only if it is not too large."""
    try:
        with wrap_image_errors(content):
            picture = open_lazily(content)
            size = picture.width * picture.height
        if size > MAX_PIXELS:
            raise HTTPException(413, f"The picture has {size:,} pixels, more than {MAX_PIXELS:,}.")
        return captioner.preprocess(content)["pixel_values"]
    except BadImageError as error:
        raise HTTPException(422, str(error)) from error


async def caption_batches(state: Any) -> None:
    """Caption what waits, in batches."""
    while True:
        batch = [await state.waiting.get()]
        while len(batch) < MAX_BATCH and not state.waiting.empty():
            batch.append(state.waiting.get_nowait())
        batch = [each for each in batch if not each[1].done()]  # a client may have left
        if not batch:
            continue
        try:
            captions, _ = await asyncio.to_thread(state.captioner.caption_pixels, [pixels for pixels, _ in batch])
        except Exception as error:
            for _, found in batch:
                if not found.done():
                    found.set_exception(error)
            continue
        state.pictures, state.batches = state.pictures + len(batch), state.batches + 1
        for (_, found), own in zip(batch, captions, strict=True):
            if not found.done():
                found.set_result(own[0])
