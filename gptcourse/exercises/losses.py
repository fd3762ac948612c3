"""The chart of losses that a learner carries from notebook to notebook, in a small file beside the progress."""

from __future__ import annotations

import json
import math
from pathlib import Path

from gptcourse.drawings.board import COUNTED, ladder
from gptcourse.exercises.records import progress_file, read_entries
from gptcourse.files import write_file


class LossBoard:
    """The held-out losses of a text's models so far; as the value of a cell it is drawn.

    A board begins with what earlier notebooks have kept. One that cannot be read or written begins empty, and works.
    """

    def __init__(self):
        self.losses, self.new = _read(), set()

    def add(self, name: str, nats: float, kind: str = "trained") -> None:
        """Add a model's held-out loss in nats per character, and keep it; the same name again replaces it.

        kind: "counting" for tables of counts, "trained" for what was trained. Raises ValueError for an impossible loss.
        """
        if not 0 <= nats < math.inf:
            raise ValueError(f"The loss of {name} is {nats}: a held-out loss is a finite number of 0 or more.")
        self.losses[name] = (float(nats), kind)
        self.new.add(name)
        try:
            write_file(_file(), json.dumps(read_entries(_file(), _loss) | {name: self.losses[name]}, indent=1))
        except OSError:  # the chart of this notebook is whole without it
            return

    @property
    def best_count(self) -> float:
        """The lowest loss of a table of counts on the board: the line to beat. Raises ValueError if there is none."""
        counted = [nats for nats, kind in self.losses.values() if kind == COUNTED]
        if not counted:
            raise ValueError('No table of counts is on the board yet: add one with kind="counting".')
        return min(counted)

    def _repr_mimebundle_(self, **_):
        return ladder(self.losses, self.new)._repr_mimebundle_()


def _file() -> Path:
    return progress_file().with_name("losses.json")


def _read() -> dict[str, tuple[float, str]]:
    try:
        return read_entries(_file(), _loss)
    except OSError:
        return {}


def _loss(entry) -> tuple[float, str]:
    nats, kind = entry
    if not 0 <= nats < math.inf or not isinstance(kind, str):
        raise ValueError
    return float(nats), kind
