"""Record the experiments of notebook 05 on your GPT: python recipes/tuning_experiments.py [EXPERIMENT …]

EXPERIMENT is one or more of PARTS below (default: all, in this order). One that is complete becomes a JSON file in
gptcourse/assets/tuning, and the card there tells what those files hold.

Every run reads 2,048,000 characters of the plays, where nothing else is said: enough for good runs to pass the table of
4-grams. Settings are chosen on one part of the held-out plays; what was chosen is compared with nanoGPT's settings on
another part, with seeds that chose nothing.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, replace
from itertools import chain

import torch
from plays import MODEL, NANOGPT_CHOICES, Plays, by_rate, within_tokens
from runner import STOPPED, Work, completed, fill, losses_by, rounded, rounded_rows, run, tables

from gptcourse.data import batch_size_at
from gptcourse.model import GPT
from gptcourse.ngrams import NGrams
from gptcourse.sweeps import search as search_settings
from gptcourse.training import TrainingConfig, evaluate, train
from gptcourse.tuning import for_batch_size, gradient_noise_scale

RATES, BATCHES, SWITCHES, SPACE = tables("tuning", "RATES", "BATCHES", "SWITCHES", "SPACE")
PLAYS = Plays(n_choose=50_000, n_compare=100_000)
SEEDS, FRESH_SEEDS = (0, 1, 2), (10, 11, 12)
TOKENS, SHORT_TOKENS = 2_048_000, 512_000
LONGEST = 6  # characters in the longest piece that is counted

CONFIG = TrainingConfig(2000, 16, 8e-3, warmup_steps=100)  # GPT-3's other choices: the defaults of TrainingConfig
COMMON = {"batch_size": 16, "tokens": TOKENS, "warmup": 0.05}
GOOD_RATE = 1.6e-2
SMALLER, LARGER = 4, 64  # windows a step
RULE_RATES = (8e-3, 1.6e-2, 3.2e-2)  # what the square-root rule makes of the good rates, for LARGER
STANDARD_DEVIATIONS = (0.01, 0.02, 0.05, 0.1)

# Widths of the muP experiment: heads stay 32 wide, the LM head is untied, and the base is the first width.
WIDTHS, HEAD_SIZE, WIDTH_TOKENS = (32, 128), 32, 1_024_000
BASE_RATES, BASE_DEVIATIONS = (4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2), (0.02, 0.06, 0.18, 0.54)
WIDE_RATES = {"standard": (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), "muP": (8e-3, 1.6e-2, 3.2e-2)}

# The rules for decay and depth: small runs, and others of four times their tokens, or layers.
DECAYS = (0.1, 0.4, 1.6)
DEPTH_RATES = {2: (4e-3, 8e-3, 1.6e-2, 3.2e-2), 8: (2e-3, 4e-3, 8e-3, 1.6e-2)}

NOISE = {"small": 8, "big": 256, "n_batches": 8}
NOISE_STEPS = (250, 500, 1000, 2000)
COOL_DOWN = 200  # steps in which a constant rate falls to a tenth at the end

# A batch that grows to RAMP_TO windows, 32 in the mean, for as many steps as make TOKENS.
RAMP_TO, RAMP_STEPS, RAMP_RATES = 63, 1000, (4e-3, 8e-3, 1.6e-2, 3.2e-2)

SEARCH_TRIALS = 16


def runs(work: Work, axes: dict, **options) -> list[dict]:
    """Return the rows of a grid over your GPT, within COMMON where no steps are given; grids share one file of runs."""
    common = options.pop("common", {})
    common = common if "steps" in common else COMMON | common
    return PLAYS.grid(work, "runs", options.pop("model", MODEL), CONFIG, axes, common=common, seeds=SEEDS, **options)


def usual_warmup(tokens: int, batch_size: int) -> dict:
    """Return the settings of runs on so many tokens that warm up over as many steps as the usual run."""
    steps = tokens // (batch_size * MODEL.n_positions)
    return {"batch_size": batch_size, "tokens": tokens, "warmup": CONFIG.warmup_steps / steps}


def lines(work: Work) -> dict:
    """Count the n-grams of the plays, and predict both held-out parts with them."""
    counts = NGrams(PLAYS.train, MODEL.vocab_size, LONGEST)
    return {name: rounded(list(counts.losses(getattr(PLAYS, name)))) for name in ("choose", "compare")}


def rates(work: Work) -> dict:
    """Train with each batch size at several rates; with one of them on a quarter of the text, too.

    A run of fewer steps has a shorter warm-up, as its share of the steps stays. So the two kinds of such runs are also
    made with a warm-up of as many steps as the usual run has, at a rate that is good there.
    """
    made = []
    for size, tried in RATES.items():
        rows = runs(work, {"rate": by_rate(tried)}, common={"batch_size": int(size)}, keep=("curve",))
        made += [{"batch_size": int(size)} | row for row in rows]
    for row in made:  # every second point
        row["curve"] = [[step, round(loss, 3)] for step, loss in row["curve"][::2]]
    usual, longer = CONFIG.batch_size, []
    short = runs(work, {"rate": by_rate(RATES[str(usual)])}, common={"tokens": SHORT_TOKENS})
    for size, tokens, tried in ((LARGER, TOKENS, RULE_RATES), (usual, SHORT_TOKENS, [GOOD_RATE])):
        common = usual_warmup(tokens, size)
        longer += [{"batch_size": size} | row for row in runs(work, {"rate": by_rate(tried)}, common=common)]
    return {"model": asdict(MODEL), "config": asdict(CONFIG), "runs": made, "short": short, "longer_warmup": longer}


def batches(work: Work) -> dict:
    """Train for two lengths with batch sizes around the best one, each at rates around its own best one.

    The warm-up takes a twentieth of the steps, and at least as many as in the usual run; but half of them at most.
    """
    made = []
    for tokens, sizes in BATCHES.items():
        for size, tried in sizes.items():
            common = usual_warmup(int(tokens), int(size))
            common["warmup"] = min(max(common["warmup"], COMMON["warmup"]), 0.5)
            made += [{"batch_size": int(size)} | row for row in runs(work, {"rate": by_rate(tried)}, common=common)]
    return {"runs": made}


def ramp(work: Work) -> dict:
    """Train with a batch that grows all along the run, and with its mean as a batch that stays: as many steps."""
    grows = {"batch_size": RAMP_TO, "batch_ramp_steps": RAMP_STEPS - 1}
    config = replace(CONFIG, steps=RAMP_STEPS, **grows)
    mean = round(statistics.mean(batch_size_at(step, config) for step in range(RAMP_STEPS)))
    axes = {"batch": {"grows": grows, "stays": {"batch_size": mean}}, "rate": by_rate(RAMP_RATES)}
    common = {"steps": RAMP_STEPS, "warmup_steps": CONFIG.warmup_steps}
    return {"largest": RAMP_TO, "mean": mean, "steps": RAMP_STEPS, "runs": runs(work, axes, common=common)}


def switches(work: Work) -> dict:
    """Train with all of GPT-3's choices, and with each of them switched off alone."""
    return {"rate": CONFIG.learning_rate, "runs": runs(work, {"switch": SWITCHES})}


