"""Puzzles to think about: their rows by hand, what a model's answer is, and what many draws are worth, by counting."""

import itertools

import pytest
import torch

from gptcourse.config import GPTConfig
from gptcourse.data import IGNORED
from gptcourse.generation import Sampling, generate
from gptcourse.model import GPT
from gptcourse.reasoning import (
    CHARACTERS,
    END,
    EQUALS,
    MAX_REPLY,
    N_POSITIONS,
    PLACES,
    Puzzle,
    majority_right,
    pass_at_k,
    puzzle_examples,
    puzzles,
    read_answer,
    right_answer,
    solve,
)

SUM = Puzzle((3, 5, 2, 8), (3, 8, 0, 8))


def text(ids):
    return "".join(CHARACTERS[i] for i in ids)


def test_puzzles_have_the_right_answers_and_all_lengths():
    for task, answer in {"sum": lambda digits: sum(digits) % 10, "largest": max}.items():
        made = puzzles(300, seed=1, task=task)
        assert all(puzzle.answer == answer(puzzle.digits) for puzzle in made)
        assert {len(puzzle.digits) for puzzle in made} == set(range(2, 11))
        assert all(len(puzzle.thoughts) == len(puzzle.digits) for puzzle in made)
    assert puzzles(5, 1) == puzzles(5, 1) != puzzles(5, 2)
    for name, value, words in (("task", "product", "one of sum, largest"), ("shortest", 11, "from 1 to 10")):
        with pytest.raises(ValueError, match=f"^{name} is .*{words}"):
            puzzles(1, **{name: value})


@pytest.mark.parametrize(
    ("style", "row"), [("answer", "=8\n"), ("think", "3808=8\n"), ("filler", "....=8\n")], ids=lambda value: value[:6]
)
def test_a_row_is_learned_from_after_the_sign_to_think(style, row):
    ((ids, targets),) = puzzle_examples([SUM], style)
    assert text(ids) == "3528______>" + row[:-1]
    assert targets[:PLACES] == [IGNORED] * PLACES and text(targets[PLACES:]) == row


def test_some_thoughts_are_any_number_of_the_first_ones():
    rows = {text(targets[PLACES:]) for _, targets in puzzle_examples([SUM] * 60, "some")}
    assert rows == {"=8\n", "3=8\n", "38=8\n", "380=8\n", "3808=8\n"}
    with pytest.raises(ValueError, match="style is 'loud', but it must be one of answer, think, filler, some"):
        puzzle_examples([SUM], "loud")


def test_an_answer_is_the_digit_after_the_first_sign():
    for reply, answer in {"3808=8\n": 8, "=4": 4, "38": None, "38=": None, "3==8": None}.items():
        assert read_answer([CHARACTERS.index(c) for c in reply]) == answer
    reward = right_answer([SUM])
    assert reward(0, [EQUALS, 8, END]) == 1 and reward(0, [EQUALS, 3, END]) == 0 == reward(0, [8, 8])


class Scripted(torch.nn.Module):
    """Writes the running sums of the digits, then the answer, whatever it was trained on: all by rule."""

    config = GPTConfig(len(CHARACTERS), N_POSITIONS, 4, 1, 1)

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, ids):
        logits = torch.zeros(*ids.shape, len(CHARACTERS))
        for row, logit in zip(ids.tolist(), logits, strict=True):
            digits, reply = [d for d in row[:PLACES] if d < 10], row[PLACES + 1 :]
            if EQUALS in reply:  # the last thought, right or not
                after = reply.index(EQUALS)
                token = END if len(reply) > after + 1 else (reply[after - 1] if after else 0)
            else:
                token = sum(digits[: len(reply) + 1]) % 10 if len(reply) < len(digits) else EQUALS
            logit[-1, token] = 50.0
        return type("Output", (), {"logits": logits})


def test_solving_reads_the_answer_and_can_cut_the_thoughts_short():
    made = [SUM, Puzzle((1, 2, 3, 4, 5, 6, 7, 8, 9, 9), (1, 3, 6, 0, 5, 1, 8, 6, 5, 4))]
    model = Scripted()
    assert solve(model, made) == solve(model, made, Sampling(seed=0)) == [8, 4]
    for thoughts in range(PLACES + 1):
        expected = [0 if thoughts == 0 else p.thoughts[min(thoughts, len(p.thoughts)) - 1] for p in made]
        assert solve(model, made, thoughts=thoughts) == expected


def test_a_frame_has_room_for_the_longest_reply():
    longest = puzzles(200)[[len(p.digits) for p in puzzles(200)].index(PLACES)]
    ((ids, targets),) = puzzle_examples([longest], "think")
    assert len(targets[PLACES:]) == MAX_REPLY and len(ids) < N_POSITIONS
    torch.manual_seed(0)
    assert len(solve(GPT(GPTConfig(len(CHARACTERS), N_POSITIONS, 8, 1, 1)), [longest])) == 1


def test_pass_at_k_is_the_share_of_all_choices_of_k_with_a_right_one():
    for n, right, k in ((6, 2, 1), (6, 2, 3), (6, 0, 2), (5, 5, 4), (6, 3, 4)):
        draws = [1] * right + [0] * (n - right)
        choices = list(itertools.combinations(draws, k))
        assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, choices)) / len(choices))
    with pytest.raises(ValueError, match="Of 4 draws 5 cannot be right"):
        pass_at_k(4, 5, 1)


def test_a_majority_of_draws_is_right_as_often_as_all_draws_say():
    votes, truth, k = [2, 1, 1], 0, 3
    p, exact = [0.5, 0.25, 0.25], 0.0
    for draws in itertools.product(range(3), repeat=k):
        counts = [draws.count(a) for a in range(3)]
        ties = counts.count(max(counts))
        exact += (counts[truth] == max(counts)) / ties * p[draws[0]] * p[draws[1]] * p[draws[2]]
    assert majority_right(votes, truth, k, n_trials=40_000) == pytest.approx(exact, abs=0.01)
    assert majority_right([4, 0, 0], 0, 5) == 1 and majority_right([4, 0, 0], 1, 5) == 0


def test_the_answer_is_drawn_with_other_random_numbers_than_the_thoughts(monkeypatch):
    """To a model that finds all signs equally likely, the answer is its only thought once in fifteen times."""
    written = []
    monkeypatch.setattr("gptcourse.reasoning.generate", lambda *given: written.append(generate(*given)) or written[-1])
    torch.manual_seed(0)
    model = GPT(GPTConfig(len(CHARACTERS), N_POSITIONS, 4, 1, 1, initializer_range=1e-9))
    for seed in range(60):
        solve(model, [SUM], Sampling(seed=seed), thoughts=1)
    pairs = [(thought, answer) for (thought,), (answer,) in zip(written[::2], written[1::2], strict=True)]
    same = [thought[-1] == answer[len(thought) + 1] for thought, answer in pairs if thought[-1] != EQUALS]
    assert len(same) > 40 and sum(same) < 15


def test_more_thoughts_than_a_reply_has_room_for_are_refused():
    with pytest.raises(ValueError, match=r"^thoughts is 14, but it must be a whole number from 0 to 12\.$"):
        solve(None, [], thoughts=14)
