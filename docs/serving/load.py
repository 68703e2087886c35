"""Ask a captioning server for many captions at once, and compare them with those that it gives one by one.

python docs/serving/load.py http://127.0.0.1:8000 photos/ --clients 32 --requests 1000
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from statistics import quantiles
from typing import Any


def ask(url: str, content: bytes | None = None, seconds: float = 60) -> tuple[int, dict[str, Any]]:
    """POST the content, or GET without one; returns status and answer, (0, {}) if nobody answers within `seconds`."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=content), timeout=seconds) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
    except OSError:
        return 0, {}


def measure(address: str, pictures: Sequence[bytes], clients: int, requests: int) -> dict[str, Any]:
    """Ask for every picture alone, then for `requests` pictures with `clients` at once.

    Args:
        address: The address of the server.
        pictures: Encoded pictures.
        clients: Number of requests that are open at the same time.
        requests: Number of requests; the pictures are repeated.

    Returns:
        How many answers have each status, and how many captions are those that were given one by one; captions a
        second, one by one and at once; latencies in milliseconds; pictures in a batch.
    """

    def timed(content: bytes) -> tuple[int, dict[str, Any], float]:
        start = time.perf_counter()
        return *ask(f"{address}/caption", content), time.perf_counter() - start

    start = time.perf_counter()
    alone = [ask(f"{address}/caption", picture) for picture in pictures]
    alone_seconds = time.perf_counter() - start
    before = ask(f"{address}/health")[1]
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(timed, islice(cycle(pictures), requests)))
    seconds = time.perf_counter() - start
    after = ask(f"{address}/health")[1]
    cuts = quantiles([each[2] * 1000 for each in found], n=100)
    statuses = Counter(status for status, _, _ in found)
    return {
        "statuses": dict(statuses),
        "equal": sum(each[:2] == expected for each, expected in zip(found, cycle(alone), strict=False)),
        "alone_per_second": len(alone) / alone_seconds,
        "per_second": statuses[200] / seconds,
        **{f"p{cut}_ms": cuts[cut - 1] for cut in (50, 95, 99)},
        "pictures_per_batch": (after["pictures"] - before["pictures"]) / (after["batches"] - before["batches"]),
    }


def main() -> None:
    """Measure a server, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("address", help="for example http://127.0.0.1:8000")
    parser.add_argument("pictures", type=Path, help="folder of pictures")
    parser.add_argument("--clients", type=int, default=32, help="requests that are open at the same time")
    parser.add_argument("--requests", type=int, default=1000, help="number of requests")
    arguments = parser.parse_args()
    suffixes = {".jpg", ".jpeg", ".png", ".webp"}
    paths = sorted(path for path in arguments.pictures.rglob("*") if path.suffix.lower() in suffixes)
    pictures = [path.read_bytes() for path in paths]
    found = measure(arguments.address.rstrip("/"), pictures, arguments.clients, arguments.requests)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
