"""Measure the page without a kernel: python -m benchmarks.site

Sizes; the time from opening to the first live slider, and to the model; from a key press on the temperature to new
bars; tokens a second. In headless Chromium, from the folder site/dist (python tools/site.py makes it).
"""

import json
import statistics

from playwright.sync_api import Page, sync_playwright

from tests.browser import FLAGS, find_chromium
from tools.site import SITE, sizes

N_OPENINGS, N_KEYS, N_TOKENS = 5, 40, 90

FIRST = "document.querySelectorAll('ol .number').length"
READY = "window.gptcourse?.session.config"
# The time from a key press to the frame after the one in which the bars have changed.
KEY = """() => new Promise(resolve => {
    const bars = document.querySelector("ol");
    const began = performance.now();
    const observer = new MutationObserver(() => {
        observer.disconnect();
        requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now() - began)));
    });
    observer.observe(bars, { subtree: true, childList: true, characterData: true, attributes: true });
    const slider = document.querySelector("input[type=range]");
    slider.stepUp(slider.value > 1.5 ? -10 : 1);
    slider.dispatchEvent(new Event("input", { bubbles: true }));
})"""
SPEED = """async ([count, seed]) => {
    const sampling = { temperature: 1, top_k: 0, top_p: 1, min_p: 0, typical_p: 1, top_n_sigma: 0,
        repetition_penalty: 1, seed };
    const began = performance.now();
    await window.gptcourse.session.remote.write({ prompt: [50 + seed], count, sampling, forced: {} }, () => {});
    return 1000 * count / (performance.now() - began);
}"""


def opening(page: Page) -> dict:
    """Return milliseconds from asking for the page to the first live slider, and to the model."""
    page.goto((SITE / "dist" / "index.html").as_uri())
    times = {}
    for name, condition in (("first slider, ms", FIRST), ("model, ms", READY)):
        times[name] = page.wait_for_function(f"({condition}) && performance.now()", polling=10).json_value()
    return times


def measure() -> dict:
    """Return all measures: medians, and of key presses the 95th percentile."""
    size = sizes()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        openings = []
        for _ in range(N_OPENINGS):
            page = browser.new_page()
            openings.append(opening(page))
        page.wait_for_timeout(2_000)
        keys = sorted(page.evaluate(KEY) for _ in range(N_KEYS))
        page.goto((SITE / "dist" / "index.html").as_uri() + "#learn")
        page.wait_for_function(READY)
        speeds = [page.evaluate(SPEED, [N_TOKENS, seed]) for seed in (1, 2, 3)]
        browser.close()
    return {
        "all files, MB": size["all"] / 1e6,
        "before the first slider, MB": size["first"] / 1e6,
        **{name: statistics.median(times[name] for times in openings) for name in openings[0]},
        "key press to bars, 95th percentile, ms": keys[int(0.95 * len(keys))],
        "tokens a second": statistics.median(speeds),
    }


if __name__ == "__main__":
    print(json.dumps({name: round(value, 2) for name, value in measure().items()}, indent=2))
