"""Byte-pair encoding at work: how a sentence falls into tokens, by the size of the vocabulary."""

import math

from gptcourse.drawings import svg
from gptcourse.explorers.explorer import Explorer, choice, text_box

SIZES = [259, 270, 300, 350, 400, 500, 700, 1000, 1400, 2000, 2800, 4000, 8000, 16000, 32000]
LABELLED = (259, 500, 1000, 2000, 4000, 8000, 16000, 32000)
LONGEST = 300  # characters of the sentence that are read; more would make the slider slow


def bpe_explorer(tokenizer, text="What's in a name? That which we call a rose by any other name would smell as sweet."):
    """Return a field for a sentence and a slider for the vocabulary, with the tokens that the sentence falls into.

    `tokenizer` is a BPETokenizer with the largest vocabulary; the smaller ones are its first merges. Of a long sentence
    the first LONGEST characters are read, and the picture says so.
    """
    sizes = [size for size in SIZES if size < tokenizer.vocab_size] + [tokenizer.vocab_size]
    by_size = {size: tokenizer.shortened(size) for size in sizes}
    typed = text_box("sentence", text)
    typed.continuous_update = True
    controls = {"text": typed, "vocabulary": choice("vocabulary", [(f"{size:,}", size) for size in sizes])}

    def picture(text, vocabulary):
        """Draw the tokens of the sentence, and how many there are at every size."""
        sentence, cut = text[:LONGEST], by_size[vocabulary]
        if not sentence:
            raise ValueError("Type a sentence.")
        counts = [len(by_size[size].encode(sentence)) for size in sizes]
        pieces = [cut.decode([i]) for i in cut.encode(sentence)]
        numbers = (
            f"{vocabulary:,} tokens in the vocabulary  ·  {len(pieces)} pieces for {len(sentence)} characters  ·  "
            f"{len(sentence) / len(pieces):.2f} characters in a piece"
        )
        if vocabulary > sizes[0]:
            numbers += f"  ·  the newest token is “{svg.visible(cut.decode([vocabulary - 1]))}”"
        note = svg.cut_note(LONGEST, len(text), "characters")
        return svg.paragraph(numbers) + note + _tiles(pieces) + _curve(sizes, counts, vocabulary)

    return Explorer(controls, picture)


def _tiles(pieces):
    """Return the pieces side by side, each on a ground of its own colour."""
    tiles = [
        f'<span style="background:color-mix(in srgb,{svg.COLORS[n % len(svg.COLORS)]} 27%,transparent);'
        f'border-radius:3px;padding:1px 2px;margin:1px;display:inline-block">{svg.escape(svg.visible(piece))}</span>'
        for n, piece in enumerate(pieces)
    ]
    return f'<div style="font-family:{svg.MONO};line-height:1.6;max-width:680px;margin:6px 0">{"".join(tiles)}</div>'


def _curve(sizes, counts, now):
    places = [math.log10(size) for size in sizes]
    return svg.line_chart(
        {"this sentence": (places, counts)},
        labels=("size of the vocabulary", "pieces"),
        x_range=(places[0], places[-1] + 0.02 * (places[-1] - places[0]) + 0.01),  # room for the last label
        x_ticks={math.log10(size): f"{size:,}" for size in sizes if size in LABELLED},
        y_range=(0, max(counts) * 1.05),
        dot=(math.log10(now), counts[sizes.index(now)]),
        height=210,
    )
