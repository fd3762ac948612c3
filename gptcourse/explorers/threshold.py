"""What a filter lets pass and what it stops by mistake, as its threshold moves."""

import math

import ipywidgets as widgets

from gptcourse.explorers import svg
from gptcourse.explorers.live import live_picture

N_BINS = 40


def threshold_explorer(risky, ordinary):
    """Return a slider for the threshold of a filter, with its hit rate and its false-positive rate.

    `risky` and `ordinary` are scores of texts that should be stopped, and of texts that should not; what scores above
    the threshold is stopped.
    """
    low, high = min(*risky, *ordinary), max(*risky, *ordinary)
    room = 0.02 * (high - low) or 1.0
    low, high = low - room, high + room
    step = (high - low) / 200
    slider = widgets.FloatSlider((low + high) / 2, min=low, max=high, step=step, description="threshold")

    def picture():
        """Return the drawing for where the controls stand."""
        threshold = slider.value
        hits, false = (sum(score > threshold for score in scores) for scores in (risky, ordinary))
        numbers = (
            f"stopped: {hits} of {len(risky)} risky texts ({hits / len(risky):.0%}, the hit rate), and {false} of "
            f"{len(ordinary)} ordinary ones ({false / len(ordinary):.1%}, the false-positive rate)"
        )
        place = _placed(low, high)
        x = place(threshold)
        parts = [
            *_bars(risky, low, high, place, 96, svg.ORANGE, "risky"),
            *_bars(ordinary, low, high, place, 196, svg.BLUE, "ordinary"),
            svg.line(x, 12, x, 204, opacity=1, width=2, dashed=True),
            svg.text(x + 6, 22, "stopped →", size=12, bold=True),
        ]
        return svg.paragraph(numbers) + svg.picture(parts, 212, numbers)

    return live_picture({"threshold": slider}, picture)


def _placed(low, high):
    """Return where on the picture a score stands."""
    left, right = 70.0, svg.WIDTH - 80.0
    return lambda score: left + (right - left) * (score - low) / (high - low)


def _bars(scores, low, high, place, bottom, color, name):
    """Draw how many texts have a score in each of the bins, as shares of the fullest."""
    counts = [0] * N_BINS
    for score in scores:
        counts[min(math.floor((score - low) / (high - low) * N_BINS), N_BINS - 1)] += 1
    width = (place(high) - place(low)) / N_BINS
    tallest = max(counts)
    drawn = [
        svg.rect(place(low) + i * width, bottom - 70 * n / tallest, width - 1, 70 * n / tallest, color)
        for i, n in enumerate(counts)
        if n
    ]
    return [*drawn, svg.line(70, bottom, svg.WIDTH - 80, bottom, opacity=0.5), svg.text(4, bottom - 4, name, size=12)]
