"""What all panels share: a still picture stays in the notebook, and clicks are answered while a cell runs."""

import re
import threading
from html import unescape

import ipywidgets as widgets
from IPython.display import display

from gptcourse.drawings.svg import BLUE, GROUND, ORANGE
from gptcourse.images import image

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
QUIET = 1.0  # seconds without a change, after which the still picture is renewed
SVG = re.compile(r'<svg [^>]*aria-label="([^"]*)".*?</svg>', re.DOTALL)
# Beside a living panel its still picture is hidden; a panel without its kernel, which says "model not found" or shows
# broken links, is hidden beside its still picture.
LIVING = ":has(.widget-box):not(:has(.jupyter-widgets-disconnected))"
DEAD = f":has(.jupyter-widgets):not({LIVING})"
CHILD, STILL = ".jp-OutputArea-child", ".gptcourse-still"
CHOICE, DRAWN = "gptcourse-choice", "gptcourse-drawn"
# Radio buttons as one bar of buttons; and no letters below 9 pixels where a drawing of full width must shrink.
LOOKS = f"""
.{CHOICE} {{display: flex; flex-flow: row nowrap; height: auto}}
.{CHOICE} > .widget-label {{flex: none; margin-right: 8px; text-align: right}}
.{CHOICE} .widget-radio-box {{display: flex; flex-flow: row wrap; margin: 0 !important}}
.{CHOICE} .widget-radio-box label {{position: relative; width: auto; height: 26px; margin: 0 -1px -1px 0;
  padding: 0 10px; line-height: 26px; border: 1px solid rgba(128,128,128,0.6); cursor: pointer}}
.{CHOICE} label input {{position: absolute; inset: 0; width: 100%; margin: 0; opacity: 0; cursor: pointer}}
.{CHOICE} label:has(:checked) {{background: {BLUE}; color: {GROUND}}}
.{CHOICE} label:has(:focus-visible) {{outline: 2px solid {ORANGE}; z-index: 1}}
.{DRAWN} {{container-type: inline-size}}
@container (max-width: 600px) {{.{DRAWN} svg:is([width^="5"], [width^="6"]) text {{font-size: 13.2px}}}}
"""
STYLE = (
    f"<style>{CHILD}{LIVING} + {CHILD}:has({STILL}){{display:none}}"
    f"{CHILD}{DEAD}:has(+ {CHILD} {STILL}){{display:none}}{LOOKS}</style>"
)
EMPTY = f'<div class="{STILL[1:]}">{STYLE}</div>'
WAKE = (
    '<div style="font-size:12px;opacity:0.75">As it stood when the notebook was saved. To use it, run this cell; '
    "in a new session first those above it (<i>Run ▸ Run All Above Selected Cell</i>).</div>"
)


class Panel(widgets.VBox):
    """A box of widgets that leaves a still picture of itself in the notebook.

    JupyterLab shows it when the notebook is opened without its kernel, and GitHub when it is read there. ``.pictures``
    are the HTML widgets that it is made of.
    """

    def __init__(self, children, pictures):
        super().__init__(children)
        self.pictures, self._still, self._timer = list(pictures), None, None

    def _ipython_display_(self, **_):
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        display({WIDGET_VIEW: view, "text/plain": f"{type(self).__name__}()"}, raw=True)
        self._still = display(self._bundle(), raw=True, display_id=True)
        for picture in self.pictures:
            picture.observe(self._keep_later, "value")

    def keep(self):
        """Renew the still picture, if the panel has been shown."""
        if self._still is not None:
            self._still.update(self._bundle(), raw=True)

    def _keep_later(self, _change):
        """Renew it when nothing has changed for a moment: not for each step of a slider that is drawn along."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(QUIET, self.keep)
        self._timer.daemon = True
        self._timer.start()

    def settings(self):
        """Return the HTML of what the still picture cannot show otherwise: where the controls stand."""
        return ""

    def _bundle(self):
        html = "".join(picture.value for picture in self.pictures)
        still = SVG.sub(lambda found: image(found[0], unescape(found[1])), html)
        shown = EMPTY.replace("</div>", f"{self.settings()}{still}{WAKE}</div>") if html else EMPTY
        return {"text/html": shown, "text/plain": ""}


def answer_while_busy(*controls):
    """Let the page's messages to these widgets be answered while a cell runs, where the kernel has subshells.

    ipykernel 7.4 sends a message to the thread that the widget last spoke from: the one that runs the cells. With that
    forgotten, the message goes where the page addressed it: to the thread that is free.
    """
    for control in controls:
        vars(control.comm).pop("_reply_subshell_id", None)
