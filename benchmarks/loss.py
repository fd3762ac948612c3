"""How long until the loss of the best count table is reached: by nanoGPT itself, and by ours as in notebook 10.

nanoGPT's recipe for a CPU (12 windows of 64 characters, 4 layers, 128 wide) reads the plays and is measured on their
last 40,000 held-out characters, as in notebook 10. It is made as long as the first row of that notebook's speedrun says
that it must be; ours has the settings of the last row that was kept, and its length. What both end at is shown, so that
everyone sees whether it is as low as the table's. Seeds take turns. Only training is timed.
"""

import statistics
import time
from dataclasses import fields

import torch
from tqdm import tqdm

from benchmarks.peers import nano_loss, nanogpt, plain_loop
from benchmarks.timing import medians, ratio, spread
from gptcourse.corpora import shakespeare
from gptcourse.model import GPT, GPTConfig
from gptcourse.ngrams import NGrams
from gptcourse.recordings import recorded
from gptcourse.tokenizers import CharTokenizer
from gptcourse.training import TrainingConfig, evaluate, train

SEEDS, HELD_OUT, LONGEST = (0, 1, 2), 40_000, 6
# Of nanoGPT's model, and what the speedrun's settings leave out.
SHAPE = {"n_positions": 64, "n_embd": 128, "n_layer": 4, "n_head": 4, "adam_beta2": 0.99}


def of_notebook_10():
    """Return the settings of the speedrun's first row and of the last that was kept, steps included."""
    kept = [row for row in recorded("speedrun", "speedrun")["rows"] if row["kept"]]
    return [with_steps(row["settings"], statistics.median(row["tokens"]["compare"])) for row in (kept[0], kept[-1])]


def with_steps(settings, tokens):
    """Return settings for both configs, of a run that reads so many tokens."""
    settings = SHAPE | settings
    steps = round(tokens / settings["batch_size"] / settings["n_positions"])
    return settings | {"steps": steps, "warmup_steps": round(settings.pop("warmup") * steps)}


def configs(settings, vocab_size, seed):
    """Return the model's config and the run's."""
    both = settings | {"vocab_size": vocab_size, "seed": seed}
    return (cls(**{f.name: both[f.name] for f in fields(cls) if f.name in both}) for cls in (GPTConfig, TrainingConfig))


def run_ours(settings, tokens, held_out, vocab_size, seed):
    """Return the seconds of a run of ours, and its loss."""
    shape, config = configs(settings, vocab_size, seed)
    torch.manual_seed(seed)
    model, start = GPT(shape), time.perf_counter()
    train(model, tokens, config, device="cpu", progress=False)
    return time.perf_counter() - start, evaluate(model, held_out)


def run_nano(path, settings, tokens, held_out, vocab_size, seed):
    """Return the seconds of a run of nanoGPT's model in its loop, and its loss."""
    shape, config = configs(settings, vocab_size, seed)
    torch.manual_seed(seed)
    model, start = nanogpt(path, shape)[1], time.perf_counter()
    plain_loop(nano_loss, model, tokens, shape.n_positions, config)
    return time.perf_counter() - start, nano_held_out(model, held_out, shape.n_positions)


@torch.no_grad()
def nano_held_out(model, tokens, length):
    """Return the mean loss over all tokens but the first, in windows of `length`, as `evaluate` cuts them."""
    parts = zip(tokens[:-1].split(length), tokens[1:].split(length), strict=True)
    return sum(nano_loss(model, x[None], y[None]).item() * len(y) for x, y in parts) / (len(tokens) - 1)


def row(name, settings, runs):
    """Return the row of the runs of one kind, pairs of seconds and loss."""
    seconds, losses = zip(*runs, strict=True)
    read = settings["steps"] * settings["batch_size"] * settings["n_positions"]
    return {"": name, "characters read": read, "seconds": spread(seconds), "loss": spread(losses)}


def compare(nano_path, text, seeds, recipe, mine):
    """Return the rows: counting, nanoGPT's recipe and ours; `text` is (tokens, held-out tokens, vocab_size)."""
    runs = []
    for seed in tqdm(seeds, desc="seeds", leave=False):
        runs.append((run_nano(nano_path, recipe, *text, seed), run_ours(mine, *text, seed)))
    nano, ours = zip(*runs, strict=True)
    name, _ = nanogpt(nano_path, next(configs(recipe, text[2], 0)))
    rows = [counting(*text), row(name, recipe, nano), row("gptcourse", mine, ours)]
    rows[2]["times as fast"] = ratio(*([seconds for seconds, _ in some] for some in (nano, ours)))
    return rows


def counting(tokens, held_out, vocab_size):
    """Return the row of the best table of n-grams, all of them counted."""
    start = time.perf_counter()
    losses = NGrams(tokens, vocab_size, LONGEST).losses(held_out)
    seconds, best = time.perf_counter() - start, min(losses)
    name = f"counting, {losses.index(best) + 1}-grams"
    return {"": name, "characters read": len(tokens), "seconds": round(seconds, 2), "loss": round(best, 4)}


def measure(options):
    """Return how it was measured, and the table."""
    plays = shakespeare()
    tokenizer = CharTokenizer(plays.train + plays.validation)
    tokens, held_out = (torch.tensor(tokenizer.encode(text)) for text in (plays.train, plays.validation[-HELD_OUT:]))
    (recipe, mine), seeds = of_notebook_10(), SEEDS[: options.rounds]
    if options.quick:
        tiny = {"steps": 3, "warmup_steps": 1}
        recipe, mine, seeds, held_out = recipe | tiny, mine | tiny, SEEDS[:1], held_out[:1000]
    rows = compare(options.nanogpt, (tokens, held_out, tokenizer.vocab_size), seeds, recipe, mine)
    return f"{medians(len(seeds), 'seeds')} Loss in nats per character.", {"": rows}
