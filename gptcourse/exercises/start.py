"""The exercise of notebook 00: the boring writer."""

from __future__ import annotations

import torch

from gptcourse.exercises.exercise import Exercise, mistake

NOTEBOOK = "00 · Start here"


class Greedy(Exercise, name="start.greedy", minutes=2):
    """Return the id of the most likely token, as a whole number."""

    hint = "The id of a token is the place of its logit in the vector, counted from 0."

    def inputs():
        long = 0.3 * torch.randn(50) + 1
        return [(torch.tensor([-3.0, 0.5, 0.7, 0.1]),), (torch.tensor([-2.0, -0.5, -0.9]),), (long,), (long.flip(0),)]

    def reference(logits):
        return logits.argmax().item()

    value = mistake("That is how large the best logit is; at which place is it?")(lambda x: x.max().item())
    lowest = mistake("That is the least likely token: a larger logit is more likely.")(lambda x: x.argmin().item())
    by_size = mistake("A very negative logit means very unlikely: mind the sign.")(lambda x: x.abs().argmax().item())
