"""What a filter lets pass and what it stops by mistake, as its threshold moves."""

import math

from gptcourse.drawings import svg
from gptcourse.explorers.explorer import Explorer, slider

N_BINS = 40
LEFT, RIGHT = 70.0, svg.WIDTH - 80.0


def threshold_explorer(risky, ordinary):
    """Return a slider for the threshold of a filter, with its hit rate and its false-positive rate.

    `risky` and `ordinary` are scores of texts that should be stopped, and of texts that should not; what scores above
    the threshold is stopped. Raises ValueError where there are no scores or one is not finite.
    """
    if not len(risky) or not len(ordinary) or not all(map(math.isfinite, [*risky, *ordinary])):
        raise ValueError("threshold_explorer needs at least one finite score of each kind, and none that is not.")
    low, high = min(*risky, *ordinary), max(*risky, *ordinary)
    room = 0.02 * (high - low) or 1.0
    low, high = low - room, high + room

    def place(score):
        """Return where on the picture a score stands."""
        return LEFT + (RIGHT - LEFT) * (score - low) / (high - low)

    def picture(threshold):
        """Draw both histograms and the threshold."""
        hits, false = (sum(score > threshold for score in scores) for scores in (risky, ordinary))
        numbers = (
            f"stopped: {hits} of {len(risky)} risky texts ({hits / len(risky):.0%}, the hit rate), and {false} of "
            f"{len(ordinary)} ordinary ones ({false / len(ordinary):.1%}, the false-positive rate)"
        )
        x = place(threshold)
        parts = _histogram(map(place, risky), 96, svg.ORANGE, "risky")
        parts += _histogram(map(place, ordinary), 196, svg.BLUE, "ordinary")
        parts += [svg.line(x, 12, x, 204, opacity=1, width=2, dashed=True)]
        parts += [svg.text(x + 6, 22, "stopped →", size=12, bold=True)]
        return svg.paragraph(numbers) + svg.picture(parts, 212, numbers)

    return Explorer({"threshold": slider("threshold", (low + high) / 2, low, high, (high - low) / 200)}, picture)


def _histogram(places, bottom, color, name):
    """Draw how many scores stand in each of the bins, as shares of the fullest."""
    counts, width = [0] * N_BINS, (RIGHT - LEFT) / N_BINS
    for x in places:
        counts[min(int((x - LEFT) / width), N_BINS - 1)] += 1
    heights = [70 * n / max(counts) for n in counts]
    parts = [svg.rect(LEFT + i * width, bottom - up, width - 1, up, color) for i, up in enumerate(heights) if up]
    return [*parts, svg.line(LEFT, bottom, RIGHT, bottom, opacity=0.5), svg.text(4, bottom - 4, name, size=12)]
