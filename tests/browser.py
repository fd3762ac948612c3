"""Drive a real JupyterLab in a real browser, on copies of notebooks: for test_browser.py, benchmarks, and by hand.

    python -m tests.browser notebooks/00_start_here.ipynb page.png [--dark]

opens a copy, runs every cell, prints what went wrong and writes a picture of the whole page.
"""

import argparse
import contextlib
import io
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TALLEST = 8_000  # pixels: a browser draws no windows of any height
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of view are drawn too
    "docmanager-extension/plugin": {"autosave": False},
}
# The notebook that is open, once its kernel has said that it is idle: the visible indicator says so too early.
READY = """async () => {
    if (!window.jupyterapp) return false;
    const late = new Promise(resolve => setTimeout(resolve, 5_000, "late"));
    if (await Promise.race([window.jupyterapp.restored, late]) === "late") return false;
    const session = window.jupyterapp.shell.currentWidget?.sessionContext;
    return Boolean(session?.isReady && session.session?.kernel?.status === "idle");
}"""
# Playwright waits for a promise without end: what a kernel may never answer to has a limit of its own.
SHUT_DOWN = """() => Promise.race([window.jupyterapp?.shell.currentWidget?.sessionContext?.shutdown(),
                                new Promise(resolve => setTimeout(resolve, 30_000))])"""
ERRORS = """() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells
    .flatMap(cell => cell.outputs ?? []).filter(output => output.output_type === "error")
    .map(output => output.ename + ": " + output.evalue)"""

PRINTED = """() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells
    .flatMap(cell => cell.outputs ?? []).filter(output => output.output_type === "stream")
    .map(output => [output.text].flat().join("")).join("")"""


def find_chromium():
    """Return the path of a Chromium or Chrome, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


class Lab:
    """A JupyterLab with settings and folders of its own, and a browser to look at it; used in a ``with``."""

    def __init__(self, notebooks, dark=False):
        self.stack, self.dark = contextlib.ExitStack(), dark
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        (self.folder / "work").mkdir()
        for notebook in notebooks:  # an open notebook saves itself back, so JupyterLab sees only copies
            shutil.copy(notebook, self.folder / "work")

    def __enter__(self):
        from playwright.sync_api import sync_playwright

        try:
            self.url = self._start_server()
            playwright = self.stack.enter_context(sync_playwright())
            self.browser = playwright.chromium.launch_persistent_context(
                str(self.folder / "browser"),
                executable_path=find_chromium(),
                headless=True,
                args=FLAGS,
                viewport={"width": 1000, "height": 900},
            )
            self.stack.callback(self.browser.close)
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *_exception):
        self.stack.close()

    def _start_server(self):
        """Start JupyterLab and return its address when it answers."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        folders = {
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "GPTCOURSE_PROGRESS": "progress",  # not this user's: answers and losses of the day would be in the picture
        }
        theme = {"apputils-extension/themes": {"theme": "JupyterLab Dark"}} if self.dark else {}
        for name, settings in {**SETTINGS, **theme}.items():
            path = self.folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(settings), encoding="utf-8")
        self.token = secrets.token_hex(16)
        python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "JUPYTER_TOKEN": self.token, "PYTHONPATH": python_path}
        environment |= {name: str(self.folder / folder) for name, folder in folders.items()}
        log = self.stack.enter_context((self.folder / "server.log").open("w", encoding="utf-8"))
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                "--no-browser",
                "--allow-root",
                "--ServerApp.ip=127.0.0.1",
                f"--ServerApp.port={port}",
                "--ServerApp.port_retries=0",
                "--LabApp.expose_app_in_browser=True",
                f"--ServerApp.root_dir={self.folder / 'work'}",
            ],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        self.stack.callback(_stop, server)
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"{address}/api?token={self.token}", timeout=5).close()
                return address
            if server.poll() is not None:
                break
            time.sleep(0.5)
        raise RuntimeError("JupyterLab did not start:\n" + (self.folder / "server.log").read_text(encoding="utf-8"))

    @contextlib.contextmanager
    def open(self, name):
        """Open a notebook by its file's name and yield it; its kernel is shut down afterwards."""
        page = self.browser.new_page()
        notebook = Notebook(page)
        # A workspace of its own: a second page in the same one would be sent elsewhere while it loads.
        page.goto(f"{self.url}/lab/workspaces/{Path(name).stem}/tree/{name}?reset&token={self.token}")
        try:
            notebook.wait_until_idle(120)
            page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area')")
            yield notebook
        finally:
            page.evaluate(SHUT_DOWN)
            page.close()


