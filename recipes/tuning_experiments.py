"""Record the experiments of notebook 03 on small GPTs: python recipes/tuning_experiments.py [EXPERIMENT …]

EXPERIMENT is one or more of recipe, batch, switches, widths, search and third (default: all, in this order);
`--processes 1` leaves the other cores alone. Every run is kept in recipes/work/tuning (which git ignores) when it ends:
started again, the recipe goes on where it stopped. An experiment that is complete becomes a JSON file in
gptcourse/assets/tuning, and the card there, made by recipes/tuning_card.py, tells what those files hold.

All models read Shakespeare's plays as characters. Settings are chosen on one part of the held-out plays; the recipe to
beat is compared on another, with seeds that chose nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keeping
import torch
import tuning_card
from torch import Tensor

from gptcourse.corpora import shakespeare
from gptcourse.model import GPT, GPTConfig
from gptcourse.sweeps import label, search, sweep
from gptcourse.tokenizers import CharTokenizer
from gptcourse.training import DivergedError, TrainingConfig, train
from gptcourse.tuning import BatchTradeOff, gradient_noise_scale

ASSET = Path(__file__).parents[1] / "gptcourse" / "assets" / "tuning"
WORK = Path(__file__).parent / "work" / "tuning"
VOCAB_SIZE = 76  # the different characters of the plays
N_CHOOSE, N_COMPARE = 20_000, 40_000  # held-out characters: the beginning of Macbeth, the end of Twelfth Night
SEEDS = (0, 1, 2)

# nanoGPT's CPU recipe. Its model has no biases, ours has; the rest is the same.
MODEL = GPTConfig(vocab_size=VOCAB_SIZE, n_positions=64, n_embd=128, n_layer=4, n_head=4)
RECIPE = TrainingConfig(
    steps=2000, batch_size=12, learning_rate=1e-3, warmup_steps=100, adam_beta2=0.99, eval_steps=250
)
# Trials on equally many tokens, a sixteenth of the recipe's, then some again on a quarter; one seed that the comparison
# does not use.
TRIAL_TOKENS, LONG_TRIAL_TOKENS, TRIAL_SEED = 98_304, 384_000, 10
START = {
    "batch_size": 8,
    "learning_rate": 4e-3,
    "lr_scheduler_type": "linear",
    "min_lr_ratio": 0.0,
    "warmup": 0.1,
    "adam_beta2": 0.99,
}
TRIALS = {
    "the recipe, shortened": {"batch_size": 12, "learning_rate": 1e-3, "warmup": 0.05, "lr_scheduler_type": "cosine"}
    | {"min_lr_ratio": 0.1},
    "start": {},
    "rate 2e-3": {"learning_rate": 2e-3},
    "rate 8e-3": {"learning_rate": 8e-3},
    "batch 4, rate 2.8e-3": {"batch_size": 4, "learning_rate": 2.8e-3},
    "batch 16, rate 5.7e-3": {"batch_size": 16, "learning_rate": 5.7e-3},
    "cosine to a tenth": {"lr_scheduler_type": "cosine", "min_lr_ratio": 0.1},
    "WSD, decay over the last half": {"lr_scheduler_type": "warmup_stable_decay", "decay": 0.5},
    "β₂ = 0.95": {"adam_beta2": 0.95},
    "first weights 0.05": {"initializer_range": 0.05},
    "first weights 0.09": {"initializer_range": 0.09},
}
LONG_TRIALS = {
    "batch 8, rate 4e-3": {},
    "batch 4, rate 2.8e-3": {"batch_size": 4, "learning_rate": 2.8e-3},
    "batch 8, rate 4e-3, first weights 0.05": {"initializer_range": 0.05},
}
TUNED = START | {"initializer_range": 0.05}
TUNED_TOKENS = (576_000, 640_000)

# The small model of the other experiments, and GPT-3's choices for it: cosine to a tenth, β₂ = 0.95, clipping, decay.
SMALL = GPTConfig(vocab_size=VOCAB_SIZE, n_positions=64, n_embd=64, n_layer=2, n_head=4)
CHOICES = TrainingConfig(steps=250, batch_size=8, learning_rate=4e-3, warmup_steps=25)
SWITCHES = {
    "all of GPT-3's choices": {},
    "no warm-up": {"warmup_steps": 0},
    "constant rate": {"lr_scheduler_type": "constant"},
    "β₂ = 0.999": {"adam_beta2": 0.999},
    "no clipping": {"max_grad_norm": math.inf},
    "no weight decay": {"weight_decay": 0.0},
}
SWITCH_RATES = (4e-3, 5e-2)

BATCHES = (2, 4, 8, 16, 32, 64)
TARGET = 2.45  # nats per character, on the first N_WATCHED held-out characters
N_WATCHED, WATCH_TOKENS = 8_000, 8_192  # how much is measured, and after how many tokens of training again
ANCHOR = (16, 4e-3)  # the batch and rate from which both rules of scaling start
NOISE_SHARES = (0.25, 0.5, 1.0)  # of the way to TARGET
NOISE = {"small": 8, "big": 256, "n_batches": 8}
MOST_STEPS = 6_000

SEARCH_TOKENS, SEARCH_RUNS = 49_152, 16  # of a whole run; whole runs that the budget pays for
GRID = {
    "learning_rate": (2e-3, 6e-3, 18e-3, 54e-3),
    "batch_size": (4, 8),
    "warmup": (0.0, 0.1),
}

SHAPES = {
    "1 layer, 90 wide, 5 heads": {"n_layer": 1, "n_embd": 90, "n_head": 5},
    "2 layers, 64 wide, 4 heads": {"n_layer": 2, "n_embd": 64, "n_head": 4},
    "4 layers, 46 wide, 2 heads": {"n_layer": 4, "n_embd": 46, "n_head": 2},
    "8 layers, 32 wide, 2 heads": {"n_layer": 8, "n_embd": 32, "n_head": 2},
    "2 layers, 64 wide, 1 head": {"n_layer": 2, "n_embd": 64, "n_head": 1},
    "2 layers, 64 wide, 16 heads": {"n_layer": 2, "n_embd": 64, "n_head": 16},
}
SHAPE_RATES = (4e-3, 8e-3)
LOSSES = {
    "cross-entropy": {},
    "label smoothing 0.05": {"label_smoothing": 0.05},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "z-loss 1e-4": {"z_loss": 1e-4},
    "z-loss 1e-3": {"z_loss": 1e-3},
}

# Widths and rates of the muP experiment: heads stay 16 wide, the read-out is untied, and the base is the first width.
WIDTHS, HEAD_SIZE = (32, 64, 128, 256), 16
WIDTH_RATES = tuple(2.0**power for power in range(-13, -2))
WIDTH_STEPS = 150


@dataclass(frozen=True)
class Text:
    """The plays as character ids: to train on, to choose settings on, and to compare on what nothing was chosen on."""

    train: Tensor
    choose: Tensor
    compare: Tensor


def read_text() -> Text:
    """Return the plays, with one alphabet for all parts."""
    plays = shakespeare()
    encode = CharTokenizer(plays.train + plays.validation).encode
    parts = plays.train, plays.validation[:N_CHOOSE], plays.validation[-N_COMPARE:]
    return Text(*(torch.tensor(encode(part)) for part in parts))


# ---- Runs


def within_tokens(settings: dict[str, Any]) -> dict[str, Any]:
    """Turn "tokens" into steps, and "warmup" and "decay" from shares of the steps into numbers of them."""
    settings = dict(settings)
    steps = settings.pop("tokens") // (settings["batch_size"] * SMALL.n_positions)
    for share, name in (("warmup", "warmup_steps"), ("decay", "decay_steps")):
        if share in settings:
            settings[name] = round(settings.pop(share) * steps)
    return settings | {"steps": steps}


def record(
    text: Text,
    name: str,
    model: GPTConfig,
    config: TrainingConfig,
    axes: Mapping[str, Mapping[Any, dict]],
    *,
    held_out: Tensor,
    seeds=SEEDS,
    derive: Callable | None = None,
    keep: tuple[str, ...] = (),
    processes: int | None = None,
) -> list[dict]:
    """Sweep over axes, each a dict from the name of a value to its settings, and return rows that JSON can hold.

    `keep` may name columns of the sweep's table besides axes, seed, outcome, loss and tokens.
    """
    table = sweep(
        model,
        config,
        {axis: list(values.values()) for axis, values in axes.items()},
        tokens=text.train,
        validation_tokens=held_out,
        seeds=seeds,
        derive=derive,
        results=WORK / f"{name}.jsonl",
        processes=processes,
    )
    if table.missing or any(row["outcome"] == "crashed" for row in table.rows):
        raise SystemExit(f"{name}: not all runs were made. Start the recipe again, and it goes on.")
    names = {axis: {label(value): name for name, value in values.items()} for axis, values in axes.items()}
    rows = []
    for row in table.rows:
        loss = round(row["loss"], 4) if math.isfinite(row["loss"]) else None
        kept = {axis: names[axis][row[axis]] for axis in axes} | {"seed": row["seed"], "outcome": row["outcome"]}
        rows.append(kept | {"loss": loss, "tokens": row["tokens"]} | {column: rounded(row[column]) for column in keep})
    return rows


def rounded(value):
    """Return numbers, and lists of them, to four decimals: the file stays small."""
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return round(value, 4) if isinstance(value, float) else value


def described(config) -> dict:
    """Return the settings of a config for JSON, which knows no infinity."""
    return {name: value if value != math.inf else "inf" for name, value in asdict(config).items()}


# ---- The recipe to beat


def recipe(text: Text, processes: int | None) -> dict:
    """Train nanoGPT's CPU recipe and the same model tuned, and compare what both took to the same held-out loss."""
    options = {"processes": processes, "derive": within_tokens}
    trials = []
    for tokens, changes in ((TRIAL_TOKENS, TRIALS), (LONG_TRIAL_TOKENS, LONG_TRIALS)):
        axes = {"trial": {name: {"tokens": tokens} | START | change for name, change in changes.items()}}
        options |= {"held_out": text.choose, "seeds": (TRIAL_SEED,)}
        trials.append(record(text, "recipe_trials", MODEL, RECIPE, axes, **options))
    options |= {"held_out": text.compare, "seeds": SEEDS, "keep": ("evaluations",)}
    axes = {"budget": {tokens: {"tokens": tokens} | TUNED for tokens in TUNED_TOKENS}}
    tuned_runs = record(text, "recipe_tuned", MODEL, RECIPE, axes, **options)
    axes = {"steps": {RECIPE.steps: {"steps": RECIPE.steps}}}
    recipe_runs = record(text, "recipe_runs", MODEL, RECIPE, axes, **options | {"derive": None})
    result = {
        "model": asdict(MODEL),
        "recipe": described(RECIPE),
        "start": START,
        "tuned_model": asdict(tuned_model()),
        "trials": trials[0],
        "long_trials": trials[1],
        "recipe_runs": recipe_runs,
        "tuned_runs": tuned_runs,
    }
    # Warm-up is a share of the steps, so the settings to show are those of the run that is compared.
    chosen = tuned_config(tuning_card.compared_budget(result))
    seconds = kept("recipe_seconds", lambda: seconds_per_step(text, RECIPE, chosen))
    return result | {"tuned": described(chosen), "seconds_per_step": seconds}


