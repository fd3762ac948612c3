"""The exercises of notebook 06 on data: what is held out, how sure it makes one, how often a budget reads it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch
from torch import Tensor, randn, tensor

from gptcourse.exercises.exercise import Exercise, as_it_stands, mistake

NOTEBOOK = "06 · Tune your own model"


def taken(groups: Tensor, order: list[int], size: int, goes_on=True, fits=lambda held, n, size: held + n <= size):
    """Return the groups that are held out, in their order."""
    held, chosen = 0, []
    for group in order:
        n = (groups == group).sum().item()
        if fits(held, n, size):
            chosen.append(group)
            held += n
        elif not goes_on:
            break
    return chosen


def rows_of(groups: Tensor, chosen: list[int]) -> list[int]:
    """Return the rows of these groups, group by group."""
    return [i for group in chosen for i in (groups == group).nonzero().flatten().tolist()]


def ascending(rows: list[int]) -> Tensor:
    return tensor(sorted(rows), dtype=torch.int64)


class Split(Exercise, name="own_data.split", minutes=10):
    """Return the numbers of the held-out rows, ascending: of whole groups, each in its turn if it still fits."""

    hint = "Go through the groups in the given order with the rows counted beside it: which of them still fits?"

    def inputs():
        return [
            (tensor([0, 1, 1, 2, 0, 3, 1, 2, 4, 0]), [1, 4, 0, 3, 2], 5),
            (tensor([2, 2, 0, 0, 1, 3, 3, 3]), [2, 1, 3, 0], 4),
            (tensor([2, 0, 2, 1, 3, 1, 3, 0, 3]), [3, 0, 1, 2], 7),
        ]

    def reference(groups, order, size):
        return ascending(rows_of(groups, taken(groups, order, size)))

    row_by_row = mistake("""A group is cut: some of its rows are held out, and its others are trained on. What is to be
        done with a group that does not fit as a whole?""")(
        lambda groups, order, size: ascending(rows_of(groups, order)[:size])
    )
    ends_early = mistake("""You stop at the first group that is too large. May a smaller one
        after it still fit?""")(lambda g, order, size: ascending(rows_of(g, taken(g, order, size, goes_on=False))))
    too_many = mistake("""You hold out more rows than were asked for. Look at the number of rows before a group is
        taken: what should be looked at?""")(
        lambda g, order, size: ascending(rows_of(g, taken(g, order, size, fits=lambda held, n, size: held < size)))
    )
    one_too_few = mistake("A group that just fills the part is left out. Does it fit?")(
        lambda g, order, size: ascending(rows_of(g, taken(g, order, size, fits=lambda held, n, size: held + n < size)))
    )
    others = mistake("These are the rows to train on. The others were asked for.")(
        lambda g, order, size: ascending(rows_of(g, [x for x in order if x not in taken(g, order, size)]))
    )
    by_group = mistake("The rows are right. In which order were they asked for?")(
        lambda groups, order, size: tensor(rows_of(groups, taken(groups, order, size)))
    )


def reading(tokens_per_step, steps, unique, constant, worth: Callable[[float, float, float], float]):
    epochs = tokens_per_step * steps / unique
    return float(epochs), float(worth(epochs, unique, constant))


def repeated(repeats: float, constant: float, base: float = math.e) -> float:
    """Return the worth of so many repetitions, in readings of new text."""
    return constant * (1 - base ** (-repeats / constant))


class Epochs(Exercise, name="own_data.epochs", minutes=10):
    """Return how often the budget reads the text, and how many tokens of new text that is worth."""

    hint = "Take it apart: the tokens read, the readings, those after the first one, and what these are worth."

    def inputs():
        return [(8, 100, 320, 15.4), (64, 40, 3000, 15.4), (8192, 1500, 400_000, 15.4), (512, 100, 6400, 5.0)]

    def valued(worth: Callable[[float, float, float], float]) -> Callable:
        """Return the answer that takes this for the worth of (epochs, unique tokens, constant)."""
        return lambda tokens_per_step, steps, unique, constant: reading(tokens_per_step, steps, unique, constant, worth)

    def reference(tokens_per_step, steps, unique, constant):
        worth = lambda e, u, c: u * (min(e, 1) + repeated(max(e - 1, 0), c))  # noqa: E731
        return reading(tokens_per_step, steps, unique, constant, worth)

    first_repeats = mistake("""You count the first reading as a repetition.
        How many of two readings repeat something?""")(valued(lambda e, u, c: u * (min(e, 1) + repeated(e, c))))
    never_all_read = mistake("""Right for a budget that reads everything. What is one worth that does not get to the
        end of the text?""")(valued(lambda e, u, c: u * (1 + repeated(e - 1, c))))
    all_counted = mistake("""A budget that does not get to the end of the text is not worth the
        whole text.""")(valued(lambda e, u, c: u * (1 + repeated(max(e - 1, 0), c))))
    as_new = mistake("""You take each repetition for new text. After how many of them is that far
        off?""")(valued(lambda e, u, c: u * e))
    half_life = mistake("""You take the constant for a half-life. In the formula stands an exponential of which
        base?""")(valued(lambda e, u, c: u * (min(e, 1) + repeated(max(e - 1, 0), c, base=2))))
    in_readings = mistake("""The second number counts readings. How many tokens has one of
        them?""")(valued(lambda e, u, c: min(e, 1) + repeated(max(e - 1, 0), c)))
    repetitions_alone = mistake("""That is the worth of the repetitions alone.
        What about the first reading?""")(valued(lambda e, u, c: u * repeated(max(e - 1, 0), c)))

    @mistake("Your first number has lost its fraction: which division keeps it?")
    def whole_readings(tokens_per_step, steps, unique, constant):
        epochs = tokens_per_step * steps // unique
        return epochs, unique * (min(epochs, 1) + repeated(max(epochs - 1, 0), constant))


def dependent_losses(n: int) -> Tensor:
    """Losses of n tokens of which neighbours resemble each other, as those of one scene or one letter do."""
    return 2 + 0.3 * (randn(n // 5).repeat_interleave(5) + randn(n))


class HeldOutSize(Exercise, name="own_data.held_out_size", minutes=15):
    """Return half the width of the 95 % interval of the mean loss, and the tokens that shrink it to `wanted`."""

    hint = "First the mean of each block, then how these means spread, then how sure that makes their own mean."

    def inputs():
        return [(dependent_losses(60), 6, 0.05), (dependent_losses(100), 10, 0.1), (dependent_losses(40), 4, 0.02)]

    def measured(width: Callable[[Tensor, Tensor], Tensor], needed=lambda n, ratio: n * ratio**2) -> Callable:
        """Return the answer with this half width, of (losses, means of blocks), and these tokens needed."""

        def answer(losses, n_blocks, wanted):
            half = 1.96 * width(losses, losses.view(n_blocks, -1).mean(1)).item()
            return half, needed(len(losses), half / wanted)

        return answer

    def of_blocks(losses, means):
        return means.std() / len(means) ** 0.5

    def reference(losses, n_blocks, wanted):
        return HeldOutSize.measured(HeldOutSize.of_blocks)(losses, n_blocks, wanted)

    token_by_token = mistake("""You take every token for an independent look. But those of one passage are easy or hard
        together: what are the independent looks here?""")(measured(lambda x, means: x.std() / len(x) ** 0.5))
    of_one_block = mistake("""That is how far one block lies from the mean. How does the mean of all of them become
        surer with their number?""")(measured(lambda x, means: means.std()))
    as_a_population = mistake("""Your spread is a little too small: the mean was taken of the same few blocks. By what
        is their sum of squares divided?""")(measured(lambda x, means: means.std(correction=0) / len(means) ** 0.5))
    by_tokens = mistake("The blocks spread as they should. How many of them are there?")(
        measured(lambda x, means: means.std() / len(x) ** 0.5)
    )
    in_proportion = mistake("""The interval is right. But twice the tokens do not halve it: how does it shrink with
        their number?""")(measured(of_blocks, lambda n, ratio: n * ratio))
    turned_round = mistake("""The interval is right. For a narrower one you ask for fewer tokens: which of the two
        widths belongs above the line?""")(measured(of_blocks, lambda n, ratio: n / ratio**2))


MESSAGES = """Where is order 17?
where is order 4711?
Cancel order 3, please.
WHERE IS ORDER 20031?
Cancel order 88, please.
Is shop 4 open?
My refund of 30 euros is late.
Is shop 12 open?
is shop 9 open?
My refund of 7 euros is late.
Hello there.
where is order 17?
Where do I sign in?"""


def messages(*numbers: int) -> list[str]:
    """Return some of the messages, by their numbers."""
    return [MESSAGES.split("\n")[i] for i in numbers]


# Splits of text-to-SQL data had each question on one side, and its query, with other values, on both: Finegan-Dollak et
# al. (2018), "Improving Text-to-SQL Evaluation Methodology".
class MendLeak(Exercise, name="own_data.mend_leak", minutes=15):
    """Mend the split so that messages that differ only in numbers and capital letters are on one side."""

    hint = (
        "Write down beside each message what is left of it without its numbers. Which are alike, and which come first?"
    )

    def inputs():
        return [
            (messages(*range(13)), 2),
            (messages(5, 0, 2, 1, 10, 6, 3, 4, 7, 8, 9, 1), 3),
            (messages(2, 4, 0, 3, 11, 12, 1, 10, 6, 9, 7), 2),
        ]

    def with_keys(key: Callable[[str], str], pick=lambda keys, every: keys[every - 1 :: every]) -> Callable:
        """Return the split that holds out all messages whose key is among those picked, in order of appearance."""

        def split(messages, every):
            keys = [key(message) for message in messages]
            picked = pick(list(dict.fromkeys(keys)), every)
            return tensor([i for i, own in enumerate(keys) if own in picked], dtype=torch.int64)

        return split

    def template(message):
        return re.sub(r"\d+", "#", message.casefold())

    reference = with_keys(template)
    by_messages = as_it_stands("""The mistake is still there: a message of the training part stands among the held-out
        ones with another number. What makes two messages the same one?""")(with_keys(str))
    by_rows = mistake("""Now even two equal messages can be on both sides. What is to be counted off, instead
        of rows?""")(lambda messages, every: torch.arange(every - 1, len(messages), every))
    digit_by_digit = mistake("""Very close. A number of two digits and one of five are still two different
        things to you.""")(with_keys(lambda message: re.sub(r"\d", "#", message.casefold())))
    capitals_differ = mistake("""The numbers are out. One customer writes in capitals,
        and is a stranger to you.""")(with_keys(lambda message: re.sub(r"\d+", "#", message)))
    numbers_stay = mistake("The capitals are out, the numbers are not.")(with_keys(str.casefold))
    too_coarse = mistake("""You throw different questions together. What should be left of a message, besides how it
        begins?""")(with_keys(lambda message: message.casefold().split()[0]))
    from_the_first = mistake("""No template is on both sides now, but you begin with the very first. Which is the one
        to begin with?""")(with_keys(template, lambda keys, every: keys[::every]))
    training_part = mistake("These are the numbers of the messages to train on. The others were asked for.")(
        with_keys(template, lambda keys, every: [key for i, key in enumerate(keys, 1) if i % every])
    )

    @mistake("One message of each held-out template is there. Where are its sisters?")
    def first_of_each(messages, every):
        keys = [MendLeak.template(message) for message in messages]
        return tensor([keys.index(key) for key in list(dict.fromkeys(keys))[every - 1 :: every]])
