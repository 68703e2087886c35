"""Take the picture of the page in docs/demo.md.

python docs/figures/demo.py outputs/shapes_tiny outputs/shapes_fine docs/figures/demo.png

The second model is that of docs/explain.md. A Chromium of the system is needed, as for the tests.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from blip_recipe.data.shapes import draw_scene, make_scenes

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from browser import OPTIONS, find_browser

PORT = 7869


def main(first: str, second: str, target: str) -> None:
    """Serve the page, and take the picture."""
    command = [sys.executable, "-m", "blip_recipe.demo", first, "--compare", second, "--port", str(PORT)]
    server = subprocess.Popen(command)
    try:
        wait_for(f"http://127.0.0.1:{PORT}")
        with sync_playwright() as driver, tempfile.TemporaryDirectory() as folder:
            scene = Path(folder, "scene.png")
            draw_scene(make_scenes("test")[0]).save(scene)
            browser = driver.chromium.launch(executable_path=find_browser(), args=list(OPTIONS))
            page = browser.new_page(viewport={"width": 1160, "height": 680})
            take(page, scene, target)
            browser.close()
    finally:
        server.terminate()
        server.wait()


def wait_for(url: str) -> None:
    """Wait until the page is served."""
    while True:
        try:
            urllib.request.urlopen(url).read()
            return
        except OSError:
            time.sleep(0.2)


def take(page: Page, scene: Path, target: str) -> None:
    """Write three captions of each model, and save what the page shows."""
    page.goto(f"http://127.0.0.1:{PORT}")
    page.locator("#picture input[type=file]").first.set_input_files(scene)
    page.locator("#picture img").wait_for()
    page.locator("#count input[type=number]").fill("3")
    page.locator("#caption").click()
    for box in (page.locator(".result textarea").first, page.locator(".result textarea").last):
        expect(box).not_to_have_value("", timeout=60_000)
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)
    page.screenshot(path=target)


if __name__ == "__main__":
    main(*sys.argv[1:])
