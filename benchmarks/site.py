"""The page without a kernel: its size, the time to its first live slider and to its model, its tokens a second.

In headless Chromium, from the folder site/dist (python tools/site.py makes it).
"""

import statistics

from playwright.sync_api import Page, sync_playwright

from benchmarks.timing import spread
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


def visit(browser, quick):
    """Return all that is timed, a list of values for each name."""
    times = {"first slider, ms": [], "model, ms": []}
    for _ in range(1 if quick else N_OPENINGS):
        page = browser.new_page()
        for name, value in opening(page).items():
            times[name].append(value)
    page.wait_for_timeout(2_000)
    times["key press to bars, ms"] = [page.evaluate(KEY) for _ in range(N_KEYS)]
    page.goto((SITE / "dist" / "index.html").as_uri() + "#learn")
    page.wait_for_function(READY)
    times["tokens a second"] = [page.evaluate(SPEED, [N_TOKENS, seed]) for seed in ((1,) if quick else (1, 2, 3))]
    return times


def measure(options):
    """Return how it was measured, and the table: the median, and of key presses the 95th percentile too."""
    if not (SITE / "dist" / "index.html").exists():
        raise SystemExit("There is no page yet: run python tools/site.py first.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        times = visit(browser, options.quick)
        browser.close()
    size = sizes()
    high = statistics.quantiles(times["key press to bars, ms"], n=20, method="inclusive")[-1]
    values = {
        "all files, MB": size["all"] / 1e6,
        "before the first slider, MB": size["first"] / 1e6,
        **{name: spread(some) for name, some in times.items()},
        "key press to bars, 95th percentile, ms": high,
    }
    rows = [{"the page without a kernel": name, "": value} for name, value in values.items()]
    how = f"{N_OPENINGS} openings, {N_KEYS} moves of the temperature, medians, in brackets the lowest and the highest."
    return how, {"": rows}
