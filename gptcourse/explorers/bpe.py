"""Byte-pair encoding at work: how a sentence falls into pieces, by the size of the vocabulary."""

import math
from html import escape

import ipywidgets as widgets

from gptcourse.explorers import svg
from gptcourse.explorers.live import live_picture

SIZES = [259, 270, 300, 350, 400, 500, 700, 1000, 1400, 2000, 2800, 4000, 8000, 16000, 32000]
LONGEST = 300  # characters of the sentence that are cut; what is typed beyond them would make the slider slow
TINTS = (svg.BLUE, svg.ORANGE, svg.GREEN, svg.PURPLE)


def bpe_explorer(tokenizer, text="What's in a name? That which we call a rose by any other name would smell as sweet."):
    """Return a field for a sentence and a slider for the vocabulary, with the pieces that the sentence falls into.

    `tokenizer` is a BPETokenizer with the largest vocabulary; the smaller ones are its first merges. A sentence is cut
    off after LONGEST characters.
    """
    sizes = [size for size in SIZES if size < tokenizer.vocab_size] + [tokenizer.vocab_size]
    by_size = {size: tokenizer.shortened(size) for size in sizes}
    controls = {
        "text": widgets.Text(text, description="sentence", layout=widgets.Layout(width="680px")),
        "vocabulary": widgets.SelectionSlider(options=[(f"{size:,}", size) for size in sizes], value=sizes[0]),
    }
    controls["vocabulary"].description, controls["text"].style.description_width = "vocabulary", "120px"

    def picture():
        """Return the drawing for where the controls stand."""
        sentence, size = controls["text"].value[:LONGEST], controls["vocabulary"].value
        if not sentence:
            return svg.paragraph("Type a sentence.")
        try:
            counts = [len(by_size[n].encode(sentence)) for n in sizes]
        except ValueError as reason:
            return svg.paragraph(reason)
        cut = by_size[size]
        pieces = [cut.decode([i]) for i in cut.encode(sentence)]
        numbers = (
            f"{size:,} tokens in the vocabulary  ·  {len(pieces)} pieces for {len(sentence)} characters  ·  "
            f"{len(sentence) / len(pieces):.2f} characters in a piece"
        )
        if size > sizes[0]:
            numbers += f"  ·  the newest token is “{svg.visible(cut.decode([size - 1]))}”"
        return svg.paragraph(numbers) + _tiles(pieces) + _curve(sizes, counts, sizes.index(size), numbers)

    return live_picture(controls, picture)


def _tiles(pieces):
    """Return the pieces side by side, each on a ground of its own colour."""
    tiles = [
        f'<span style="background:{TINTS[n % len(TINTS)]}44;border-radius:3px;padding:1px 2px;margin:1px;'
        f'display:inline-block">{escape(svg.visible(piece))}</span>'
        for n, piece in enumerate(pieces)
    ]
    return f'<div style="font-family:{svg.MONO};line-height:1.6;max-width:680px;margin:6px 0">{"".join(tiles)}</div>'


def _curve(sizes, counts, now, description):
    places = [math.log10(size) for size in sizes]
    marks = [size for size in sizes if size in (259, 500, 1000, 2000, 4000, 8000, 16000, 32000)]
    return svg.line_chart(
        {"this sentence": (places, counts)},
        x_label="size of the vocabulary",
        x_range=(places[0], places[-1] + 0.02 * (places[-1] - places[0]) + 0.01),  # room for the last label
        x_ticks={math.log10(size): f"{size:,}" for size in marks},
        y_label="pieces",
        y_range=(0, max(counts) * 1.05),
        dot=(places[now], counts[now]),
        height=210,
        description=description,
    )