def tuned_config(tokens: int) -> TrainingConfig:
    """Return the tuned settings for so many tokens."""
    settings = within_tokens(TUNED | {"tokens": tokens})
    return replace(RECIPE, **{name: value for name, value in settings.items() if name in asdict(RECIPE)})


def tuned_model() -> GPTConfig:
    """Return the recipe's model, with the first weights of the tuned run."""
    return replace(MODEL, initializer_range=TUNED.get("initializer_range", MODEL.initializer_range))


def seconds_per_step(text: Text, first: TrainingConfig, second: TrainingConfig, rounds: int = 9, steps: int = 12):
    """Return how many times as long a step of `second` takes as one of `first`: measured in turns, the median."""
    ratios = step_ratios(text, {"first": (MODEL, first), "second": (MODEL, second)}, rounds, steps)
    return {"ratio": ratios["second"], "rounds": rounds, "steps": steps}


def step_ratios(
    text: Text, runs: Mapping[str, tuple[GPTConfig, TrainingConfig]], rounds: int, steps: int
) -> dict[str, float]:
    """Return how many times as long a step of each run takes as one of the first: measured in turns, the median."""
    models, seconds = {name: GPT(shape) for name, (shape, _) in runs.items()}, {name: [] for name in runs}
    for _ in range(rounds):
        for name, (_, config) in runs.items():
            short = replace(config, steps=steps, warmup_steps=0, decay_steps=None)
            begin = time.process_time()
            train(models[name], text.train, short, progress=False)
            seconds[name].append(time.process_time() - begin)
    first = next(iter(seconds.values()))
    return {
        name: round(statistics.median(a / b for a, b in zip(values, first, strict=True)), 3)
        for name, values in seconds.items()
    }


