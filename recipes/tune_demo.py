"""Show that `tune` beats the defaults on data that no choice was made on: python recipes/tune_demo.py [CASE …]

CASE is one or more of gpt, classifier and lora (default: all): your GPT on the plays; a classifier of a customer's
message, from the counts of its tokens; LoRA on the real model. Each keeps its runs in recipes/work/tune-CASE.jsonl, so
that it can be killed and called again, and writes its decision record into the folder recipes/work/tune-CASE.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from plays import MODEL as SHAPE
from plays import NANOGPT, NANOGPT_CHOICES, read_plays
from torch import Tensor, nn
from torch.nn import functional as F

from gptcourse.decision import DecisionRecord
from gptcourse.finetuning import add_lora, encode_dialogues
from gptcourse.model import GPT
from gptcourse.ngrams import NGrams
from gptcourse.pretrained import load_pretrained
from gptcourse.support import support
from gptcourse.tuning import Budget, tune

WORK = Path(__file__).parent / "work"
PART = 30_000  # held-out characters to choose on, and as many others to confirm on


def gpt(**options) -> DecisionRecord:
    """Tune your GPT against the settings of nanoGPT's CPU recipe, and print the lines that counting reaches."""
    _, train, held_out = read_plays()
    data = {"train": train, "choose": held_out[:PART], "confirm": held_out[-PART:]}
    lines = NGrams(train.numpy(), SHAPE.vocab_size, 6).losses(data["confirm"].numpy())
    print("n-gram lines of the part to confirm on:", ", ".join(f"{n}: {line:.3f}" for n, line in enumerate(lines, 1)))
    defaults = NANOGPT_CHOICES | {"warmup_ratio": NANOGPT.warmup_steps / NANOGPT.steps}
    budget = Budget(tokens=24 * 1_024_000, run=1_024_000)
    return tune(lambda seed: GPT(SHAPE), data, budget, defaults=defaults, **options)


class Head(nn.Module):
    """A classifier of feature vectors (B, C): one hidden layer."""

    def __init__(self, n_features: int, n_classes: int, hidden: int = 32, dropout: float = 0.0):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_features, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, n_classes)
        )

    def forward(self, inputs: Tensor, targets: Tensor) -> SimpleNamespace:
        """Return logits (B, classes) and the mean cross-entropy."""
        logits = self.layers(inputs)
        return SimpleNamespace(logits=logits, loss=F.cross_entropy(logits, targets))


def counts(tokenizer, texts: list[str]) -> Tensor:
    """Return how often each token stands in each text (n, V)."""
    ids = [torch.tensor(tokenizer.encode(text)) for text in texts]
    return torch.stack([torch.bincount(row, minlength=tokenizer.vocab_size) for row in ids]).float()


def classifier(**options) -> DecisionRecord:
    """Tune a head that says the intent of a customer's message, of phrasings it has not seen."""
    sizes = {"train": 1500, "choose": 500, "confirm": 500}
    splits = dict(zip(sizes, ("train", "validation", "test"), strict=True))
    dialogues = {part: support(n, split=splits[part]) for part, n in sizes.items()}
    intents = sorted({dialogue.intent for dialogue in dialogues["train"]})
    _, tokenizer = load_pretrained("shakespeare-5m")
    data = {
        part: (counts(tokenizer, [d.message for d in some]), torch.tensor([intents.index(d.intent) for d in some]))
        for part, some in dialogues.items()
    }
    n_features = data["train"][0].shape[1]

    def make(seed: int, hidden: int = 32, dropout: float = 0.0) -> Head:
        return Head(n_features, len(intents), hidden, dropout)

    space = {"learning_rate": None, "batch_size": None, "weight_decay": None, "hidden": [16, 32, 64, 128]}
    return tune(make, data, Budget(examples=32 * 12_000), space=space, scientific=["hidden"], **options)


def lora(**options) -> DecisionRecord:
    """Tune LoRA on the real model, for replies to a shop's customers: QLoRA's rate to beat."""
    model, tokenizer = load_pretrained("smollm2-135m")
    sizes = {"train": 400, "choose": 24, "confirm": 24}
    splits = dict(zip(sizes, ("train", "validation", "test"), strict=True))
    data = {part: encode_dialogues(tokenizer, support(n, split=splits[part])) for part, n in sizes.items()}
    add_lora(model, rank=8)
    defaults = {"learning_rate": 2e-4, "batch_size": 2}
    space = dict.fromkeys(("learning_rate", "warmup_ratio", "beta2_half_life"))
    return tune(model, data, Budget(examples=32 * 24), defaults=defaults, space=space, **options)


def main() -> None:
    """Tune each case, and print and save its record."""
    for name in sys.argv[1:] or ("gpt", "classifier", "lora"):
        record = {"gpt": gpt, "classifier": classifier, "lora": lora}[name](storage=WORK / f"tune-{name}.jsonl")
        print(record)
        record.save(WORK / f"tune-{name}")


if __name__ == "__main__":
    main()
