"""Make docs/page.gif, with which the README opens, and docs/page.png, its first picture: Look inside, at work.

    python tools/site.py && python tools/moving_picture.py

A wave of dots runs through the model; then the likeliest next token is written, and another wave follows. The time of
the animations is set by hand, picture by picture, so that a slow computer makes the same pictures.

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

DOCS = ROOT / "docs"
SIZE = {"width": 1216, "height": 826}
TIMES = range(0, 2_800, 140)  # milliseconds of a wave
HOLD, COLORS = 1_800, 192  # milliseconds that a picture between two waves stays; colours of the GIF
KEEP = "const later = setTimeout; window.setTimeout = (call, ms) => later(call, ms > 2000 ? 2 ** 30 : ms)"
SET_TIME = """time => document.getAnimations().filter(one => one.animationName).forEach(one => {
    one.pause();
    one.currentTime = time;
})"""


def picture(page) -> Image.Image:
    """Return what the page looks like."""
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def wave(page):
    """Yield the pictures of one wave, with their milliseconds, once its dots are there."""
    page.locator(".dots.once").first.wait_for(state="attached")
    for time in TIMES:
        page.evaluate(SET_TIME, time)
        yield picture(page), TIMES.step
    page.evaluate(SET_TIME, 1e6)  # all dots have passed
    yield picture(page), HOLD


def pictures(page):
    """Yield all pictures, with their milliseconds: two waves, and a token that is written between them."""
    yield from wave(page)
    page.get_by_role("button", name="and go on").first.click()
    page.locator(".dots.once").first.wait_for(state="detached")
    yield from wave(page)


def main():
    """Write both files."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        page = browser.new_page(viewport=SIZE)
        page.add_init_script(KEEP)  # the dots stay until they have been pictured
        page.goto(f"{(ROOT / 'site' / 'dist' / 'index.html').as_uri()}#inside")
        frames, times = zip(*pictures(page), strict=True)
        browser.close()
    frames[len(TIMES)].save(DOCS / "page.png", optimize=True)
    palette = frames[len(TIMES) // 2].quantize(COLORS)
    first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    first.save(DOCS / "page.gif", save_all=True, append_images=others, duration=list(times), loop=0, optimize=True)


if __name__ == "__main__":
    main()
