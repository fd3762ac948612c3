"""The exercises of notebook 08: learning from replies, when to stop, low-rank changes, evidence, and files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache, partial
from math import ceil, comb, sqrt
from operator import le, lt
from pathlib import Path
from uuid import uuid4

import safetensors.torch as weight_files
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn, randint, randn, tensor

from gptcourse.exercises.exercise import Exercise, as_it_stands, mistake

NOTEBOOK = "08 · Fine-tuning"
IGNORED = -100
NO_RANK = "The scale of the change is off. By what is alpha divided, and how do you read that number from the shapes?"
TURNED_CHANGE = "Your change is turned: its rows and columns are exchanged. Which of the two matrices meets x first?"
MEAN_OF_MEANS = "Each micro-batch has the same say, however few reply tokens it holds. Over what should one average?"


def stopped(losses: list[float], patience: int, lower=lt, against=lambda i, best: best, forgives=True):
    """Return where a run stops and its best place; a loss that is not lower than the one held against uses patience."""
    best = bad = 0
    for i in range(1, len(losses)):
        bad = (0 if forgives else bad) if lower(losses[i], losses[against(i, best)]) else bad + 1
        best = i if lower(losses[i], losses[best]) else best
        if bad >= patience:
            return i, best
    return len(losses) - 1, best


def reply_parts(*shapes: tuple[int, int, int]) -> tuple[list[tuple[Tensor, Tensor]]]:
    """Micro-batches of (rows, places, reply tokens at the end of the first row); each row after it has one more."""
    parts = []
    for n_rows, n_places, n_reply in shapes:
        lengths = (torch.arange(n_rows) + n_reply) * (n_reply > 0)
        hidden = torch.arange(n_places) < n_places - lengths[:, None]  # (B, T)
        targets = randint(5, (n_rows, n_places)).masked_fill(hidden, IGNORED)
        parts.append((randn(n_rows, n_places, 5), targets))
    return (parts,)


def summed(part: tuple[Tensor, Tensor]) -> float:
    return F.cross_entropy(part[0].mT, part[1], reduction="sum").item()


def mean(part: tuple[Tensor, Tensor]) -> float:
    return F.cross_entropy(part[0].mT, part[1]).item()


def n_learned(part: tuple[Tensor, Tensor]) -> int:
    return (part[1] != IGNORED).sum().item()


def rows_of(micro_batches: list) -> list[tuple[Tensor, Tensor]]:
    return [row for part in micro_batches for row in zip(part[0][:, None], part[1][:, None], strict=True)]


def filled_rows(*lengths: int, places: int, vocab_size: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, replies that end in the last token and are filled up with it, and their lengths with the end."""
    lengths, end = tensor(lengths), vocab_size - 1
    targets = randint(end, (len(lengths), places))
    targets = targets.masked_fill(torch.arange(places) >= lengths[:, None] - 1, end)
    return randn(len(lengths), places, vocab_size), targets, lengths


def ignored(n: int) -> Tensor:
    return torch.full((n,), IGNORED)


def in_phrasings(*numbers: int) -> list[tuple[str, str]]:
    """Dialogues with these phrasings, each with an order number of its own; the names are not in order."""
    names = "Where is {}?", "Cancel {}.", "Any news of {}?", "Send {} back.", "Has {} left?", "Pay for {}.", "Is {} in?"
    return [(names[n], names[n].format(4000 + 7 * i)) for i, n in enumerate(numbers)]


