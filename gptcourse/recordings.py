"""What was recorded for the course by the scripts in `recipes/`: tables of experiments, and the time machine's run."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from gptcourse.files import ASSETS, read_json
from gptcourse.model import GPT
from gptcourse.tokenizers import load_tokenizer


def recorded(asset: str, name: str):
    """Return what gptcourse/assets/ASSET/NAME.json holds. Raises ValueError, with one sentence, if there is no such."""
    path = ASSETS / asset / f"{name}.json"
    if not path.exists():
        names = ", ".join(sorted(f"{other.parent.name}/{other.stem}" for other in ASSETS.glob("*/*.json")))
        raise ValueError(f"Nothing was recorded as {asset}/{name}: choose one of {names}.")
    return read_json(path)


class Recording:
    """The checkpoints of a recorded run: `records` (what was measured, by step), `steps`, `tokenizer` and `settings`.

    Step 0 is the model before training. The shapes and units of a record are those of the card, README.md, in the same
    folder. Raises ValueError for a damaged folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            run = read_json(self.folder / "run.json")
            self.settings = run["settings"]
            self.records = {record["step"]: record for record in run["checkpoints"]}
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{folder} holds no whole recording ({error}): give a folder that has one.") from error
        self.steps = list(self.records)
        self.tokenizer = load_tokenizer(self.folder)

    def model(self, step: int) -> GPT:
        """Open the model as it was after `step` steps. Raises ValueError for a step that was not kept."""
        if step not in self.records:
            raise ValueError(f"Step {step} was not kept: choose one of {', '.join(map(str, self.steps))}.")
        return GPT.load(self.folder / f"step-{step:05d}")

    def series(self, name: str) -> list:
        """Return one entry of the records for every step, such as series("held_out_loss")."""
        return [record[name] for record in self.records.values()]

    def best_head(self) -> tuple[int, int]:
        """Return (layer, head) of the head with the highest induction score at the last step."""
        scores = np.array(self.series("induction")[-1])
        return divmod(int(scores.argmax()), scores.shape[1])


@functools.cache
def time_machine() -> Recording:
    """Open the time machine's run, which comes with the course."""
    return Recording(ASSETS / "time-machine")