class Notebook:
    """One open notebook: run it, move its sliders, look at it."""

    def __init__(self, page):
        self.page, self.console = page, []
        page.on("console", self._listen)
        page.on("pageerror", lambda error: self.console.append(str(error)))

    def _listen(self, message):
        # A badge that cannot be fetched without a network is no fault of the page.
        if message.type == "error" and message.location["url"].startswith("http://127.0.0.1"):
            self.console.append(message.text)

    def run(self, timeout=300):
        """Run all cells and return the errors they raised, as strings."""
        self.start()
        return self.finish(timeout)

    def start(self):
        """Start running all cells."""
        self.page.evaluate(
            "() => { window.running = true; window.jupyterapp.commands.execute('notebook:run-all-cells')"
            ".finally(() => { window.running = false; }); }"
        )

    def finish(self, timeout=300):
        """Wait for the last cell and return the errors that were raised, as strings."""
        self.page.wait_for_function("() => !window.running", timeout=timeout * 1000)
        self.wait_until_idle(timeout)
        self.settle()
        return self.page.evaluate(ERRORS)

    def outputs(self):
        """Return everything that the cells have printed, as one string."""
        return self.page.evaluate(PRINTED)

    def wait_until_idle(self, timeout):
        """Wait for the notebook's kernel, asking again and again: wait_for_function takes a promise for a yes."""
        end = time.monotonic() + timeout
        while not self.page.evaluate(READY):
            if time.monotonic() > end:
                raise TimeoutError(f"The notebook's kernel was not idle after {timeout} s.")
            self.page.wait_for_timeout(100)

    def settle(self, quiet=0.4):
        """Wait until nothing on the page has changed for ``quiet`` seconds, a minute at most."""
        self.page.evaluate(
            """milliseconds => new Promise((resolve, reject) => {
                let timer = setTimeout(done, milliseconds);
                const limit = setTimeout(reject, 60_000, new Error("After a minute the page still changes."));
                const observer = new MutationObserver(() => {
                    clearTimeout(timer); timer = setTimeout(done, milliseconds); });
                function done() { observer.disconnect(); clearTimeout(limit); resolve(); }
                observer.observe(document.querySelector(".jp-Notebook"),
                                 {subtree: true, childList: true, attributes: true, characterData: true});
            })""",
            quiet * 1000,
        )

    def slider(self, label):
        """Return the handle of the (first) slider with exactly this label."""
        exactly = self.page.locator(".widget-label").filter(has_text=re.compile(f"^{re.escape(label)}$"))
        return self.page.locator(".widget-slider").filter(has=exactly).first.get_by_role("slider")

    def slider_labels(self):
        """Return the labels of all sliders on the page."""
        return self.page.locator(".widget-slider .widget-label").all_inner_texts()

    def pictures(self, label):
        """Return what the drawings beside this slider look like, as PNG bytes."""
        output = self.slider(label).locator("xpath=ancestor::*[contains(@class, 'jp-OutputArea-output')][1]")
        shots = []
        # The box that a drawing stands in: the drawing itself may be replaced while it is looked at.
        for box in output.locator(".widget-html").filter(has=self.page.locator("svg[role=img]")).all():
            box.evaluate("element => element.scrollIntoView({block: 'center'})")  # clear of the toolbar's edge
            shots.append(box.screenshot())
        return shots

    def wait_for_pictures(self, label, true):
        """Wait until ``true(pictures)`` holds of the pictures beside a slider; a busy machine answers late."""
        end = time.monotonic() + 60
        while not true(self.pictures(label)):
            assert time.monotonic() < end, f"The pictures beside {label!r} are still the wrong ones after 60 s."
            self.settle()

    def press(self, label, key="ArrowRight", times=1):
        """Press a key on a slider and wait until the page is quiet."""
        handle = self.slider(label)
        handle.focus()
        for _ in range(times):
            handle.press(key)
        self.settle()

    def screenshot(self, path):
        """Write a picture of the whole notebook, as tall as it is, put together from what fits into one window."""
        from PIL import Image  # matplotlib brings it

        panel, width = self.page.locator(".jp-WindowedPanel-outer").first, self.page.viewport_size["width"]
        cells = ".jp-Notebook-cell"
        measure = f"""panel => {{ panel.scrollTop = 0;
            const last = [...panel.querySelectorAll("{cells}")].at(-1).getBoundingClientRect().bottom;
            return Math.ceil(last - panel.getBoundingClientRect().top) + 20; }}"""
        for _ in range(2):  # the first change of size may wrap lines anew
            height = panel.evaluate(measure)
            self.page.set_viewport_size({"width": width, "height": min(height, TALLEST) + 160})
            self.settle()
        sheet = None
        for top in range(0, height, TALLEST):
            offset = panel.evaluate("(panel, top) => { panel.scrollTop = top; return panel.scrollTop; }", top)
            self.settle()
            shot = Image.open(io.BytesIO(panel.screenshot()))
            sheet = sheet or Image.new("RGB", (shot.width, height))
            sheet.paste(shot, (0, int(offset)))
        sheet.save(path)


def _stop(process):
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main():
    """Take a picture of a notebook that has just been run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--dark", action="store_true", help="use JupyterLab's dark theme")
    arguments = parser.parse_args()
    with Lab([arguments.notebook], dark=arguments.dark) as lab, lab.open(arguments.notebook.name) as notebook:
        errors = notebook.run()
        notebook.screenshot(arguments.picture)
        print(
            "\n".join([f"cell error: {e}" for e in errors] + [f"console: {m}" for m in notebook.console]) or "no errors"
        )
    return len(errors) > 0


if __name__ == "__main__":
    sys.exit(main())
