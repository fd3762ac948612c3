"""The exercise of notebook 00: the boring writer."""

from __future__ import annotations

import torch
from torch import Tensor

from gptcourse.exercises import Exercise, Mistake
from gptcourse.generation import Sampling, next_token_distribution

NOTEBOOK = "00 · Start here"


def logits() -> list[tuple]:
    """Return vectors whose largest entry stands inside; in the first another one is larger in size."""
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(size, generator=generator) for size in (7, 50)]
    vectors[0][0] = -2 * vectors[0].max()
    vectors[1] += 1.0
    return [(vector,) for vector in vectors]


def greedy(logits: Tensor) -> int:
    return next_token_distribution(logits, Sampling(temperature=0)).nonzero().item()


EXERCISES = (
    Exercise(
        name="start.greedy",
        asks="Return the id of the most likely token, as a whole number.",
        inputs=logits,
        reference=greedy,
        hint="The id of a token is the place of its logit in the vector, counted from 0.",
        mistakes=(
            Mistake(
                lambda logits: logits.max().item(), "That is how large the best logit is; at which place does it stand?"
            ),
            Mistake(
                lambda logits: logits.argmin().item(), "That is the least likely token: a larger logit is more likely."
            ),
            Mistake(
                lambda logits: logits.abs().argmax().item(), "A very negative logit means very unlikely: mind the sign."
            ),
        ),
    ),
)
