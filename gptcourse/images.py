"""Show an SVG as an image that follows a light or a dark page, wherever a notebook is read.

SVG that stands in a page as it is can take its colours from the page, but JupyterLab takes it out of a notebook that
has not been run yet ("untrusted"), and so does GitHub, and leaves its letters behind. An ``<img>`` stays. Its ink and
its ground are chosen together, by the ``color-scheme`` of the page, so it can be read on a page that has none.
"""

import html
import re
from base64 import b64encode

SANS = "var(--jp-ui-font-family, system-ui, -apple-system, 'Segoe UI', sans-serif)"
MONO = "var(--jp-code-font-family, ui-monospace, Menlo, Consolas, monospace)"
UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML, which an image is
SCHEME = (
    "<style>:root{color-scheme:light dark;color:light-dark(#1f1f1f,#e0e0e0);background:light-dark(#fff,#111)}</style>"
)


def escape(string: str, quote: bool = True) -> str:
    """Return a text as HTML and XML show it: no tag of it is read, and � stands for what no document may hold.

    Outside of attributes, quotes may stay as they are.
    """
    return html.escape(UNWRITABLE.sub("\ufffd", str(string)), quote)


def visible(token):
    """Return a token with its spaces, line breaks and control characters drawn, so that it can be seen whole."""
    signs = str(token).translate({ord(" "): "␣", ord("\n"): "↵", ord("\t"): "⇥", ord("\r"): "␍"})
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in signs) or "∅"


def image(svg: str, description: str) -> str:
    """Return the HTML of an image of an ``<svg …>…</svg>``; ``description`` is what a screen reader says."""
    tag, inside = svg.split(">", 1)
    if "xmlns=" not in tag:
        tag = tag.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"')
    data = b64encode(f"{tag}>{SCHEME}{inside}".encode()).decode()
    return f'<img alt="{escape(description)}" style="max-width:100%" src="data:image/svg+xml;base64,{data}">'