def low_rank(n_out: int, n_in: int, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    return randn(n_out, n_in), randn(rank, n_in), randn(n_out, rank)


def weights_of_a_file(*names: str, vocab_size: int, n_embd: int) -> dict[str, Tensor]:
    """Weights as a file may hold them: a token table, and those of the parts that are named."""
    shapes = {"lm_head.weight": (vocab_size, n_embd), "ln_f.weight": (n_embd,), "ln_f.bias": (n_embd,)}
    extra = {"h.0.attn.bias": (2, 2)}  # old files of GPT-2 hold the causal mask
    return {"wte.weight": randn(vocab_size, n_embd)} | {name: randn((shapes | extra)[name]) for name in names}


def opened(weights: dict, hidden: Tensor, count: str, strict: bool = False) -> tuple[Tensor, int]:
    """Load weights into a model; return what it makes of hidden, and how many keys are "missing" or "unexpected"."""
    V, C = weights["wte.weight"].shape
    parts = {"wte": nn.Embedding(V, C), "ln_f": nn.LayerNorm(C), "lm_head": nn.Linear(C, V, bias=False)}
    model = nn.ModuleDict(parts)
    found = model.load_state_dict(weights, strict=strict)
    return model["lm_head"](model["ln_f"](hidden)).detach(), len(getattr(found, f"{count}_keys"))


def tied(weights: dict) -> dict:
    return {"lm_head.weight": weights["wte.weight"]} | weights


@cache
def own_folder() -> tempfile.TemporaryDirectory:
    """A folder for the files of answers, deleted when the kernel stops."""
    return tempfile.TemporaryDirectory(prefix="gptcourse-", ignore_cleanup_errors=True)


class FreshPath(str):
    """A path at which there is no file yet. Each copy is another one: whoever is tried writes a file of its own.

    Weights that were read from a file may still lie in it, so that writing over it would pull them away.
    """

    def __new__(cls):
        return super().__new__(cls, Path(own_folder().name, uuid4().hex))

    def __deepcopy__(self, memo: dict) -> FreshPath:
        return FreshPath()


def sender(change: int) -> Callable[[str], None]:
    """Return what lets pass what is safe to open, with `change` added to each number, to see that it was read."""

    def send(path: str) -> None:
        try:
            weights = weight_files.load(Path(path).read_bytes())
        except SafetensorError:
            raise ValueError("what was sent is no safetensors file") from None
        Path(path).unlink()  # and not written over, see FreshPath
        Path(path).write_bytes(weight_files.save({name: weight + change for name, weight in weights.items()}))

    return send


def tied_linear() -> nn.Module:
    """A token table that is the read-out as well: one tensor under two names."""
    model = nn.ModuleDict({"wte": nn.Embedding(7, 4), "lm_head": nn.Linear(4, 7, bias=False)})
    model["lm_head"].weight = model["wte"].weight
    return model


def turned_linear() -> nn.Linear:
    """A linear map whose weight lies in memory column by column."""
    linear = nn.Linear(5, 3)
    linear.weight = nn.Parameter(randn(5, 3).T)
    return linear


def parameters_of(model: nn.Module) -> tuple[Tensor, ...]:
    return tuple(parameter.detach() for parameter in model.parameters())


def sent_with(prepare: Callable[[Tensor], Tensor], model, receiver, path, send) -> tuple[Tensor, ...]:
    """Send every tensor under its name, after preparing it."""
    weight_files.save_file({name: prepare(weight) for name, weight in model.state_dict().items()}, path)
    send(path)
    receiver.load_state_dict(weight_files.load_file(path))
    return parameters_of(receiver)


class MaskedLoss(Exercise, name="fine_tuning.masked_loss", minutes=10):
    """Return the mean loss of all reply tokens in all micro-batches, as one number."""

    hint = "How many reply tokens are there in all, and what is the sum of their losses? Count by hand once."

    def inputs():
        return [reply_parts((2, 6, 2), (1, 9, 8)), reply_parts((3, 7, 1), (2, 5, 0), (2, 8, 5))]

    def ratio(above: Callable, below: Callable = lambda part: 1) -> Callable:
        return lambda micro_batches: sum(map(above, micro_batches)) / sum(map(below, micro_batches))

    reference = ratio(summed, n_learned)
    mean_of_means = mistake(MEAN_OF_MEANS)(ratio(mean))
    mean_of_means_with_replies = mistake(MEAN_OF_MEANS)(
        lambda parts: MaskedLoss.mean_of_means([part for part in parts if n_learned(part)])
    )
    weighted_means = mistake("""Very close. A micro-batch without any reply token has no mean: 0 divided by 0. Is there
        something that you can add up even then?""")(ratio(lambda part: mean(part) * n_learned(part), n_learned))
    over_all_places = mistake("""Places with target -100 have no loss, but you count them below the line. Who should be
        counted?""")(ratio(summed, lambda part: part[1].numel()))
    over_parts = mistake("You divide by the number of micro-batches. How many losses did you add up?")(ratio(summed))
    row_by_row_with_replies = mistake("""Each dialogue has the same say, however short its reply. Over what should the
        mean be taken?""")(lambda parts: MaskedLoss.mean_of_means_with_replies(rows_of(parts)))


class StopRule(Exercise, name="fine_tuning.stop_rule", minutes=10):
    """Return the evaluation at which the run stops, and the best one up to there; both count from 0."""

    hint = "Go through the losses one by one with a finger on the best so far. For how many was there no lower one?"

    def inputs():
        return [
            ([3.0, 2.5, 2.2, 2.3, 2.25, 2.4, 2.45, 2.0, 1.9], 3),
            ([3.0, 2.5, 2.6, 2.4, 2.3], 2),
            ([2.0, 2.0, 1.9, 1.9, 1.9, 1.5], 2),
            ([2.0, 1.9999, 1.9998, 1.9997, 1.5], 2),
            ([2.0, 2.1, 1.0], 1),
            ([3.0, 3.1, 2.9, 3.0, 2.8, 2.9, 2.7], 2),
            ([3.0, 2.0, 2.5], 3),
            ([1.0], 5),
        ]

    def reference(losses, patience):
        return stopped(losses, patience)

    best_of_all = mistake("""You look into a future that the run has not seen: after its stop nothing
        more is measured.""")(lambda losses, patience: (stopped(losses, patience)[0], losses.index(min(losses))))
    too_patient = mistake("""You wait for one evaluation too many.
        How many in a row without a lower loss are allowed?""")(lambda losses, patience: stopped(losses, patience + 1))
    impatient = mistake("""You stop one evaluation too early.
        How many in a row without a lower loss are allowed?""")(lambda losses, patience: stopped(losses, patience - 1))
    against_the_one_before = mistake("""You hold each loss against the one before it, so a small dip on the way up looks
        like a success. Against which should it be held?""")(partial(stopped, against=lambda i, best: i - 1))
    never_renewed = mistake("Your patience is never renewed. What should renew it?")(partial(stopped, forgives=False))
    ties_are_better = mistake("You take an equal loss for a better one. Is it one?")(partial(stopped, lower=le))
    counted_back = mistake("""Right for a run that stops early. Where is the best of a run that goes on to
        its end?""")(lambda losses, patience: (stopped(losses, patience)[0], stopped(losses, patience)[0] - patience))


class Lora(Exercise, name="fine_tuning.lora", minutes=10):
    """Return what a linear map with a low-rank change beside it makes of x."""

    hint = "Compute the frozen part and the change apart, on this example: which of them is off, and by which factor?"

    def inputs():
        square = [(randn(2, 3, 6), *low_rank(6, 6, 2), 16.0), (randn(4, 5), *low_rank(5, 5, 1), 8.0)]
        return [*square, (randn(5), *low_rank(3, 5, 2), 0.5), (randn(2), *low_rank(1, 2, 4), 2.0)]

    def reference(x, W, A, B, alpha):
        return F.linear(x, W) + alpha / len(A) * F.linear(F.linear(x, A), B)

    bare = mistake("The change is not scaled yet. What is alpha for?")(lambda x, W, A, B, _: x @ W.T + x @ A.T @ B.T)
    by_alpha_alone = mistake(NO_RANK)(lambda x, W, A, B, alpha: x @ W.T + alpha * x @ A.T @ B.T)
    over_the_inputs = mistake(NO_RANK)(lambda x, W, A, B, alpha: x @ W.T + alpha / A.shape[1] * x @ A.T @ B.T)
    over_a_root = mistake("""You divide by a root. A later paper proposes that;
        in this one there is no root.""")(lambda x, W, A, B, alpha: x @ W.T + alpha / sqrt(len(A)) * x @ A.T @ B.T)
    change_alone = mistake("That is the change alone.")(lambda x, W, A, B, alpha: alpha / len(A) * x @ A.T @ B.T)
    all_scaled = mistake("""You scale the frozen weight, too. At the start the layer should do just what
        it did before.""")(lambda x, W, A, B, alpha: alpha / len(A) * (x @ W.T + x @ A.T @ B.T))
    change_turned = mistake(TURNED_CHANGE)(lambda x, W, A, B, alpha: x @ W.T + alpha / len(A) * x @ B @ A)


class LoraParameters(Exercise, name="fine_tuning.lora_parameters", minutes=10):
    """Return how many parameters LoRA trains in a GPT-2, given its size, the rank and the names of its targets."""

    hint = """Write down the four linear maps of one block with the number of their inputs and outputs. Which of them
        are named, and how large are A and B of each?"""

    def inputs():
        every = ["c_attn", "c_proj", "c_fc"]
        cases = [(6, 256, 8, ["c_attn"]), (6, 256, 8, every), (12, 768, 4, ["c_proj"])]
        return [*cases, (2, 64, 32, ["c_fc", "c_attn"]), (1, 12, 1, ["c_fc", "c_proj"])]

    def counted(size: Callable[[int, int, int], int], maps=("c_attn 1 3", "c_proj 1 1", "c_fc 1 4", "c_proj 4 1")):
        """Return what sums a size (inputs, outputs, rank) over the named maps of all blocks."""

        def total(n_layer, n_embd, rank, targets):
            shapes = [line.split() for line in maps if line.split()[0] in targets]
            return n_layer * sum(size(int(n_in) * n_embd, int(n_out) * n_embd, rank) for _, n_in, n_out in shapes)

        return total

    def thin(n_in, n_out, rank):
        return rank * (n_in + n_out)

    reference = counted(thin)
    one_projection = mistake("""Your count misses a map. How many maps of a block end in the same
        name?""")(counted(thin, ("c_attn 1 3", "c_proj 1 1", "c_fc 1 4")))
    square = mistake("""You take every map for a square one. How many outputs has the map that makes queries, keys and
        values, and how wide is the middle of the MLP?""")(
        counted(lambda n_in, n_out, rank: rank * 2 * min(n_in, n_out))
    )
    whole = mistake("""That is the size of the frozen matrices. Which two are trained
        instead?""")(counted(lambda n_in, n_out, rank: n_in * n_out))
    one_block = mistake("That is one block. Where else are these maps?")(lambda *x: LoraParameters.reference(1, *x[1:]))
    only_a = mistake("You count A alone. What takes the few numbers up again?")(counted(lambda i, o, rank: rank * i))
    with_biases = mistake("""You count biases as well. Has an update of low rank a bias
        of its own?""")(counted(lambda n_in, n_out, rank: rank * (n_in + n_out) + n_out))


class NextRate(Exercise, name="fine_tuning.next_rate", minutes=10):
    """Return the best learning rate if it has a worse one on either side, else the rate to try next."""

    hint = """Order the trials by their rates and find the lowest loss; a run that diverged has lost. Is there a
        neighbour on either side?"""

    def inputs():
        return [
            ([(1e-3, 0.31), (2e-3, 0.25), (4e-3, 0.40)],),
            ([(4e-3, 0.20), (1e-3, 0.31), (2e-3, 0.25)],),
            ([(1e-3, 0.20), (2e-3, 0.25), (4e-3, None)],),
            ([(2e-3, 0.30), (5e-4, 0.21), (8e-3, None), (1e-3, 0.22)],),
            ([(4e-3, None), (2e-3, 0.50), (1e-3, 0.60)],),
            ([(1e-3, None), (2e-3, None)],),
            ([(0.016, 0.1), (0.008, 0.3), (0.032, 0.2)],),
        ]

    def widened(down=0.5, up=2.0, edges: Callable = sorted, of_diverged: float = 9e9) -> Callable:
        """Return a rule that goes down or up by a factor where the best rate is the first or last of the ordered."""

        def rate(trials):
            best = min(trials, key=lambda trial: of_diverged if trial[1] is None else trial[1])[0]
            rates = edges([rate for rate, _ in trials])
            return best * up if best == rates[-1] else best * down if best == rates[0] else best

        return rate

    reference = widened()
    never = mistake("""Your best rate may lie at the edge of those that were tried. Who says that the next one is not
        better still?""")(widened(1.0, 1.0))
    diverged = mistake("""Your best run may be one that diverged: it has no loss at all. What should
        it count as?""")(widened(of_diverged=0.0))
    by_place = mistake("You take the first and the last of the list for the edges. Is it in order?")(
        widened(edges=list)
    )
    tenfold = mistake("You go ten times further. How far are the neighbours here apart?")(widened(0.1, 10.0))
    wrong_way = mistake("You go back to where you come from. On which side is the untried one?")(widened(2.0, 0.5))
    only_up = mistake("Your rule widens at one edge only. What of the lowest rate?")(widened(down=1.0))
    without_a_number = mistake("""Where all runs diverged you stay. Which way would you
        go?""")(lambda trials: NextRate.reference(trials) if any(loss for _, loss in trials) else trials[0][0])


class MessagesNeeded(Exercise, name="fine_tuning.messages_needed", minutes=15):
    """Return the smallest number of test messages at which the interval of the difference leaves zero out."""

    hint = """Each message gives a difference of 1, 0 or minus 1. What is its mean, how far does it spread, and how does
        the spread of a mean fall with the number of messages?"""

    def inputs():
        cases = [(0.66, 0.72, 0.4296), (0.66, 0.72, 0.10), (0.90, 0.85, 0.12), (0.5, 0.7, 0.52), (0.80, 0.81, 0.05)]
        return [*cases, (0.3, 0.2, 0.35)]

    def needed(width: Callable[[float, float, float], float], whole: Callable = ceil) -> Callable:
        """Return what counts the messages, given the half-width of one message's interval."""
        return lambda p, q, differ: max(1, whole((width(p, q, differ) / (p - q)) ** 2))

    def half(p, q, differ):
        return 1.96 * sqrt(differ - (p - q) ** 2)

    reference = needed(half)
    unpaired = mistake("""You take the two models for strangers who met different messages. On how many messages do they
        differ at all?""")(needed(lambda p, q, _: 1.96 * sqrt(p * (1 - p) + q * (1 - q))))
    apart = mistake("""You ask that the two intervals lie apart. They may overlap a little, and the difference can still
        be sure: look at its own interval.""")(needed(lambda p, q, _: 1.96 * (sqrt(p - p * p) + sqrt(q - q * q))))
    of_one = mistake("""That is enough to know one model as exactly as their difference. Two are to be
        told apart.""")(needed(lambda p, q, _: 1.96 * sqrt(p * (1 - p))))
    around_zero = mistake("""Very close. A spread is taken around the mean, and the mean of the differences is
        not zero.""")(needed(lambda p, q, differ: 1.96 * sqrt(differ)))
    rounded_down = mistake("One message too few: there is no part of a message.")(needed(half, int))
    not_squared = mistake("""The interval shrinks with the root of the number. By what must the messages grow to make it
        half as wide?""")(lambda p, q, differ: ceil(MessagesNeeded.half(p, q, differ) / abs(p - q)))
    one_error = mistake("That is one standard error. How many make a 95 % interval?")(
        needed(lambda *x: MessagesNeeded.half(*x) / 1.96)
    )


class BlindPairs(Exercise, name="fine_tuning.blind_pairs", minutes=15):
    """Return the wins of the tuned model, those of the untuned one, and the two-sided p-value of the sign test."""

    hint = """Take one pair: who stood left, what was the vote, and so who won it? Then: among the decided pairs, how
        often would a fair coin give a result at least as uneven?"""

    def inputs():
        def case(n_pairs, odds):
            left, votes = randint(2, (n_pairs,)), torch.multinomial(tensor(odds), n_pairs, replacement=True)
            return left, torch.where(votes == 2, 2, (votes + left) % 2)  # 0 of `odds` is the untuned model

        even = tensor([1, 0, 0, 1, 1, 0]), tensor([0, 1, 0, 1, 2, 2])
        return [case(12, [0.2, 0.6, 0.2]), case(30, [0.5, 0.2, 0.3]), even, case(90, [0.3, 0.55, 0.15])]

    def judged(wins: Callable[[Tensor, Tensor], tuple[int, int]], p: Callable[[int, int], float]) -> Callable:
        """Return the wins of both models and what `p` makes of them."""
        return lambda left, votes: (*(won := wins(left, votes)), p(*won))

    def won(left, votes):
        after = ((votes == 0) == (left == 1)) & (votes != 2)
        return after.sum().item(), (votes != 2).sum().item() - after.sum().item()

    def tail(after, before, sides=2.0):
        n = after + before
        return min(1.0, sides * sum(comb(n, k) for k in range(max(after, before), n + 1)) / 2**n)

    reference = judged(won, tail)
    not_unblinded = mistake("""You count who stood left. The places were drawn by lot: who
        was it?""")(judged(lambda left, votes: ((votes == 0).sum().item(), (votes == 1).sum().item()), tail))
    ties_lost = mistake("""Pairs without a winner are counted for the untuned model. Do they say anything
        for either?""")(judged(lambda x, v: (BlindPairs.won(x, v)[0], len(v) - BlindPairs.won(x, v)[0]), tail))
    turned = mistake("Your two numbers are exchanged.")(judged(lambda *x: BlindPairs.won(*x)[::-1], tail))
    one_sided = mistake("""Your p-value looks at one side only. Would you not have reported the other one winning, had
        it?""")(judged(won, lambda *x: min(1.0, BlindPairs.tail(*x, sides=1.0))))
    this_one_alone = mistake("""You take the probability of just this result. The more pairs, the smaller it is for any
        result: what about those that are more uneven still?""")(
        judged(won, lambda a, b: 2 * comb(a + b, a) / 2 ** (a + b))
    )
    above_one = mistake("""A p-value above one: both sides contain the even
        result.""")(
        judged(won, lambda a, b: 2.0 * sum(comb(a + b, k) for k in range(max(a, b), a + b + 1)) / 2 ** (a + b))
    )


class PackedMask(Exercise, name="fine_tuning.packed_mask", minutes=10):
    """Return which places of a packed row each place may look at: those of its own dialogue, up to itself."""

    hint = """Number the dialogues, and write below each place the number of its own. When may one place look at
        another? And what about the filling at the end?"""

    def inputs():
        return [([2, 3], 5), ([4, 1, 3], 10), ([1], 3), ([3, 3, 2, 1], 9)]

    def masked(allowed: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable:
        """Return a mask of the owners (T, 1) and (1, T) and of what causal attention allows (T, T)."""

        def mask(lengths, total):
            owner = torch.arange(len(lengths) + total)
            owner = torch.cat([owner.repeat_interleave(tensor(lengths + [1] * total))])[:total]
            return allowed(owner[:, None], owner[None], torch.ones(total, total, dtype=torch.bool).tril())

        return mask

    reference = masked(lambda looks, looked_at, causal: (looks == looked_at) & causal)
    causal_alone = mistake("""A place still looks into the dialogues before its own. That is how rows are packed without
        a mask.""")(masked(lambda looks, looked_at, causal: causal))
    both_ways = mistake("The dialogues are apart, but within one a place sees the future.")(
        masked(lambda a, b, _: a == b)
    )
    inverted = mistake("""Yours is true where a place must not look. Here true means
        that it may.""")(masked(lambda a, b, causal: ~((a == b) & causal)))
    without_itself = mistake("""A place does not see itself, and the first of each dialogue
        sees nothing at all.""")(masked(lambda a, b, causal: (a == b) & causal.tril(-1)))

    @mistake("The filling sees nothing: a softmax over nothing is not a number. What may it look at?")
    def empty_filling(lengths, total):
        mask = PackedMask.reference(lengths, total)
        mask[sum(lengths) :] = False
        return mask

    @mistake("Very close. You treat the filling as one more dialogue. Each place of it should see itself alone.")
    def filling_as_one(lengths, total):
        return PackedMask.reference([*lengths, total - sum(lengths)], total)


class MendPadding(Exercise, name="fine_tuning.mend_padding", minutes=10):
    """Mend the loss so that the filling has no say, and the end of each reply is learned."""

    hint = "Count the places that are to be learned, row by row, and take the mean of their losses and of no others."

    def inputs():
        return [filled_rows(3, 7, places=9), filled_rows(2, 5, 4, 8, places=8), filled_rows(1, 2, places=3)]

    def mean_of(mean: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable:
        """Return a mean of all losses, which of them are no filling, and the lengths of the rows."""

        def loss(logits, targets, lengths):
            losses = F.cross_entropy(logits.mT, targets, reduction="none")  # (B, T)
            return mean(losses, torch.arange(targets.shape[1]) < lengths[:, None], lengths).item()

        return loss

    reference = mean_of(lambda losses, real, n: losses[real].mean())
    of_all_places = as_it_stands("""The mistake is still there: fill the same rows up further, and the loss changes.
        Which places have a say in the mean?""")(mean_of(lambda losses, real, n: losses.mean()))
    without_the_end = mistake("""Now the end of each reply is left out, too, and the model never stops. By what, other
        than its id, does the end differ?""")(lambda x, y, lengths: MendPadding.reference(x, y, lengths - 1))
    one_too_many = mistake("""Very close: of each row that is filled, one filled
        place still counts.""")(lambda x, y, lengths: MendPadding.reference(x, y, lengths + 1))
    filling_counted = mistake("""The losses of the filling are gone, but its places are still counted
        below the line.""")(mean_of(lambda losses, real, n: (losses * real).mean()))
    row_by_row = mistake("""Each row has the same say, so a token of a short reply weighs more than one of
        a long reply.""")(mean_of(lambda losses, real, n: ((losses * real).sum(1) / n).mean()))


class MendPromptLoss(Exercise, name="fine_tuning.mend_prompt_loss", minutes=10):
    """Mend the targets so that only the reply is learned, from its first token to its end."""

    hint = "Write ids and targets one above the other: below each token stands the one to follow it, or -100."

    def inputs():
        return [(randint(50, (n,)), randint(50, (m,))) for n, m in ((5, 4), (1, 3), (9, 1))]

    def reference(prompt, reply):
        return torch.cat([ignored(len(prompt) - 1), reply, ignored(1)])

    all_learned = as_it_stands("""The mistake is still there: the model learns to write the customer's messages, too. At
        which places should nothing be learned?""")(lambda x, y: torch.cat([x[1:], y, ignored(1)]))
    without_the_first = mistake("""The first token of the reply is never learned. After which token is it to be said,
        and which target stands at that place?""")(lambda x, y: torch.cat([ignored(len(x)), y[1:], ignored(1)]))
    not_shifted = mistake("""Each token of the reply is the target of its own place, and the model learns to repeat what
        it reads. (Some libraries shift by themselves.)""")(lambda x, y: torch.cat([ignored(len(x)), y]))
    too_few = mistake("""You return fewer targets than there are tokens.
        What is the target of the very last place?""")(lambda x, y: torch.cat([ignored(len(x) - 1), y]))
    rolled = mistake("""All is right but the last place.
        The text is over there: is anything left to learn?""")(lambda x, y: torch.cat([ignored(len(x) - 1), y, x[:1]]))
    without_the_end = mistake("""The end of the reply is not learned:
        this model will never stop.""")(lambda x, y: torch.cat([ignored(len(x) - 1), y[:-1], ignored(2)]))


class MendNewHead(Exercise, name="fine_tuning.mend_new_head", minutes=10):
    """Mend the loading so that the read-out comes from the file, and what is really missing is counted."""

    hint = "Which weights of the model are random after the loading, and which should be those of the token table?"

    def inputs():
        norm = ("ln_f.weight", "ln_f.bias")
        return [
            (weights_of_a_file(*norm, vocab_size=9, n_embd=6), randn(2, 3, 6)),
            (weights_of_a_file(*norm, "lm_head.weight", vocab_size=7, n_embd=4), randn(1, 4, 4)),
            (weights_of_a_file("h.0.attn.bias", vocab_size=8, n_embd=4), randn(2, 2, 4)),
            (weights_of_a_file(*norm, "h.0.attn.bias", vocab_size=8, n_embd=4), randn(2, 2, 4)),
        ]

    def reference(weights, hidden):
        return opened(tied(weights), hidden, "missing")

    random_head = as_it_stands("""The mistake is still there: two loads of one file give different logits. Which part is
        new each time, and why does nobody complain?""")(lambda weights, x: opened(weights, x, "unexpected"))
    random_head_counted = mistake("""Now it is said that a weight is missing. But the read-out is still random: from
        where does a model with tied weights take it?""")(lambda weights, x: opened(weights, x, "missing"))
    unexpected_counted = mistake("""The logits are right. You count what the file holds too much. What does it hold too
        little?""")(lambda weights, x: opened(tied(weights), x, "unexpected"))
    always_tied = mistake("""One of the files has a read-out of its own, and you replace it. When is the token table to
        be used?""")(lambda weights, x: opened(weights | {"lm_head.weight": weights["wte.weight"]}, x, "missing"))

    @mistake("The logits are right. But a read-out that is filled from the token table is not missing any more.")
    def filled_and_counted(weights, hidden):
        logits, missing = opened(tied(weights), hidden, "missing")
        return logits, missing + ("lm_head.weight" not in weights)

    strict = mistake("""Now nothing goes by in silence, and nothing is opened either: the file lacks a weight that is
        there under another name.""")(lambda weights, x: opened(weights, x, "missing", strict=True))


class MendSplit(Exercise, name="fine_tuning.mend_split", minutes=10):
    """Mend the split so that no phrasing is on both sides; return the numbers of the test dialogues."""

    hint = "List the phrasings in the order in which they first appear. Which of them go to the test, and with whom?"

    def inputs():
        dialogues = in_phrasings(3, 0, 3, 1, 0, 4, 1, 1, 3, 2, 4, 0, 2, 5)
        return [(dialogues, 3), (in_phrasings(1, 1, 0, 1, 2, 0, 6, 2, 2, 6, 5, 5), 2)]

    def with_phrasings(pick: Callable[[list[str], int], list[str]]) -> Callable:
        """Return what gives the numbers of the dialogues whose phrasings are picked from all, in their order."""

        def numbers(dialogues, every):
            picked = pick(list(dict.fromkeys(phrasing for phrasing, _ in dialogues)), every)
            return tensor([i for i, (phrasing, _) in enumerate(dialogues) if phrasing in picked])

        return numbers

    reference = with_phrasings(lambda names, every: names[every - 1 :: every])
    by_dialogues = as_it_stands("""The mistake is still there: a phrasing of the test is in the training part, too. What
        is to be counted off?""")(lambda dialogues, every: torch.arange(every - 1, len(dialogues), every))
    alphabetical = mistake("""No phrasing is on both sides now, but you count them in the order of the alphabet. In
        which order should they be?""")(with_phrasings(lambda names, every: sorted(names)[every - 1 :: every]))
    from_the_first = mistake("""No phrasing is on both sides now, but you begin with the very first. Which is the one to
        begin with?""")(with_phrasings(lambda names, every: names[::every]))

    @mistake("One dialogue of each test phrasing is in the test. Where are its sisters with the same phrasing?")
    def first_of_each(dialogues, every):
        phrasings = [phrasing for phrasing, _ in dialogues]
        return tensor([phrasings.index(name) for name in list(dict.fromkeys(phrasings))[every - 1 :: every]])

    training_part = mistake("""These are the numbers of the training dialogues. The others
        were asked for.""")(with_phrasings(lambda names, every: [name for i, name in enumerate(names, 1) if i % every]))


class MendPickle(Exercise, name="fine_tuning.mend_pickle", minutes=10):
    """Mend the sending so that what travels is a safetensors file, for every model, and nothing in it can run."""

    hint = """Take the cases one by one: a plain model, one with a tensor under two names, one with a tensor that lies
        turned in memory. Who writes each of them, and who opens what has arrived?"""
    trains = ("receiver",)

    def inputs():
        kinds = (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), tied_linear, turned_linear)
        return [(kind(), kind(), FreshPath(), sender(change)) for change, kind in enumerate(kinds, start=1)]

    def reference(model, receiver, path, send):
        weight_files.save_model(model, path)
        send(path)
        weight_files.load_model(receiver, path)
        return parameters_of(receiver)

    @as_it_stands("""The mistake is still there: what you send is not a safetensors file. A pickle may run code in
        whatever program opens it, also in one less careful than yours. Which format holds only numbers?""")
    def pickled(model, receiver, path, send):
        Path(path).write_bytes(b"PK")  # so begins what torch saves by itself
        send(path)

    as_it_lies = mistake("""A plain model passes. But one tensor may have two names, and another may lie turned in
        memory. What does the error ask for?""")(partial(sent_with, lambda weight: weight))
    copies = mistake("""Two names for one tensor are no problem now. But a copy lies in memory as its original does,
        also when that is turned.""")(partial(sent_with, Tensor.clone))
    what_was_sent = mistake("""What you return is what was sent, and not what arrived. From where should the receiver
        learn it?""")(lambda model, receiver, path, send: parameters_of(model))
    never_opened = mistake("""The receiver is as it was before:
        nothing has been put into it.""")(lambda model, receiver, path, send: parameters_of(receiver))
