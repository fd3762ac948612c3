"""Wrong answers to the exercise of notebook 00."""

import torch

from wrong_answers import wrong


@wrong("start.greedy", "how large the best logit is")
def greedy_value(logits):
    return max(logits.tolist())


@wrong("start.greedy", "the least likely token")
def greedy_turned_round(logits):
    return logits.argsort()[0].item()


@wrong("start.greedy", "mind the sign")
def greedy_by_size(logits):
    return torch.argmax(logits**2).item()


@wrong("start.greedy", "it should return a whole number")
def greedy_as_a_pair(logits):
    return logits.max(dim=0)
