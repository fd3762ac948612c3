"""Record the experiments of notebook 05 on small GPTs: python recipes/tuning_experiments.py [EXPERIMENT …]

EXPERIMENT is one or more of recipe, batch, switches, widths, search and third (default: all, in this order). One that
is complete becomes a JSON file in gptcourse/assets/tuning, and the card there, see recipes/tuning_card.py, tells what
those files hold.

All models read Shakespeare's plays as characters. Settings are chosen on one part of the held-out plays; the recipe to
beat is compared on another, with seeds that chose nothing.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from typing import Any

import torch
import tuning_card
from runner import STOPPED, Work, completed, finite, run
from torch import Tensor

from gptcourse.corpora import shakespeare
from gptcourse.model import GPT, GPTConfig
from gptcourse.sweeps import search, sweep
from gptcourse.tokenizers import CharTokenizer
from gptcourse.training import DivergedError, History, TrainingConfig, train
from gptcourse.tuning import BatchTradeOff, gradient_noise_scale

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
GRID = {"learning_rate": (2e-3, 6e-3, 18e-3, 54e-3), "batch_size": (4, 8), "warmup": (0.0, 0.1)}

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

# Widths and rates of the muP experiment: heads stay 16 wide, the LM head is untied, and the base is the first width.
WIDTHS, HEAD_SIZE = (32, 64, 128, 256), 16
WIDTH_RATES = tuple(2.0**power for power in range(-13, -2))
WIDTH_STEPS = 150


@dataclass(frozen=True)
class Text:
    """The plays as character ids: to train on, to choose settings on, and to compare on what nothing was chosen on."""

    train: Tensor
    choose: Tensor
    compare: Tensor

    @property
    def watched(self) -> Tensor:
        """The part of `choose` that is measured often."""
        return self.choose[:N_WATCHED]


@cache
def read_text() -> Text:
    """Return the plays, with one alphabet for all parts."""
    plays = shakespeare()
    encode = CharTokenizer(plays.train + plays.validation).encode
    parts = plays.train, plays.validation[:N_CHOOSE], plays.validation[-N_COMPARE:]
    return Text(*(torch.tensor(encode(part)) for part in parts))


# ---- Runs


def within_tokens(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Turn "tokens" into steps, and "warmup" and "decay" from shares of the steps into numbers of them."""
    settings = dict(settings)
    if "tokens" in settings:
        settings["steps"] = settings.pop("tokens") // (settings["batch_size"] * SMALL.n_positions)
    for share, name in (("warmup", "warmup_steps"), ("decay", "decay_steps")):
        if share in settings:
            settings[name] = round(settings.pop(share) * settings["steps"])
    return settings


def configs(settings: Mapping[str, Any]) -> tuple[GPTConfig, TrainingConfig]:
    """Return the recipe's model and training with these settings."""
    settings = within_tokens(settings)
    changes = [{f.name: settings[f.name] for f in fields(kind) if f.name in settings} for kind in (MODEL, RECIPE)]
    return replace(MODEL, **changes[0]), replace(RECIPE, **changes[1])


def by_rate(rates: Iterable[float]) -> dict[float, dict]:
    """Return the axis of a grid over learning rates."""
    return {rate: {"learning_rate": rate} for rate in rates}


def grid(
    work: Work,
    name: str,
    model: GPTConfig,
    config: TrainingConfig,
    axes: Mapping[str, Mapping[Any, dict]],
    held_out: str,
    *,
    common: Mapping[str, Any] | None = None,
    seeds=SEEDS,
    keep: tuple[str, ...] = (),
) -> list[dict]:
    """Sweep over axes, each a dict from the name of a value to its settings, and return rows that JSON can hold.

    `held_out` names the part of the text that is measured, `common` are settings of all runs, and `keep` may name
    columns of the sweep's table besides axes, seed, outcome, loss and tokens.
    """

    def settings_of(names: dict[str, Any]) -> dict[str, Any]:
        settings = dict(common or {})
        for axis, value in names.items():
            settings |= axes[axis][value]
        return within_tokens(settings)

    table = sweep(
        model,
        config,
        {axis: list(values) for axis, values in axes.items()},
        tokens=read_text().train,
        validation_tokens=getattr(read_text(), held_out),
        seeds=seeds,
        derive=settings_of,
        results=work.folder / f"{name}.jsonl",
        processes=work.processes,
    )
    if table.missing or any(row["outcome"] == "crashed" for row in table.rows):
        raise SystemExit(f"{name}: {STOPPED}")
    return [kept_columns(row, axes, keep) for row in table.rows]


