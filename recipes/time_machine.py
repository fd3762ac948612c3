"""Make the recorded run of the time machine: python recipes/time_machine.py [--work FOLDER]

Trains a small GPT on the plays, keeps what it was after some of its steps, in half precision, and writes it into
gptcourse/assets/time-machine, with what was measured at each of these steps (run.json) and a card. The held-out plays
are only measured, never trained on. The checkpoints lie in the work folder: started again, training resumes there.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from plays import read_plays
from runner import Work, completed, constants, fill, recorded, run, tables
from torch import Tensor
from torch.nn import functional as F

from gptcourse.corpora import HELD_OUT
from gptcourse.files import write_directory, write_file
from gptcourse.interpretability import even_scores, head_scores
from gptcourse.model import GPT, GPTConfig
from gptcourse.training import TrainingConfig, evaluate, train

SHAPE, SETTINGS = tables("time_machine", "SHAPE", "SETTINGS")
SHAPE, SETTINGS = GPTConfig(**SHAPE), TrainingConfig(**SETTINGS)
# Close together where the loss falls fast, at first, and where the induction head appears.
KEPT = (0, 10, 30, 100, 200, 300, 400, 500, 550, 600, 650, 700, 800, 1000, 1250, 1600)
PASSAGE, SPELL = (16, 49), (6, 17)  # characters in a passage of the plays, and in a spell: from, and below
COPIES = 3  # how often a spell is said
N_WINDOWS = 512  # pieces of text that the losses are measured on
EARLY, LATE = slice(8, 16), slice(-8, None)  # places in the context, of which the losses are compared
N_RANDOM, N_SEQUENCES = 24, 128  # random tokens that are repeated once: how much easier is the second time?
LOSSES = ("training_loss", "held_out_loss", "early_loss", "late_loss", "first_copy_loss", "second_copy_loss")
SCORES = ("previous_token", "first_token", "induction")


def with_spells(tokens: Tensor, vocab_size: int) -> Tensor:
    """Return the text cut into passages, with a spell after each: different random tokens, said COPIES times."""
    generator, parts, start = torch.Generator().manual_seed(0), [], 0
    while start < len(tokens):
        length = int(torch.randint(*PASSAGE, (), generator=generator))
        spell = torch.randperm(vocab_size, generator=generator)[: int(torch.randint(*SPELL, (), generator=generator))]
        parts += [tokens[start : start + length], *COPIES * [spell]]
        start += length
    return torch.cat(parts)


def windows(tokens: Tensor, length: int) -> Tensor:
    """Return N_WINDOWS pieces, cut out of the text at equal distances: (N_WINDOWS, length + 1)."""
    starts = torch.linspace(0, len(tokens) - length - 1, N_WINDOWS, dtype=torch.float64).long()
    return tokens[starts[:, None] + torch.arange(length + 1)]


def repeated(vocab_size: int) -> Tensor:
    """Return sequences of random tokens, each followed by itself: (N_SEQUENCES, 2 N_RANDOM)."""
    generator = torch.Generator().manual_seed(0)
    once = torch.stack([torch.randperm(vocab_size, generator=generator)[:N_RANDOM] for _ in range(N_SEQUENCES)])
    return torch.cat((once, once), dim=1)


@torch.inference_mode()
def losses(model: GPT, ids: Tensor) -> Tensor:
    """Return the mean loss at each place, in nats per token: ids (B, T + 1) -> (T,)."""
    logits = model(ids[:, :-1]).logits  # (B, T, V)
    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(0)


def measure(model: GPT, tokens: Tensor, validation: Tensor) -> dict[str, float | list]:
    """Return the losses, in nats per token, and the scores of all heads, (layers, heads), rounded for JSON."""
    length = model.config.n_positions
    held_out, copies = losses(model, windows(validation, length)), losses(model, repeated(model.config.vocab_size))
    found = {
        "training_loss": losses(model, windows(tokens, length)).mean(),
        "held_out_loss": held_out.mean(),
        "early_loss": held_out[EARLY].mean(),
        "late_loss": held_out[LATE].mean(),
        # Between them stands the first token of the second copy, which nothing announces.
        "first_copy_loss": copies[: N_RANDOM - 1].mean(),
        "second_copy_loss": copies[N_RANDOM:].mean(),
        **head_scores(model, validation[:1024])._asdict(),
    }
    return {name: (value.double() * 1e4).round().div(1e4).tolist() for name, value in found.items()}


def keep(model: GPT, path: Path) -> None:
    """Store the model in half precision, completely or not at all."""
    write_directory(path, copy.deepcopy(model).half().save)


def train_and_keep(kept: Sequence[int], tokens: Tensor, folder: Path) -> list[Path]:
    """Train, or resume training, keep the model of each step in `kept`, and return where each lies."""
    paths = {step: folder / f"step-{step:05d}" for step in kept}
    torch.manual_seed(SETTINGS.seed)
    model = GPT(SHAPE)
    if 0 in paths:
        keep(model, paths[0])

    def keep_if_wanted(history) -> None:
        if history.step[-1] in paths:
            keep(model, paths[history.step[-1]])

    options = {"checkpoint_dir": folder / "checkpoints", "resume": True, "device": "cpu"}
    completed(train(model, tokens, SETTINGS, callback=keep_if_wanted, **options))
    return list(paths.values())


def card(asset: Path, alone: dict) -> str:
    """Return the card: data, settings, losses and scores by step, limits. `alone`: `measure` without spells."""
    record, (_, tokens, validation) = recorded(asset)["run"], read_plays()
    steps, settings = record["checkpoints"], record["settings"]
    last = GPT.load(asset / f"step-{steps[-1]['step']:05d}")
    shape = last.config
    return fill(
        "time-machine",
        **constants(globals()),
        held_out=HELD_OUT,
        best_head=best_head,
        steps=steps,
        settings=settings,
        shape=shape,
        n_tokens=len(tokens),
        alone_score=max(map(max, alone["induction"])),
        alone_loss=alone["held_out_loss"],
        n_mixed=len(with_spells(tokens, shape.vocab_size)),
        n_validation=len(validation),
        loss=evaluate(last, validation),
        even=even_scores(last, shape.n_positions),
        ln_v=math.log(shape.vocab_size),
    )


def best_head(scores: list[list[float]]) -> str:
    """Return the highest score of (layers, heads), and whose it is."""
    score, layer, head = max((x, n, h) for n, row in enumerate(scores) for h, x in enumerate(row))
    return f"{score:.2f} (layer {layer}, head {head})"


def time_machine(work: Work) -> None:
    """Train with and without spells, measure every kept model as it is stored, and write the asset and its card."""
    tokenizer, tokens, validation = read_plays()
    kept = train_and_keep(KEPT, with_spells(tokens, SHAPE.vocab_size), work.folder)
    (alone,) = train_and_keep(KEPT[-1:], tokens, work.folder / "plays-alone")
    shutil.rmtree(work.asset, ignore_errors=True)
    checkpoints = []
    for step, path in zip(KEPT, kept, strict=True):
        shutil.copytree(path, work.asset / path.name)
        checkpoints.append({"step": step} | measure(GPT.load(path), tokens, validation))
    tokenizer.save(work.asset)
    found = json.dumps({"settings": asdict(SETTINGS), "checkpoints": checkpoints}, indent=1)
    write_file(work.asset / "run.json", found + "\n")
    write_file(work.asset / "README.md", card(work.asset, measure(GPT.load(alone), tokens, validation)))


if __name__ == "__main__":
    run("time-machine", {"time-machine": time_machine})
