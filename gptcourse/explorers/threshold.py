"""What a filter lets pass and what it stops by mistake, as its threshold moves, and what a base rate makes of that."""

import math

from gptcourse.drawings import svg
from gptcourse.explorers.explorer import Explorer, choice, slider

N_BINS = 40
BASE_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.25, 0.5)
LEFT, RIGHT = 70.0, svg.WIDTH - 80.0


def threshold_explorer(risky, ordinary):
    """Return sliders for the threshold of a filter and the base rate, with its recall, false positives and precision.

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

    def picture(threshold, base_rate):
        """Draw both histograms and the threshold, and say how many of the stopped texts are risky."""
        hits, false = (sum(score > threshold for score in scores) for scores in (risky, ordinary))
        recall, rate = hits / len(risky), false / len(ordinary)
        stopped = [10_000 * base_rate * recall, 10_000 * (1 - base_rate) * rate]  # risky ones, ordinary ones
        numbers = (
            f"stopped: {hits} of {len(risky)} risky texts ({recall:.0%}, the recall), and {false} of {len(ordinary)} "
            f"ordinary ones ({rate:.1%}, the false-positive rate). Where {base_rate:.1%} of the messages are risky, of "
            f"10,000 messages {sum(stopped):,.0f} are stopped, and {stopped[0]:,.0f} of these are risky"
        ) + (f": precision {stopped[0] / sum(stopped):.0%}" if sum(stopped) else "")
        x = place(threshold)
        parts = _histogram(map(place, risky), 96, svg.ORANGE, "risky")
        parts += _histogram(map(place, ordinary), 196, svg.BLUE, "ordinary")
        parts += [svg.line(x, 12, x, 204, opacity=1, width=2, dashed=True)]
        parts += [svg.text(x + 6, 22, "stopped →", size=12, bold=True)]
        return svg.paragraph(numbers) + svg.picture(parts, 212, numbers)

    controls = {
        "threshold": slider("threshold", (low + high) / 2, low, high, (high - low) / 200),
        "base_rate": choice("base rate", [(f"{rate:.1%}", rate) for rate in BASE_RATES], 0.5),
    }
    return Explorer(controls, picture)


def _histogram(places, bottom, color, name):
    """Draw how many scores stand in each of the bins, as shares of the fullest."""
    counts, width = [0] * N_BINS, (RIGHT - LEFT) / N_BINS
    for x in places:
        counts[min(int((x - LEFT) / width), N_BINS - 1)] += 1
    heights = [70 * n / max(counts) for n in counts]
    parts = [svg.rect(LEFT + i * width, bottom - up, width - 1, up, color) for i, up in enumerate(heights) if up]
    return [*parts, svg.line(LEFT, bottom, RIGHT, bottom, opacity=0.5), svg.text(4, bottom - 4, name, size=12)]