def kept_columns(row: dict, axes: Iterable[str], keep: Iterable[str]) -> dict:
    """Return the columns of a sweep's row that are recorded, as JSON can hold them."""
    loss = rounded(row["loss"]) if math.isfinite(row["loss"]) else None
    kept = {column: row[column] for column in (*axes, "seed", "outcome")} | {"loss": loss, "tokens": row["tokens"]}
    return kept | {column: rounded(row[column]) for column in keep}


def rounded(value):
    """Return numbers, and lists of them, to four decimals: the file stays small."""
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return round(value, 4) if isinstance(value, float) else value


# ---- The recipe to beat


def recipe(work: Work) -> dict:
    """Train nanoGPT's CPU recipe and the same model tuned, and compare what both took to the same held-out loss."""
    trials = []
    for tokens, changes in ((TRIAL_TOKENS, TRIALS), (LONG_TRIAL_TOKENS, LONG_TRIALS)):
        options = {"common": START | {"tokens": tokens}, "seeds": (TRIAL_SEED,)}
        trials.append(grid(work, "recipe_trials", MODEL, RECIPE, {"trial": changes}, "choose", **options))
    evaluated = {"held_out": "compare", "keep": ("evaluations",)}
    axes = {"budget": {tokens: {"tokens": tokens} for tokens in TUNED_TOKENS}}
    tuned_runs = grid(work, "recipe_tuned", MODEL, RECIPE, axes, common=TUNED, **evaluated)
    axes = {"steps": {RECIPE.steps: {"steps": RECIPE.steps}}}
    recipe_runs = grid(work, "recipe_runs", MODEL, RECIPE, axes, **evaluated)
    # Warm-up is a share of the steps, so the settings to show are those of the run that is compared.
    found = {"recipe_runs": recipe_runs, "tuned_runs": tuned_runs}
    chosen = TUNED | {"tokens": tuning_card.compared_budget(found)}
    model, config = configs(chosen)
    ratio = work.piece(step_ratios, {"first": {}, "second": chosen}, 9, 12)["second"]
    return {
        "model": asdict(MODEL),
        "recipe": asdict(RECIPE),
        "start": START,
        "tuned_model": asdict(model),
        "trials": trials[0],
        "long_trials": trials[1],
        **found,
        "tuned": asdict(config),
        "seconds_per_step": {"ratio": ratio, "rounds": 9, "steps": 12},
    }


def step_ratios(runs: dict[str, dict], rounds: int, steps: int) -> dict[str, float]:
    """Return how many times as long a step takes with each settings as with the first: in turns, the median."""
    seconds = {name: [] for name in runs}
    models = {name: GPT(configs(settings)[0]) for name, settings in runs.items()}
    for _, (name, settings) in itertools.product(range(rounds), runs.items()):
        short = replace(configs(settings)[1], steps=steps, warmup_steps=0, decay_steps=None)
        begin = time.process_time()
        completed(train(models[name], read_text().train, short, progress=False))
        seconds[name].append(time.process_time() - begin)
    first = next(iter(seconds.values()))
    ratios = {name: [a / b for a, b in zip(values, first, strict=True)] for name, values in seconds.items()}
    return {name: round(statistics.median(values), 3) for name, values in ratios.items()}


# ---- Switches


def switches(work: Work) -> dict:
    """Train with all of GPT-3's choices, and with each of them switched off alone, at two rates."""
    axes = {"rate": by_rate(SWITCH_RATES), "switch": SWITCHES}
    runs = grid(work, "switches", SMALL, CHOICES, axes, "choose", keep=("curve",))
    for row in runs:  # every second point: 50 of a run
        row["curve"] = [[step, round(loss, 3)] for step, loss in row["curve"][::2]]
    return {"model": asdict(SMALL), "choices": asdict(CHOICES), "runs": runs}


# ---- Width


