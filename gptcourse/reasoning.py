"""Puzzles in which thinking before answering can help, and what many answers to one puzzle are worth.

A row of a puzzle has a fixed frame, so that each thought stands at one distance from the digit that it needs:

    3528______>3808=8    the digits, places left empty, `>`, the thoughts, `=`, the answer, and an end

The thoughts are what the task has come to after each digit: here the sums 3, 8, 10, 18 modulo 10.

Sources: Wei et al. (2022), "Chain-of-Thought Prompting Elicits Reasoning in Large Language Models"; Pfau et al. (2024),
arXiv:2404.15758 (filler tokens); Chen et al. (2021), Codex, equation 1 (pass@k); Wang et al. (2022), arXiv:2203.11171
(self-consistency, a majority vote).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from numbers import Integral
from typing import NamedTuple

import numpy as np

from gptcourse.checks import COUNT, COUNT_OR_ZERO, SEED, Choice, ListOf, between, check_numbers, checked, shown
from gptcourse.data import IGNORED, Example, counted_rng
from gptcourse.generation import Sampling, generate
from gptcourse.model import GPT

PLACES = 10  # digits that fit into the frame
EMPTY, THINK, EQUALS, FILLER, END = range(10, 15)
CHARACTERS = "0123456789_>=.\n"  # of the tokens 0 to 14
MAX_REPLY = PLACES + 3  # thoughts, "=", the answer and the end
N_POSITIONS = PLACES + 1 + MAX_REPLY
TASKS = {"sum": lambda so_far, digit: (so_far + digit) % 10, "largest": max}
STYLES = ("answer", "think", "filler", "some")


class Puzzle(NamedTuple):
    """Digits, and the thoughts that lead to the answer, which is the last of them."""

    digits: tuple[int, ...]
    thoughts: tuple[int, ...]

    @property
    def answer(self) -> int:
        """What is right."""
        return self.thoughts[-1]

    @property
    def prompt(self) -> list[int]:
        """The ids up to `>`."""
        return [*self.digits, *[EMPTY] * (PLACES - len(self.digits)), THINK]


@checked(n=COUNT_OR_ZERO, seed=SEED, task=Choice(tuple(TASKS)), shortest=between(1, PLACES))
def puzzles(n: int, seed: int = 0, task: str = "sum", shortest: int = 2) -> list[Puzzle]:
    """Return n puzzles of `shortest` to 10 digits, each length as often as any other. Raises ValueError."""
    made, rng = [], counted_rng(seed, 0)
    for length in rng.integers(shortest, PLACES + 1, size=n):
        digits = tuple(rng.integers(10, size=length).tolist())
        made.append(Puzzle(digits, tuple(accumulate(digits, TASKS[task]))))
    return made


@checked(made=ListOf(Puzzle, "puzzles"), style=Choice(STYLES), seed=SEED)
def puzzle_examples(made: Sequence[Puzzle], style: str, seed: int = 0) -> list[Example]:
    """Return an example for each puzzle, whose targets are what follows `>`. Raises ValueError for an unknown style.

    "answer" answers at once, "think" after all thoughts, "filler" after as many dots, "some" after the first k
    thoughts, k being drawn from 0 to all.
    """
    rng = counted_rng(seed, 1)
    return [_example(puzzle, _middle(puzzle, style, rng)) for puzzle in made]


def _middle(puzzle, style, rng):
    if style == "filler":
        return [FILLER] * len(puzzle.thoughts)
    n = {"answer": 0, "think": len(puzzle.thoughts)}.get(style)
    return list(puzzle.thoughts[: int(rng.integers(len(puzzle.thoughts) + 1)) if n is None else n])


def _example(puzzle, middle):
    reply = [*middle, EQUALS, puzzle.answer, END]
    return (puzzle.prompt + reply)[:-1], [IGNORED] * PLACES + reply


@checked(reply=ListOf(Integral, "token ids"))
def read_answer(reply: Sequence[int]) -> int | None:
    """Return the digit after the first `=` of a reply (token ids), or None if there is none."""
    reply = list(reply)
    after = reply[reply.index(EQUALS) + 1 :] if EQUALS in reply else []
    return after[0] if after and after[0] < 10 else None


def solve(
    model: GPT, made: Sequence[Puzzle], sampling: Sampling = Sampling(temperature=0), thoughts: int | None = None
) -> list[int | None]:
    """Return the model's answer to each puzzle, after at most `thoughts` thoughts: then `=` is written for it."""
    prompts = [puzzle.prompt for puzzle in made]
    thoughts = None if thoughts is None else between(0, MAX_REPLY - 1)("thoughts", thoughts)
    if thoughts is not None:
        rows = generate(model, prompts, thoughts, sampling, EQUALS) if thoughts else prompts
        prompts = [row if row[-1] == EQUALS else [*row, EQUALS] for row in rows]
        if sampling.seed is not None:  # or the answer would be drawn with the random numbers of the thoughts
            sampling = replace(sampling, seed=int(counted_rng(sampling.seed).integers(2**32)))
    rows = generate(model, prompts, MAX_REPLY - (thoughts or 0), sampling, END)
    return [read_answer(row[PLACES + 1 :]) for row in rows]


@checked(made=ListOf(Puzzle, "puzzles"))
def right_answer(made: Sequence[Puzzle]) -> Callable[[int, list[int]], float]:
    """Return the verifiable reward that `grpo` takes: 1 for a reply with the right answer to puzzle i, else 0."""
    return lambda i, reply: float(read_answer(reply) == made[i].answer)


# ---- Many answers


@checked(n=COUNT, right=COUNT_OR_ZERO, k=COUNT)
def pass_at_k(n: int, right: int, k: int) -> float:
    """Return the unbiased estimate, from n draws of which some are right, that at least one of k draws is right.

    1 - C(n - right, k) / C(n, k) (Chen et al. 2021, equation 1). Raises ValueError unless k ≤ n and right ≤ n.
    """
    if not (1 <= k <= n and 0 <= right <= n):
        raise ValueError(
            f"Of {n} draws {right} cannot be right, or {k} cannot be taken: give 0 ≤ right ≤ n, 1 ≤ k ≤ n."
        )
    return 1 - math.comb(n - right, k) / math.comb(n, k)


@checked(truth=COUNT_OR_ZERO, k=COUNT, n_trials=COUNT, seed=SEED)
def majority_right(votes: Sequence[int], truth: int, k: int, n_trials: int = 1000, seed: int = 0) -> float:
    """Return how often the most frequent answer of k draws is the truth, ties broken by lot.

    votes[a] says how often answer a was drawn; k answers at a time are drawn anew with these frequencies. Raises
    ValueError.
    """
    votes = check_numbers("votes", votes, low=0).tolist()
    if not (truth < len(votes) and 0 < sum(votes) < math.inf):
        raise ValueError(f"The truth is answer {truth} and the votes are {shown(votes)}: give votes for it or others.")
    rng = counted_rng(seed, 2)
    counts = rng.multinomial(k, np.array(votes) / sum(votes), size=n_trials)  # (trials, answers)
    best = counts == counts.max(1, keepdims=True)
    return float((best[:, truth] / best.sum(1)).mean())
