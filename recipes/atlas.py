"""Record the atlas of short runs: python recipes/atlas.py [--processes N] [--work FOLDER]

Trains a small model on the plays, character by character, at every point of a grid: rate, batch, warm-up, schedule,
width, parametrisation, seed. All runs read the same number of tokens.
"""

from __future__ import annotations

import math

import numpy as np
from runner import STOPPED, Work, fill, run

from gptcourse import recordings
from gptcourse.corpora import HELD_OUT
from gptcourse.files import write_file
from gptcourse.recordings import Atlas, atlas_tokens, binned, configs_of, load_atlas, save_atlas, settings_of
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


def record(work: Work) -> SweepTable:
    """Make the missing runs of the grid, one seed after another, and return the table of all."""
    tokens, held_out, vocab_size = atlas_tokens()
    model, training = configs_of({name: values[0] for name, values in AXES.items()}, vocab_size, SEEDS[0])
    options = {"tokens": tokens, "validation_tokens": held_out, "derive": settings_of}
    options |= {"results": work.folder / "runs.jsonl", "processes": work.processes}
    tables = []
    for seed in SEEDS:
        tables.append(sweep(model, training, AXES, seeds=[seed], **options))
        if tables[-1].missing:
            raise SystemExit(STOPPED)
    return SweepTable(tables[0].axes, [row for table in tables for row in table.rows])


def packed(table: SweepTable, vocab_size: int) -> Atlas:
    """Return the table of a complete grid as an Atlas. Raises ValueError while a run is missing or has crashed."""
    if missing := table.missing + sum(row["outcome"] == "crashed" for row in table.rows):
        raise ValueError(f"Runs missing or crashed: {missing}. Start the recipe again, and it goes on.")
    axes = AXES | {"seed": SEEDS}
    shape = [len(values) for values in axes.values()]
    curves, held_out = np.empty((*shape, recordings.POINTS)), np.empty(shape)
    for row in table.rows:
        place = tuple(values.index(row[name]) for name, values in axes.items())
        steps, losses = row["training"].steps, [loss for _, loss in row["curve"]]
        if len(losses) != steps and row["outcome"] == "finished":
            raise ValueError(f"A curve has {len(losses)} of {steps} steps: sweep keeps fewer than the atlas needs.")
        curves[place], held_out[place] = binned(losses, steps), row["loss"]
    return Atlas(axes, curves, held_out, vocab_size)


def card(atlas: Atlas, core_seconds: float) -> str:
    """Return the card: what was run, and what came out, computed from the runs themselves."""
    spread = np.ptp(atlas.held_out[np.isfinite(atlas.held_out).all(-1)], axis=-1)
    corner = {name: values[0] for name, values in atlas.axes.items()}
    sizes = [configs_of(corner | {"width": w}, atlas.vocab_size, 0)[0].num_parameters for w in atlas.axes["width"]]
    return fill(
        "atlas",
        atlas=atlas,
        recordings=recordings,
        shown=shown,
        sizes=sizes,
        held_out=HELD_OUT[0],
        minutes=core_seconds / 60,
        diverged=int(np.isinf(atlas.held_out).sum()),
        median_spread=np.median(spread),
        most=np.quantile(spread, 0.95),
    )


def shown(name: str, value) -> str:
    """Return the value of an axis as the card shows it."""
    return f"2^{math.log2(value):.0f}" if name == "rate" else f"{value:.0%}" if name == "warmup" else str(value)


def atlas(work: Work) -> None:
    """Record what is missing, then pack all of it into the asset, with its card."""
    table = record(work)
    save_atlas(packed(table, atlas_tokens()[2]), work.asset)
    seconds = {(row["model"], row["training"]): row["seconds"] for row in table.rows}  # each run once
    write_file(work.asset / "README.md", card(load_atlas(work.asset), sum(seconds.values())))


if __name__ == "__main__":
    run("atlas", {"atlas": atlas})