# ---- Switches


def switches(text: Text, processes: int | None) -> dict:
    """Train with all of GPT-3's choices, and with each of them switched off alone, at two rates."""
    axes = {"rate": {rate: {"learning_rate": rate} for rate in SWITCH_RATES}, "switch": SWITCHES}
    rows = record(text, "switches", SMALL, CHOICES, axes, held_out=text.choose, keep=("curve",), processes=processes)
    for row in rows:  # every second point: 50 of a run
        row["curve"] = [[step, round(loss, 3)] for step, loss in row["curve"][::2]]
    return {"model": asdict(SMALL), "choices": described(CHOICES), "runs": rows}


# ---- Width


def widths(text: Text, processes: int | None) -> dict:
    """Train models of four widths at eleven rates, under the standard parametrisation and under muP.

    At the base width both are the same run, which is made once and stands in the file once, as standard.
    """
    untied = replace(SMALL, tie_word_embeddings=False)
    config = replace(CHOICES, steps=WIDTH_STEPS, warmup_steps=WIDTH_STEPS // 10)
    models = {}
    for width in WIDTHS:
        shape = {"n_embd": width, "n_head": width // HEAD_SIZE}
        models[f"{width} standard"] = shape
        if width != WIDTHS[0]:
            models[f"{width} muP"] = shape | {"mup_base_width": WIDTHS[0]}
    axes = {"shape": models, "rate": {rate: {"learning_rate": rate} for rate in WIDTH_RATES}}
    rows = record(text, "widths", untied, config, axes, held_out=text.choose, processes=processes)
    for row in rows:
        width, parametrisation = row.pop("shape").split()
        row |= {"width": int(width), "parametrisation": parametrisation}
    return {"model": asdict(untied), "choices": described(config), "base_width": WIDTHS[0], "runs": rows}


# ---- Batch size


def batch(text: Text, processes: int | None) -> dict:
    """Measure the steps to one loss at each batch size, each with its own rate, and the noise scale along the way."""
    runs = [run for size in BATCHES for run in tuned_rate(text, size)]
    best = {size: tuning_card.best_rate({"runs": runs}, size) for size in BATCHES}
    batches = [size * SMALL.n_positions for size in best]
    fit = BatchTradeOff.fit(batches, [statistics.median(steps) for _, steps in best.values()])
    noise = kept("batch_noise", lambda: noise_along(text, ANCHOR[0], *best[ANCHOR[0]]))
    return {
        "model": asdict(SMALL),
        "target": TARGET,
        "anchor": ANCHOR,
        "runs": runs,
        "fit": {"min_steps": round(fit.min_steps, 1), "critical_batch": round(fit.critical_batch, 1)},
        "noise": noise,
    }


def tuned_rate(text: Text, size: int) -> list[dict]:
    """Return the runs of one batch size: rates around the square-root rule, then the best with the other seeds."""
    base = ANCHOR[1] * math.sqrt(size / ANCHOR[0])
    linear = math.sqrt(size / ANCHOR[0])  # the linear rule's rate, in units of the square-root rule's
    runs, factors = [], [1.0, 0.5, 2.0]
    while factors:
        factor = factors.pop(0)
        reached = [run["steps"] for run in runs if run["steps"]]
        limit = round(1.3 * min(reached)) if reached else MOST_STEPS
        runs.append(steps_to_target(text, size, base * factor, SEEDS[0], limit))
        if not factors and reached:
            best = min((run for run in runs if run["steps"]), key=lambda run: run["steps"])["rate"]
            tried = sorted(run["rate"] for run in runs)
            factors = [best / base * 2] * (best == tried[-1]) + [best / base / 2] * (best == tried[0])
    best = min((run for run in runs if run["steps"]), key=lambda run: run["steps"])
    if size in (min(BATCHES), max(BATCHES)) and not any(math.isclose(r["rate"], base * linear) for r in runs):
        runs.append(steps_to_target(text, size, base * linear, SEEDS[0], 2 * best["steps"]))
    return runs + [steps_to_target(text, size, best["rate"], seed, 3 * best["steps"]) for seed in SEEDS[1:]]


def steps_to_target(text: Text, size: int, rate: float, seed: int, limit: int) -> dict:
    """Train at a constant rate until the median of three held-out losses reaches TARGET; None: not in `limit` steps.

    A constant rate, so that the number of steps does not depend on a schedule that knows its end.
    """
    rate = float(f"{rate:.4g}")
    every = max(WATCH_TOKENS // (size * SMALL.n_positions), 1)
    config = replace(CHOICES, steps=limit, batch_size=size, learning_rate=rate, seed=seed)
    config = replace(config, lr_scheduler_type="constant", warmup_steps=min(20, limit - 1), eval_steps=every)

    def run() -> dict:
        torch.manual_seed(seed)
        watched = text.choose[:N_WATCHED]
        model, options = GPT(SMALL), {"callback": has_reached, "progress": False}
        try:
            history = train(model, text.train, config, validation_tokens=watched, **options)
        except DivergedError as fault:
            history = fault.history
        if history.stopped == "interrupted":
            raise SystemExit("The run was stopped. Start the recipe again, and it goes on.")
        steps = history.eval_step[-2] if has_reached(history) else None
        return {"batch_size": size, "rate": rate, "seed": seed, "steps": steps, "limit": limit}

    return kept(f"batch_{size}_{rate}_{seed}", run)


def has_reached(history) -> bool:
    """Say whether the median of the last three held-out losses is at TARGET or below."""
    last = history.eval_loss[-3:]
    return len(last) == 3 and statistics.median(last) <= TARGET


def noise_along(text: Text, size: int, rate: float, steps: list[int]) -> list[dict]:
    """Measure the noise scale at NOISE_SHARES of the way to TARGET, along the run with the first seed."""
    config = replace(CHOICES, steps=steps[0], batch_size=size, learning_rate=rate, seed=SEEDS[0])
    config = replace(config, lr_scheduler_type="constant", warmup_steps=min(20, steps[0] - 1))
    places, found, model = [max(round(share * steps[0]), 1) for share in NOISE_SHARES], [], GPT

    def look(history) -> None:
        if (step := len(history.step)) in places:
            scale = gradient_noise_scale(model, text.train, **NOISE, seed=99, progress=False)
            found.append({"step": step} | {name: round(value, 3) for name, value in asdict(scale).items()})

    torch.manual_seed(SEEDS[0])
    model = GPT(SMALL)
    train(model, text.train, config, callback=look, progress=False)
    return found


def kept(name: str, make: Callable[[], Any]) -> Any:
    """Return what `make` returned the first time, from its file in the work directory."""
    return keeping.kept(WORK / "single" / f"{name}.json", make)


# ---- Search


def searches(text: Text, processes: int | None) -> dict:
    """Spend the same number of tokens on a grid, on random search and on Optuna's TPE with pruning."""
    budget, watched = SEARCH_TOKENS * SEARCH_RUNS, text.choose[:N_WATCHED]
    axes = {name: {value: {name: value} for value in values} for name, values in GRID.items()}
    config, derive = replace(CHOICES, warmup_steps=0), search_steps
    grid = record(text, "search_grid", SMALL, config, axes, held_out=watched, derive=derive, processes=processes)
    runs = []
    for seed in SEEDS:
        order = [row for row in grid if row["seed"] == seed]
        random.Random(seed).shuffle(order)  # a grid has no order of its own
        tokens = list(itertools.accumulate(row["tokens"] for row in order))
        best = list(itertools.accumulate((row["loss"] or math.inf for row in order), min))
        runs.append(within_budget("grid", seed, tokens, best, budget))
        for method, prune in (("random", False), ("tpe", True)):
            found = search_until(text, watched, config, method, prune, seed, budget, processes)
            runs.append(within_budget(method, seed, *found.best_so_far(), budget))
            runs[-1]["chosen"] = {name: rounded(found.best()[name]) for name in found.axes}
            runs[-1]["importances"] = {name: rounded(share) for name, share in found.importances().items()}
    names = {name: list(values) for name, values in GRID.items()}
    return {"model": asdict(SMALL), "run_tokens": SEARCH_TOKENS, "budget": budget, "grid": names, "runs": runs}


def search_steps(settings: dict[str, Any]) -> dict[str, Any]:
    """Give every run of a search SEARCH_TOKENS."""
    return within_tokens({"tokens": SEARCH_TOKENS} | settings)


def search_until(text: Text, watched: Tensor, config, method: str, prune: bool, seed: int, budget: int, processes):
    """Search until `budget` tokens are spent: pruned runs leave tokens for further ones."""
    from optuna.distributions import FloatDistribution

    space = {
        "learning_rate": FloatDistribution(1e-3, 0.1, log=True),
        "batch_size": [2, 4, 8, 16],
        "warmup": FloatDistribution(0.0, 0.2),
        "lr_scheduler_type": ["cosine", "linear", "constant"],
        "adam_beta2": [0.9, 0.95, 0.99],
        "weight_decay": FloatDistribution(0.01, 1.0, log=True),
    }
    n_trials, options = SEARCH_RUNS, {"derive": search_steps, "prune": prune, "sampler": method}
    while True:
        found = search(
            SMALL,
            replace(config, seed=seed),
            space,
            tokens=text.train,
            validation_tokens=watched,
            n_trials=n_trials,
            storage=WORK / f"search_{method}_{seed}.journal",
            seed=seed,
            processes=processes,
            **options,
        )
        if len(found.rows) < n_trials:
            raise SystemExit("The search was stopped. Start the recipe again, and it goes on.")
        # Whole runs are a little shorter than SEARCH_TOKENS where the batch does not divide them.
        if (left := budget - found.tokens) < SEARCH_TOKENS / 10:
            return found
        n_trials += max(left // SEARCH_TOKENS, 1)


def within_budget(method: str, seed: int, tokens: list[int], best: list[float], budget: int) -> dict:
    """Return a search's tokens and lowest losses so far, without what came after the budget was spent."""
    within = [(t, round(b, 4) if b < math.inf else None) for t, b in zip(tokens, best, strict=True) if t <= budget]
    return {"method": method, "seed": seed, "tokens": [t for t, _ in within], "best": [b for _, b in within]}


# ---- The third dial


def third(text: Text, processes: int | None) -> dict:
    """Vary the structure at equal parameters, each shape with its own rate, and the loss that is trained on."""
    options = {"held_out": text.choose, "processes": processes}
    axes = {"shape": SHAPES, "rate": {rate: {"learning_rate": rate} for rate in SHAPE_RATES}}
    shapes = record(text, "third_shapes", SMALL, CHOICES, axes, keep=("parameters",), **options)
    losses = record(text, "third_losses", SMALL, CHOICES, {"objective": LOSSES}, **options)
    return {"model": asdict(SMALL), "choices": described(CHOICES), "shapes": shapes, "losses": losses}


EXPERIMENTS = {
    "recipe": recipe,
    "batch": batch,
    "switches": switches,
    "widths": widths,
    "search": searches,
    "third": third,
}


def main() -> None:
    """Make the runs of notebook 03 that are not there yet, and write the asset and its card."""
    record_all("Record the experiments of notebook 03.", EXPERIMENTS, read_text, ASSET, tuning_card.card)


def record_all(
    description: str,
    experiments: Mapping[str, Callable[[Text, int | None], dict]],
    read: Callable[[], Text],
    asset: Path,
    card: Callable[[Path], str],
) -> None:
    """Make the experiments that the command line names, or all; write each as a file of the asset, and the card."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=f"out of {', '.join(experiments)}")
    parser.add_argument("--processes", type=int, help="how many runs at once (default: one for each core)")
    wanted = parser.parse_args()
    if unknown := set(wanted.experiments) - set(experiments):
        parser.error(f"there is no experiment {min(unknown)!r}: choose out of {', '.join(experiments)}")
    torch.set_num_threads(1)
    text = read()
    for name in wanted.experiments or experiments:
        began = time.perf_counter()
        result = experiments[name](text, wanted.processes)
        asset.mkdir(parents=True, exist_ok=True)
        (asset / f"{name}.json").write_text(json.dumps(result, ensure_ascii=False) + "\n", encoding="utf-8")
        (asset / "README.md").write_text(card(asset), encoding="utf-8")
        print(f"{name}: {time.perf_counter() - began:.0f} s, written to {asset}", flush=True)


if __name__ == "__main__":
    main()
