"""Record the atlas of short runs: python recipes/atlas.py [--processes N] [--work DIRECTORY]

Trains a small model on the plays, character by character, at every point of a grid: rate, batch, warm-up, schedule,
width, parametrisation, seed. All runs read the same number of tokens. Stopped (Ctrl-C) and started again it goes on.
When every run is there it packs them into gptcourse/assets/atlas, with a card that is computed from them.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gptcourse.corpora import HELD_OUT
from gptcourse.recordings import (
    BASE_WIDTH,
    CONTEXT,
    HEAD_SIZE,
    HELD_OUT_TOKENS,
    POINTS,
    TOKENS,
    Atlas,
    Point,
    atlas_tokens,
    binned,
    configs_of,
    load_atlas,
    save_atlas,
    settings_of,
)
from gptcourse.sweeps import SweepTable, sweep

# In the order of making: a grid that is stopped early is complete for the first seed, or the small batches of it.
AXES = {
    "batch": (4, 8, 16, 32),
    "width": (16, 32, 64),
    "parametrisation": ("standard", "muP"),
    "schedule": ("cosine", "linear", "constant"),
    "warmup": (0.0, 0.1),
    "rate": tuple(2.0**power for power in range(-11, -2)),
}
SEEDS = (0, 1)
WORK = Path(__file__).parent / "work" / "atlas"
ASSET = Path(__file__).parents[1] / "gptcourse" / "assets" / "atlas"
CARD = """# atlas

{n_runs:,} short training runs, recorded with this package by `python recipes/atlas.py`, which goes on where it was
stopped. Read them with `gptcourse.explorers.atlas.load_atlas()`; look at them with `atlas_explorer()`.

* **What was run.** Every combination of the values below. The model has two blocks, heads of {head} numbers, a context
  of {context} and an untied read-out: from {smallest:,} to {largest:,} parameters. It reads Shakespeare's plays
  character by character; each run reads {tokens:,} tokens, so a larger batch makes fewer steps. AdamW and all that is
  not listed are the defaults of `TrainingConfig`; cosine and linear fall to a tenth of the rate; warm-up is a share
  of the steps, rounded up. muP has the base width {base}: there both parametrisations are the same run, made once
  and shown for both.
* **What is kept.** The training loss as {points} means over equally many tokens, in half precision (a step that reads
  more tokens fills several), and the held-out loss at the end over {predicted:,} predictions: the beginning of
  {held_out}, which no run trains on. A run that diverged would have NaN in its curve and an infinite held-out loss;
  of these runs {diverged} did.
* **How long it took.** The runs together took {minutes:.0f} minutes of one thread, on a busy machine with two cores.
* **Spread between the seeds.** The held-out losses of the seeds of a point differ by {median:.3f} in the median, and by
  less than {most:.3f} in 95 % of the points; the most where the rate is too high. Between two points, look for
  differences that are larger.
* **Limits.** Runs this short end long before a model is good: they show how the settings act at the start, for tiny
  models, on one text. The best settings of a longer run are others (see notebook 03).

{axes}

The best point of each width and parametrisation, by the mean held-out loss over the seeds:

| width | parametrisation | rate | batch | schedule | warm-up | held-out loss |
| ---: | --- | ---: | ---: | --- | ---: | ---: |
{best}

The best rate at each batch size, with the schedule and warm-up that go best with it:

