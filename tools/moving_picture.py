"""Make docs/page.gif, with which the README opens: the page's temperature slider, moved up and down again.

    python tools/site.py && python tools/moving_picture.py

Needs Playwright and a Chromium, as the browser tests do.
"""

import io
import sys
from pathlib import Path

from PIL import Image  # matplotlib brings it
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.browser import FLAGS, find_chromium  # noqa: E402

SIZE = {"width": 1000, "height": 620}
PRESSES, MOVES = 2, 20  # of the right arrow key before each picture; pictures on the way up
PAUSE, COLORS = 140, 64  # milliseconds a picture; colours of the GIF


def pictures(page):
    """Yield what the page looks like while its temperature rises."""
    slider = page.get_by_role("slider", name="temperature", exact=True)
    slider.press("Home")
    for _ in range(MOVES):
        page.wait_for_timeout(600)  # until the text has been written
        yield Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        for _ in range(PRESSES):
            slider.press("ArrowRight")


def main():
    """Write the moving picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        page = browser.new_page(viewport=SIZE)
        page.goto(f"{(ROOT / 'site' / 'dist' / 'index.html').as_uri()}#write")
        page.wait_for_function("window.gptcourse.session.config")
        up = [picture.quantize(COLORS) for picture in pictures(page)]
        browser.close()
    first, *others = [*up, *reversed(up[1:-1])]
    first.save(ROOT / "docs" / "page.gif", save_all=True, append_images=others, duration=PAUSE, loop=0, optimize=True)


if __name__ == "__main__":
    main()