def widths(work: Work) -> dict:
    """Train models of four widths at eleven rates, under the standard parametrisation and under muP.

    At the base width both are the same run, which is made once and stands in the file once, as standard.
    """
    untied = replace(SMALL, tie_word_embeddings=False)
    config = replace(CHOICES, steps=WIDTH_STEPS, warmup_steps=WIDTH_STEPS // 10)
    models = {}
    for width in WIDTHS:
        shape = models[f"{width} standard"] = {"n_embd": width, "n_head": width // HEAD_SIZE}
        if width != WIDTHS[0]:
            models[f"{width} muP"] = shape | {"mup_base_width": WIDTHS[0]}
    runs = grid(work, "widths", untied, config, {"shape": models, "rate": by_rate(WIDTH_RATES)}, "choose")
    for row in runs:
        width, parametrisation = row.pop("shape").split()
        row |= {"width": int(width), "parametrisation": parametrisation}
    return {"model": asdict(untied), "choices": asdict(config), "base_width": WIDTHS[0], "runs": runs}


# ---- Batch size


def batch(work: Work) -> dict:
    """Measure the steps to one loss at each batch size, each with its own rate, and the noise scale along the way."""
    runs = [run for size in BATCHES for run in tuned_rate(work, size)]
    best = {size: tuning_card.best_rate(runs, size) for size in BATCHES}
    batches = [size * SMALL.n_positions for size in best]
    fit = BatchTradeOff.fit(batches, [statistics.median(steps) for _, steps in best.values()])
    rate, steps = best[ANCHOR[0]]
    return {
        "model": asdict(SMALL),
        "target": TARGET,
        "anchor": ANCHOR,
        "runs": runs,
        "fit": {"min_steps": round(fit.min_steps, 1), "critical_batch": round(fit.critical_batch, 1)},
        "noise": work.piece(noise_along, ANCHOR[0], rate, steps[0]),
    }


def tuned_rate(work: Work, size: int) -> list[dict]:
    """Return the runs of one batch size: rates around the square-root rule, then the best with the other seeds."""

    def run(rate: float, limit: int, seed: int = SEEDS[0]) -> dict:
        return work.piece(steps_to_target, size, float(f"{rate:.4g}"), seed, limit)

    linear = math.sqrt(size / ANCHOR[0])  # the linear rule's rate, in units of the square-root rule's
    base, runs, factors, best = ANCHOR[1] * linear, [], [1.0, 0.5, 2.0], None
    while factors:
        limit = round(1.3 * best["steps"]) if best else MOST_STEPS
        runs.append(run(base * factors.pop(0), limit))
        best = min((run for run in runs if run["steps"]), key=lambda run: run["steps"], default=None)
        if not factors and best:
            tried = sorted(run["rate"] for run in runs)
            factors = [best["rate"] / base * 2] * (best["rate"] == tried[-1])
            factors += [best["rate"] / base / 2] * (best["rate"] == tried[0])
    if size in (min(BATCHES), max(BATCHES)) and not any(math.isclose(run["rate"], base * linear) for run in runs):
        runs.append(run(base * linear, 2 * best["steps"]))
    return runs + [run(best["rate"], 3 * best["steps"], seed) for seed in SEEDS[1:]]


def constant(size: int, rate: float, seed: int, steps: int, **changes) -> TrainingConfig:
    """Return GPT-3's choices at a constant rate: what a step does then depends on no schedule that knows its end."""
    warmup = {"lr_scheduler_type": "constant", "warmup_steps": min(20, steps - 1)}
    return replace(CHOICES, steps=steps, batch_size=size, learning_rate=rate, seed=seed, **warmup, **changes)


def steps_to_target(size: int, rate: float, seed: int, limit: int) -> dict:
    """Train until the median of three held-out losses reaches TARGET; the steps are None if `limit` do not do."""
    config = constant(size, rate, seed, limit, eval_steps=max(WATCH_TOKENS // (size * SMALL.n_positions), 1))
    torch.manual_seed(seed)
    options = {"validation_tokens": read_text().watched, "callback": has_reached, "progress": False}
    try:
        history = completed(train(GPT(SMALL), read_text().train, config, **options))
    except DivergedError as fault:
        history = fault.history
    steps = history.eval_step[-2] if has_reached(history) else None
    return {"batch_size": size, "rate": rate, "seed": seed, "steps": steps, "limit": limit}


def has_reached(history: History) -> bool:
    """Return whether the median of the last three held-out losses is at TARGET or below."""
    last = history.eval_loss[-3:]
    return len(last) == 3 and statistics.median(last) <= TARGET


def noise_along(size: int, rate: float, steps: int) -> list[dict]:
    """Measure the noise scale at NOISE_SHARES of the way to TARGET, along the run with the first seed."""
    places, found = [max(round(share * steps), 1) for share in NOISE_SHARES], []
    torch.manual_seed(SEEDS[0])
    model = GPT(SMALL)

    def look(history: History) -> None:
        if (step := len(history.step)) in places:
            scale = gradient_noise_scale(model, read_text().train, **NOISE, seed=99, progress=False)
            found.append({"step": step} | {name: round(value, 3) for name, value in asdict(scale).items()})

    config = constant(size, rate, SEEDS[0], steps)
    completed(train(model, read_text().train, config, callback=look, progress=False))
    return found


# ---- Search


def searches(work: Work) -> dict:
    """Spend the same number of tokens on a grid, on random search and on Optuna's TPE with pruning."""
    budget, config = SEARCH_TOKENS * SEARCH_RUNS, replace(CHOICES, warmup_steps=0)
    axes = {name: {value: {name: value} for value in values} for name, values in GRID.items()}
    made = grid(work, "search_grid", SMALL, config, axes, "watched", common={"tokens": SEARCH_TOKENS})
    runs = []
    for seed in SEEDS:
        order = [row for row in made if row["seed"] == seed]
        random.Random(seed).shuffle(order)  # a grid has no order of its own
        tokens = list(itertools.accumulate(row["tokens"] for row in order))
        best = list(itertools.accumulate((finite(row["loss"]) for row in order), min))
        runs.append(within_budget("grid", seed, tokens, best, budget))
        for method in ("random", "tpe"):
            found = search_until(work, replace(config, seed=seed), method, budget)
            runs.append(within_budget(method, seed, *found.best_so_far(), budget))
            runs[-1]["chosen"] = {name: rounded(found.best()[name]) for name in found.axes}
            runs[-1]["importances"] = {name: rounded(share) for name, share in found.importances().items()}
    names = {name: list(values) for name, values in GRID.items()}
    return {"model": asdict(SMALL), "run_tokens": SEARCH_TOKENS, "budget": budget, "grid": names, "runs": runs}


def search_until(work: Work, config: TrainingConfig, method: str, budget: int):
    """Search until `budget` tokens are spent: pruned runs leave tokens for further ones. Only "tpe" prunes."""
    from optuna.distributions import FloatDistribution

    space = {
        "learning_rate": FloatDistribution(1e-3, 0.1, log=True),
        "batch_size": [2, 4, 8, 16],
        "warmup": FloatDistribution(0.0, 0.2),
        "lr_scheduler_type": ["cosine", "linear", "constant"],
        "adam_beta2": [0.9, 0.95, 0.99],
        "weight_decay": FloatDistribution(0.01, 1.0, log=True),
    }
    n_trials, text = SEARCH_RUNS, read_text()
    while True:
        found = search(
            SMALL,
            config,
            space,
            tokens=text.train,
            validation_tokens=text.watched,
            n_trials=n_trials,
            storage=work.folder / f"search_{method}_{config.seed}.journal",
            sampler=method,
            prune=method == "tpe",
            derive=lambda settings: within_tokens({"tokens": SEARCH_TOKENS} | settings),
            seed=config.seed,
            processes=work.processes,
        )
        if len(found.rows) < n_trials:
            raise SystemExit(STOPPED)
        # Whole runs are a little shorter than SEARCH_TOKENS where the batch does not divide them.
        if (left := budget - found.tokens) < SEARCH_TOKENS / 10:
            return found
        n_trials += max(left // SEARCH_TOKENS, 1)


def within_budget(method: str, seed: int, tokens: list[int], best: list[float], budget: int) -> dict:
    """Return a search's tokens and lowest losses so far, without what came after the budget was spent."""
    within = [(t, round(b, 4) if b < math.inf else None) for t, b in zip(tokens, best, strict=True) if t <= budget]
    return {"method": method, "seed": seed, "tokens": [t for t, _ in within], "best": [b for _, b in within]}


# ---- The third dial


def third(work: Work) -> dict:
    """Vary the structure at equal parameters, each shape with its own rate, and the loss that is trained on."""
    axes = {"shape": SHAPES, "rate": by_rate(SHAPE_RATES)}
    shapes = grid(work, "third_shapes", SMALL, CHOICES, axes, "choose", keep=("parameters",))
    losses = grid(work, "third_losses", SMALL, CHOICES, {"objective": LOSSES}, "choose")
    return {"model": asdict(SMALL), "choices": asdict(CHOICES), "shapes": shapes, "losses": losses}


PARTS = {"recipe": recipe, "batch": batch, "switches": switches, "widths": widths, "search": searches, "third": third}


if __name__ == "__main__":
    run("tuning", PARTS, tuning_card.card)
