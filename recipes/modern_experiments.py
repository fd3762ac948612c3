"""Record the experiments of notebook 12: python recipes/modern_experiments.py

The block of GPT-3 becomes one of today, one change at a time. Each model reads the same text, with the same rate and
three seeds, and is measured on text that chose nothing, too. For the first and the last model other rates are tried
with a seed of their own, on a ladder that grows until the best has a worse one on either side: that says what one rate
for all costs them. The result is gptcourse/assets/modern.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import accumulate

import torch
from judging import bracketed
from plays import MODEL, Plays, within_tokens
from runner import Work, completed, fill, rounded, run
from torch.utils.flop_counter import FlopCounterMode

from gptcourse.modern import ModernConfig, ModernGPT, gpt3_like, num_parameters
from gptcourse.ngrams import NGrams
from gptcourse.training import DivergedError, TrainingConfig, evaluate, train

PLAYS = Plays(n_choose=50_000, n_compare=100_000)
TOKENS, LONGEST = 1_024_000, 6
CONFIG = TrainingConfig(1000, 16, 8e-3, warmup_steps=100)
TRIAL_SEED, SEEDS = 10, (0, 1, 2)
START = gpt3_like(MODEL.vocab_size, MODEL.n_positions, MODEL.n_embd, MODEL.n_layer, MODEL.n_head)
# Widths such that a change leaves the number of parameters that a token meets about as it is.
CHANGES = {
    "GPT-3's block": {},
    "RMSNorm": {"norm": "rmsnorm"},
    "no biases": {"bias": False},
    "rotary positions": {"position_embedding": "rotary"},
    "SwiGLU": {"hidden_act": "silu", "intermediate_size": 344},
    "grouped queries": {"num_key_value_heads": 2},
    "query/key norm": {"qk_norm": True},
    "an LM head of its own": {"tie_word_embeddings": False},
    "a window of 32 tokens": {"sliding_window": 32},
    "4 experts, 2 a token": {"num_experts": 4, "intermediate_size": 172},
    "the token after the next": {"num_nextn_predict_layers": 1},
}


def configs() -> dict[str, ModernConfig]:
    """Return the model after each change, all earlier ones included."""
    changed = accumulate(CHANGES.values(), lambda config, change: replace(config, **change), initial=START)
    return dict(zip(CHANGES, list(changed)[1:], strict=True))


def sizes(config: ModernConfig) -> dict:
    """Return what a model has and costs: parameters, those that a token meets, FLOPs and cache bytes for each token."""
    model, ids = ModernGPT(config).eval(), torch.zeros(1, config.max_position_embeddings, dtype=torch.int64)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(ids)
    counted = {"parameters": num_parameters(config), "active": num_parameters(config, active=True)}
    flops = counter.get_total_flops() // config.max_position_embeddings
    return counted | {"flops": flops, "cache_bytes": config.cache_bytes(config.max_position_embeddings)}


def trained(name: str, rate: float, seed: int) -> dict:
    """Train once; return the losses on the text that chooses and on fresh text, None for a run that diverged."""
    torch.manual_seed(seed)
    model = ModernGPT(configs()[name])
    settings = within_tokens({"tokens": TOKENS, "batch_size": CONFIG.batch_size})
    config = replace(CONFIG, learning_rate=rate, seed=seed, **settings)
    try:
        completed(train(model, PLAYS.train, config, progress=False, device="cpu"))
        losses = {part: rounded(evaluate(model, getattr(PLAYS, part))) for part in ("choose", "compare")}
    except DivergedError:
        losses = {"choose": None, "compare": None}
    return {"change": name, "rate": rate, "seed": seed} | losses


def ladder(work: Work) -> dict:
    """Train each model with the three seeds, and the first and the last one at other rates."""

    def attempt(name: str, rate: float) -> dict:
        row = work.piece(trained, name, rate, TRIAL_SEED)
        return row | {"validation_loss": row["choose"]}

    runs = work.pieces((trained, name, CONFIG.learning_rate, seed) for name in CHANGES for seed in SEEDS)
    ends = (next(iter(CHANGES)), next(reversed(CHANGES)))
    trials = [row for name in ends for row in bracketed(partial(attempt, name), CONFIG.learning_rate)]
    tables = NGrams(PLAYS.train, MODEL.vocab_size, LONGEST)
    lines = {part: rounded(list(tables.losses(getattr(PLAYS, part)))) for part in ("choose", "compare")}
    counted = {name: sizes(config) for name, config in configs().items()}
    return {"tokens": TOKENS, "lines": lines, "sizes": counted, "trials": trials, "runs": runs}


def card(data: dict[str, dict]) -> str:
    """Return the card of the recorded runs."""
    return fill("modern", **data["ladder"])


if __name__ == "__main__":
    run("modern", {"ladder": ladder}, card)