def initialisation(work: Work) -> dict:
    """Train from first weights of several standard deviations."""
    return {"runs": runs(work, {"deviation": {d: {"initializer_range": d} for d in STANDARD_DEVIATIONS}})}


def widths(work: Work) -> dict:
    """Tune the rate and the first weights of a narrow model, and carry them to a wider one, with muP and without."""
    common = {"tokens": WIDTH_TOKENS}
    deviations = {d: {"initializer_range": d} for d in BASE_DEVIATIONS}
    shapes = [replace(MODEL, n_embd=w, n_head=w // HEAD_SIZE, tie_word_embeddings=False) for w in WIDTHS]
    base = runs(work, {"deviation": deviations, "rate": by_rate(BASE_RATES)}, model=shapes[0], common=common)
    best, _ = lowest(base, "deviation", "rate")
    wide = []
    for name, tried in WIDE_RATES.items():
        model = replace(shapes[1], mup_base_width=WIDTHS[0] if name == "muP" else None)
        kept = {d: deviations[d] for d in ((BASE_DEVIATIONS[0], best) if name == "muP" else BASE_DEVIATIONS[:3])}
        rows = runs(work, {"deviation": kept, "rate": by_rate(tried)}, model=model, common=common)
        wide += [{"parametrisation": name} | row for row in rows]
    return {"widths": WIDTHS, "tokens": WIDTH_TOKENS, "base": base, "wide": wide}


def lowest(rows: list[dict], *columns: str):
    """Return the value of a column, or the tuple of several, with the lowest median loss over its seeds."""
    medians = {key: statistics.median(losses) for key, losses in losses_by(rows, *columns).items()}
    return min(medians, key=medians.get)


def answer(work: Work) -> dict:
    """Compare nanoGPT's settings with those that the experiments have chosen, with fresh seeds and on fresh text."""
    usual = [row for row in rates(work)["runs"] if row["batch_size"] == CONFIG.batch_size]
    chosen = {
        "batch_size": CONFIG.batch_size,
        "learning_rate": lowest(usual, "rate"),
        "initializer_range": lowest(initialisation(work)["runs"], "deviation"),
    }
    rate_alone = NANOGPT_CHOICES | {"learning_rate": chosen["learning_rate"]}
    settings = {"nanoGPT's": NANOGPT_CHOICES, "nanoGPT's, tuned rate": rate_alone, "by experiment": chosen}
    tasks = [(fresh_run, name, settings[name], seed) for name in settings for seed in FRESH_SEEDS]
    return {"settings": settings, "fresh": work.pieces(tasks)}


def noise(work: Work) -> dict:
    """Measure the noise scale along runs at a constant rate and along runs whose rate falls."""
    tasks = [(noise_along, kind, seed) for kind in ("constant", "cosine") for seed in SEEDS]
    return {"rate": CONFIG.learning_rate, "runs": list(chain.from_iterable(work.pieces(tasks)))}


def cool_down(work: Work) -> dict:
    """Measure the noise scale before and after the rate falls to a tenth, at the end of runs at a constant rate."""
    tasks = [(noise_along, "warmup_stable_decay", seed, COOL_DOWN) for seed in SEEDS]
    return {"rate": CONFIG.learning_rate, "runs": list(chain.from_iterable(work.pieces(tasks)))}


def noise_along(kind: str, seed: int, decay_steps: int | None = None) -> list[dict]:
    """Return the noise scale at NOISE_STEPS of one run, and where its decay begins."""
    steps = (*NOISE_STEPS, CONFIG.steps - (decay_steps or 0))
    torch.manual_seed(seed)
    model, found = GPT(MODEL), []

    def look(history) -> None:
        if history.step[-1] in steps:
            scale = gradient_noise_scale(model, PLAYS.train, **NOISE, seed=99, progress=False)
            row = {"schedule": kind, "seed": seed, "step": history.step[-1], "loss": evaluate(model, PLAYS.choose)}
            found.append({name: rounded(value) for name, value in (row | asdict(scale)).items()})

    config = replace(CONFIG, lr_scheduler_type=kind, seed=seed, decay_steps=decay_steps)
    completed(train(model, PLAYS.train, config, callback=look, progress=False, device="cpu"))
    return found


def half_life(work: Work) -> dict:
    """Train with a small batch, with β₂ as it is and with its half-life in tokens as that of the usual batch."""
    carried = for_batch_size(CONFIG, SMALLER)
    axes = {"beta2": {beta2: {"adam_beta2": beta2} for beta2 in (CONFIG.adam_beta2, carried.adam_beta2)}}
    rate = carried.learning_rate
    common = {"batch_size": carried.batch_size, "learning_rate": rate}
    return {"batch_size": carried.batch_size, "rate": rate, "runs": runs(work, axes, common=common)}


def rules(work: Work) -> dict:
    """Check what is said of decay and depth: the best setting of small runs, and of runs four times as large.

    All runs have as many steps of warm-up as the usual one, whatever their length.
    """
    short, long = (usual_warmup(tokens, CONFIG.batch_size) for tokens in (SHORT_TOKENS, TOKENS))
    decays = {"decay": {value: {"weight_decay": value} for value in DECAYS}}
    decay = [row for common in (short, long) for row in runs(work, decays, common=common)]
    depth = [
        {"n_layer": n} | row
        for n, tried in DEPTH_RATES.items()
        for row in runs(work, {"rate": by_rate(tried)}, model=replace(MODEL, n_layer=n), common=short)
    ]
    return {"decay": decay, "depth": depth}


def search(work: Work) -> dict:
    """Draw settings at random and train with each; then with the best again, with fresh seeds and on fresh text."""
    from optuna.distributions import FloatDistribution

    space = {name: v if isinstance(v, list) else FloatDistribution(**v) for name, v in SPACE.items()}
    found = search_settings(
        MODEL,
        CONFIG,
        space,
        tokens=PLAYS.train,
        validation_tokens=PLAYS.choose,
        n_trials=SEARCH_TRIALS,
        storage=work.folder / "search.journal",
        sampler="random",
        prune=False,
        derive=lambda settings: within_tokens(COMMON | settings),
        processes=work.processes,
    )
    if len(found.rows) < SEARCH_TRIALS:
        raise SystemExit(STOPPED)
    chosen = {name: found.best()[name] for name in space}
    trials = [{name: row[name] for name in (*space, "loss")} | {"seed": CONFIG.seed} for row in found.rows]
    return {
        "trials": rounded_rows(trials),
        "chosen": rounded_rows([chosen])[0],
        "importances": rounded_rows([found.importances()])[0],
        "fresh": work.pieces([(fresh_run, "by search", chosen, seed) for seed in FRESH_SEEDS]),
    }


def fresh_run(name: str, settings: dict, seed: int) -> dict:
    """Train with a seed that chose nothing, and return the loss on the text that has chosen and on fresh text."""
    settings = within_tokens(COMMON | settings)
    model_fields = {name: settings.pop(name) for name in ("initializer_range",) if name in settings}
    torch.manual_seed(seed)
    model = GPT(replace(MODEL, **model_fields))
    completed(train(model, PLAYS.train, replace(CONFIG, seed=seed, **settings), progress=False, device="cpu"))
    losses = {part: round(evaluate(model, getattr(PLAYS, part)), 4) for part in ("choose", "compare")}
    return {"settings": name, "seed": seed} | losses


PARTS = {
    "lines": lines,
    "rates": rates,
    "batches": batches,
    "ramp": ramp,
    "switches": switches,
    "initialisation": initialisation,
    "answer": answer,
    "noise": noise,
    "cool_down": cool_down,
    "widths": widths,
    "half_life": half_life,
    "rules": rules,
    "search": search,
}


def card(data: dict[str, dict]) -> str:
    """Return the card of the recorded experiments."""
    return fill("tuning", tuple(PARTS), **data)


if __name__ == "__main__":
    run("tuning", PARTS, card)
