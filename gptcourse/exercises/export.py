"""Join a learner's answers into one program: `write_program()` makes my_gpt.py, which trains a GPT on any text."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import time
from pathlib import Path

import torch

from gptcourse.config import GPTConfig
from gptcourse.corpora import read_text
from gptcourse.exercises import exercises, mine
from gptcourse.exercises.answers import kept_sources
from gptcourse.exercises.records import RENAMED
from gptcourse.files import expand, write_file, writing
from gptcourse.ngrams import NGrams

PARTS = ("gpt_block.whole", "training.loop", "training.held_out_loss", "gpt_block.generate")
CALLED = re.compile(r'^(\w+) = mine\("([\w.]+)"\)\n', re.MULTILINE)  # as answers.keep_answer writes it
HEAD = '''"""A GPT of my own, made in gptcourse: python my_gpt.py text.txt --minutes 3"""

import argparse
import math
import time
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcourse.config import GPTConfig
from gptcourse.corpora import read_text
from gptcourse.exercises import exercises
from gptcourse.ngrams import NGrams
'''


def write_program(path: str | Path = "my_gpt.py") -> Path:
    """Write a program of the user's right answers, with the course's solution where there is none, and return its path.

    Its classes and functions are those of the notebooks; what it imports of gptcourse stands in plain sight. Raises
    ValueError if it cannot be written, and leaves the one that is there.
    """
    sections: dict[str, tuple[str, str]] = {}
    called = [_add(name, sections) for name in PARTS]
    body = "\n\n".join(source for _, source in sections.values())
    end = f'if __name__ == "__main__":\n    run({", ".join(called)})\n'
    path = expand(path)
    with writing(path):
        write_file(path, f"{HEAD}\n\n{body}\n\n{inspect.getsource(run)}\n\n{end}")
    return path


def _add(name: str, sections: dict[str, tuple[str, str]]) -> str:
    """Add an answer, after those that it uses, to the {exercise: (name in the program, source)}; return that name."""
    name = RENAMED.get(name, name)
    if name in sections:
        return sections[name][0]
    kept = kept_sources().get(name)
    if kept is None or mine(name) is exercises()[name].reference:
        called = name.replace(".", "_")
        source = f'{called} = exercises()["{name}"].reference  # the course\'s solution\n'
    else:
        called, source = kept["calls"], CALLED.sub("", kept["source"])
        parts = [(alias, _add(part, sections)) for alias, part in CALLED.findall(kept["source"])]
        source = "".join(f"{alias} = {part}\n" for alias, part in parts if alias != part) + source
        known = {"run": ""} | {n: text for _, other in sections.values() for n, text in _defined(other).items()}
        if taken := {n for n, text in _defined(source).items() if known.get(n, text) != text}:
            raise ValueError(f"Two answers define {min(taken)}: give it another name in your answer to {name}.")
        source = f"# ---- my answer to {name}\n\n{source}"
    sections[name] = called, source
    return called


def _defined(source: str) -> dict[str, str]:
    """Return what a program defines, {name: source}: functions, classes and plain names."""
    found = {}
    for node in ast.parse(source).body:
        for target in getattr(node, "targets", [node]):
            if name := getattr(target, "name", None) or getattr(target, "id", None):
                found[name] = ast.unparse(node)
    return found


def run(model_class, train_on, held_out_loss, write):
    """Train on nine tenths of a text for some minutes, print the loss on the rest, and write."""
    parser = argparse.ArgumentParser(description="Train a GPT on a text, character by character, and let it write.")
    parser.add_argument("text", type=Path)
    parser.add_argument("--minutes", type=float, default=3.0)
    options = parser.parse_args()
    try:
        text = read_text(options.text)
    except ValueError as reason:
        parser.error(str(reason))
    number = {character: i for i, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([number[character] for character in text])
    if len(tokens) < 1_000:
        parser.error(f"{options.text} holds {len(tokens)} characters, and 1,000 are needed.")
    training, held_out = tokens.split([len(tokens) * 9 // 10, len(tokens) - len(tokens) * 9 // 10])
    best = min(NGrams(training, len(number), 4).losses(held_out))
    print(f"{len(training):,} characters to train on; the best table of up to four has loss {best:.3f}")
    torch.manual_seed(0)
    model = model_class(GPTConfig(len(number), n_positions=64, n_embd=128, n_layer=4, n_head=4))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    begin, made = time.monotonic(), 0

    def batches(most=100):
        nonlocal made
        while most and (left := 1 - (time.monotonic() - begin) / (60 * options.minutes)) > 0:
            most, made = most - 1, made + 1
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * min(1, made / 20, max(0.1, left))
            places = torch.randint(len(training) - 64, (16, 1)) + torch.arange(64)
            yield training[places], training[places + 1]

    while time.monotonic() - begin < 60 * options.minutes - 1:
        losses = train_on(model, optimizer, batches(), 1.0)
        unread = held_out_loss(model, held_out[:20_000], 64)
        print(f"{made:>6,} steps: training {losses.mean():.3f}, held out {unread:.3f}", flush=True)
    ids = write(model, held_out[None, :20], 300, 0.8, torch.Generator().manual_seed(0))
    print("".join(list(number)[i] for i in ids[0].tolist()))