| width | parametrisation | {batches} |
| ---: | --- {lines}
{rates}
"""


def record(axes: dict, seeds: tuple, work: Path, processes: int | None = None, progress: bool = True) -> SweepTable:
    """Make the runs of a grid that are not in `work` yet, one seed after another, and return the table of all."""
    tokens, held_out, vocab_size = atlas_tokens()
    model, training = configs_of({name: values[0] for name, values in axes.items()}, vocab_size, seeds[0])
    options = {"tokens": tokens, "validation_tokens": held_out, "derive": settings_of}
    options |= {"results": work / "runs.jsonl", "processes": processes, "progress": progress}
    rows, missing = [], 0
    for seed in seeds:
        table = sweep(model, training, axes, seeds=[seed], **options)
        rows, missing = rows + table.rows, missing + table.missing
        if table.missing:  # Ctrl-C: the other seeds wait for the next start
            break
    return SweepTable(table.axes, rows, missing)


def packed(table: SweepTable, axes: dict, seeds: tuple, vocab_size: int) -> Atlas:
    """Return the table of a complete grid as an Atlas. Raises ValueError while a run is missing or has crashed."""
    missing = table.missing + sum(row["outcome"] == "crashed" for row in table.rows)
    if missing:
        raise ValueError(f"Runs missing or crashed: {missing}. Start the recipe again, and it goes on.")
    axes = axes | {"seed": seeds}
    shape = [len(values) for values in axes.values()]
    curves, held_out = np.empty((*shape, POINTS)), np.empty(shape)
    for row in table.rows:
        place = tuple(values.index(row[name]) for name, values in axes.items())
        steps, losses = row["training"].steps, [loss for _, loss in row["curve"]]
        if len(losses) != steps and row["outcome"] == "finished":
            raise ValueError(f"A curve has {len(losses)} of {steps} steps: sweep keeps fewer than the atlas needs.")
        curves[place], held_out[place] = binned(losses, steps), row["loss"]
    return Atlas(axes, curves, held_out, vocab_size)


# ---- The card


def card(atlas: Atlas, core_seconds: float) -> str:
    """Return README.md: what was run, and what came out, computed from the runs themselves."""
    spread = np.ptp(atlas.held_out[np.isfinite(atlas.held_out).all(-1)], axis=-1)
    smallest, largest = (configs_of(point, atlas.vocab_size, 0)[0].num_parameters for point in _corners(atlas))
    return CARD.format(
        n_runs=atlas.n_runs,
        axes="\n".join(
            f"* {name}: {', '.join(_shown(name, one) for one in values)}" for name, values in atlas.axes.items()
        ),
        base=BASE_WIDTH,
        head=HEAD_SIZE,
        smallest=smallest,
        largest=largest,
        context=CONTEXT,
        tokens=TOKENS,
        predicted=HELD_OUT_TOKENS - 1,
        held_out=HELD_OUT[0],
        points=POINTS,
        minutes=core_seconds / 60,
        diverged=int(np.isinf(atlas.held_out).sum()),
        median=np.median(spread),
        most=np.quantile(spread, 0.95),
        best="\n".join(_best_rows(atlas)),
        rates="\n".join(_rate_rows(atlas)),
        batches=" | ".join(f"batch {batch}" for batch in atlas.axes["batch"]),
        lines="| ---: " * len(atlas.axes["batch"]) + "|",
    )


def _corners(atlas: Atlas) -> tuple[Point, Point]:
    corner = {name: values[0] for name, values in atlas.axes.items()}
    return corner, corner | {"width": atlas.axes["width"][-1]}


def _shown(name: str, value) -> str:
    return f"2^{math.log2(value):.0f}" if name == "rate" else f"{value:.0%}" if name == "warmup" else str(value)


def _best_rows(atlas: Atlas) -> Iterator[str]:
    for width, kind in itertools.product(atlas.axes["width"], atlas.axes["parametrisation"]):
        point, loss = atlas.best(width=width, parametrisation=kind)
        others = " | ".join(_shown(name, point[name]) for name in ("rate", "batch", "schedule", "warmup"))
        yield f"| {width} | {kind} | {others} | {loss:.3f} |"


def _rate_rows(atlas: Atlas) -> Iterator[str]:
    for width, kind in itertools.product(atlas.axes["width"], atlas.axes["parametrisation"]):
        fixed = {"width": width, "parametrisation": kind}
        rates = [_shown("rate", atlas.best(**fixed, batch=batch)[0]["rate"]) for batch in atlas.axes["batch"]]
        yield f"| {width} | {kind} | {' | '.join(rates)} |"


def write(atlas: Atlas, core_seconds: float, asset: Path) -> None:
    """Write atlas.npz and its card."""
    save_atlas(atlas, asset)
    (asset / "README.md").write_text(card(load_atlas(asset), core_seconds), encoding="utf-8")


def main() -> None:
    """Record what is missing, then pack all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, help="runs at once, one thread each (default: the available cores)")
    parser.add_argument("--work", type=Path, default=WORK, help="where the results are kept as they come")
    options = parser.parse_args()
    table = record(AXES, SEEDS, options.work, options.processes)
    if table.missing:
        print("Stopped. Start the recipe again, and it goes on.")
        return
    atlas = packed(table, AXES, SEEDS, atlas_tokens()[2])
    seconds = {(row["model"], row["training"]): row["seconds"] for row in table.rows}  # each run once
    write(atlas, sum(seconds.values()), ASSET)
    print(f"{atlas.n_runs:,} runs are in {ASSET}")


if __name__ == "__main__":
    main()
