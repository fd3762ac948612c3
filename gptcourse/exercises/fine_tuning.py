"""The exercises of notebook 08: drawing tokens, learning from replies, and low-rank changes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache, partial
from math import sqrt
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


def normalised(x: Tensor) -> Tensor:
    return x / x.sum(-1, keepdim=True)


def keeping(drops: Callable[[Tensor, Tensor, float], Tensor]) -> Callable:
    """Return a filter that drops tokens by their probabilities in order, what each holds with those before, and p."""

    def distribution(logits, p):
        ordered, order = logits.softmax(-1).sort(dim=-1, descending=True)
        kept = ordered.masked_fill(drops(ordered, ordered.cumsum(-1), p), 0.0)
        return torch.zeros_like(kept).scatter(-1, order, normalised(kept))

    return distribution


def after_the_best(held: Tensor) -> Tensor:
    return torch.arange(held.shape[-1]) > 0


top_p = keeping(lambda ordered, held, p: (held - ordered >= p) & after_the_best(held))
without_the_crossing = keeping(lambda ordered, held, p: held > p)
without_the_crossing_but_the_best = keeping(lambda ordered, held, p: (held > p) & after_the_best(held))


def in_order_of_size(logits: Tensor, p: float) -> Tensor:
    return top_p(logits, p).sort(dim=-1, descending=True).values


def rows_to_draw(n: int, vocab_size: int, spread: float, p: float) -> tuple[Tensor, float, Tensor]:
    """Rows at which the model is more or less sure, and exponential noise to draw a token from each."""
    return spread * randn(n, vocab_size), p, torch.empty(n, vocab_size).exponential_()


def texts(*lengths: int, spread: float = 1.0) -> tuple[list[Tensor]]:
    return ([-spread * randn(length).abs() for length in lengths],)


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


class TopP(Exercise, name="fine_tuning.top_p"):
    """Keep the fewest best tokens that together hold at least p, and return a distribution over them."""

    hint = """Write down the probabilities of five tokens, the best one first, and add them up one by one. With which
        token do you have enough, and where does that token belong?"""

    def inputs():
        of_two = tensor([[0.1, 0.4], [0.6, 0.2]]).log()
        small = [(randn(12), 0.9), (tensor([0.5, 6.0, 1.0, 2.0, -1.0]), 0.5)]
        return [*small, (2 * randn(3, 10), 0.7), (randn(2, 6), 0.0), (of_two, 1.0)]

    reference = top_p
    crossing_dropped = mistake("""Where the best token alone holds more than p, nothing is left, and you divide 0 by 0.
        Is the token with which the sum reaches p needed or not?""")(without_the_crossing)
    too_early = mistake("You stop one token too early: it holds less than p.")(without_the_crossing_but_the_best)
    one_too_many = mistake("""You keep one token too many:
        did the others not hold p already?""")(keeping(lambda ordered, held, p: F.pad(held >= p, (2, 0))[..., :-2]))
    nothing_at_zero = mistake("""Very close. With p at 0 yours keeps nothing at all.
        Who should always stay?""")(keeping(lambda ordered, held, p: held - ordered >= p))
    not_normalised = mistake("""The right tokens are left, but their probabilities add up to
        less than one.""")(lambda logits, p: logits.softmax(-1) * (top_p(logits, p) > 0))
    ordered = mistake("Your probabilities stand in the order of their size. Whose are they?")(in_order_of_size)
    each_on_its_own = mistake("""You hold each token against p on its own.
        What together should reach p?""")(keeping(lambda ordered, held, p: ordered < p))
    min_p = mistake("""That is min-p: each token is held against the best one.
        Top-p looks at a sum.""")(keeping(lambda ordered, held, p: ordered < p * ordered[..., :1]))


class RepetitionPenalty(Exercise, name="fine_tuning.repetition_penalty"):
    """Make the tokens that have occurred less likely, each of them once, whatever the sign of its logit."""

    hint = """Take a logit of 2 and one of -2, each of them seen twice, and a penalty of 1.5. What should become of
        each, and what of a token that was not seen?"""

    def inputs():
        return [
            (tensor([2.0, -1.0, 0.5, -3.0, 4.0]), tensor([0, 1, 0, 3]), 1.5),
            (3 * randn(20), randint(20, (12,)), 2.0),
            (randn(6), tensor([5, 5, 5, 2, 2]), 1.2),
        ]

    def penalised(change: Callable[[Tensor, float], Tensor]) -> Callable:
        """Return a penalty that changes the logits of the tokens seen in this way."""

        def new_logits(logits, previous_ids, penalty):
            seen = torch.zeros_like(logits, dtype=torch.bool).index_fill(0, previous_ids, True)
            return torch.where(seen, change(logits, penalty), logits)

        return new_logits

    reference = penalised(lambda x, penalty: torch.where(x < 0, x * penalty, x / penalty))
    all_divided = mistake("""A negative logit that you divide comes nearer to zero, so its token becomes more likely.
        What should be done to it instead?""")(penalised(lambda x, penalty: x / penalty))
    exchanged = mistake("""The other way round: now the model
        repeats itself more.""")(penalised(lambda x, penalty: torch.where(x < 0, x / penalty, x * penalty)))

    @mistake("A token that has occurred three times is penalised three times. Here once is enough.")
    def each_time(logits, previous_ids, penalty):
        for token in previous_ids:
            logits = RepetitionPenalty.reference(logits, token[None], penalty)
        return logits

    of_all = mistake("""All tokens are penalised, those that have
        never occurred included.""")(lambda x, previous_ids, penalty: torch.where(x < 0, x * penalty, x / penalty))
    of_probabilities = mistake("""These are probabilities, which no longer add up to one. The rule
        works on logits.""")(lambda x, ids, penalty: RepetitionPenalty.all_divided(x.softmax(-1), ids, penalty))


class Perplexity(Exercise, name="fine_tuning.perplexity"):
    """Return the perplexity of all texts together, given the log-probability of each of their tokens."""

    hint = """Join the texts to a long one in your mind: what is the mean loss of its tokens, and among how many equal
        tokens would guessing have that loss?"""

    def inputs():
        return [texts(1, 3), texts(2, 9, 4), texts(1, 30), texts(*(40, 6) * 13, spread=2.0)]

    def reference(log_probs):
        return torch.cat(log_probs).mean().neg().exp().item()

    mean_perplexity = mistake("""That is the mean of the texts' perplexities: one strange text drowns all. What should
        be joined first?""")(lambda texts: torch.stack([text.mean().neg().exp() for text in texts]).mean().item())
    of_mean_losses = mistake("""Each text has the same say, however short it is. Over what should the
        mean be taken?""")(lambda texts: torch.stack([text.mean() for text in texts]).mean().neg().exp().item())
    product = mistake("""Right for short texts. A product of hundreds of probabilities is too small for the computer:
        why turn logarithms back?""")(lambda texts: torch.cat(texts).exp().prod().pow(-1 / sum(map(len, texts))).item())
    without_the_sign = mistake("""Yours lies below one. A perplexity says among how many tokens the model is as good as
        guessing.""")(lambda texts: torch.cat(texts).mean().exp().item())
    loss = mistake("That is the mean loss. One step is missing.")(lambda texts: torch.cat(texts).mean().neg().item())
    of_bits = mistake("""You raise 2 to a power, but these logarithms are natural ones. Of which number are they the
        powers?""")(lambda texts: 2 ** torch.cat(texts).mean().neg().item())
    of_the_sum = mistake("""Yours grows with the length of the texts.
        Is a long text harder for each of its tokens?""")(lambda texts: torch.cat(texts).sum().neg().exp().item())


class MaskedLoss(Exercise, name="fine_tuning.masked_loss"):
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


class StopRule(Exercise, name="fine_tuning.stop_rule"):
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


class Lora(Exercise, name="fine_tuning.lora"):
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


class Merge(Exercise, name="fine_tuning.merge"):
    """Return one matrix that does what the frozen weight and its change do together."""

    hint = "Take the frozen weight away from your result: has the rest the shape of W, and which factor is before it?"

    def inputs():
        sizes = ((6, 6, 2, 16.0), (5, 5, 1, 8.0), (3, 4, 2, 3.0), (1, 2, 4, 2.0))
        return [(*low_rank(n_out, n_in, rank), alpha) for n_out, n_in, rank, alpha in sizes]

    def reference(W, A, B, alpha):
        return W + alpha / len(A) * B @ A

    not_scaled = mistake("The change is not scaled. What is alpha for?")(lambda W, A, B, alpha: W + B @ A)
    by_alpha_alone = mistake(NO_RANK)(lambda W, A, B, alpha: W + alpha * B @ A)
    all_scaled = mistake("""You scale the frozen weight, too.
        With B at zero the result should be W itself.""")(lambda W, A, B, alpha: alpha / len(A) * (W + B @ A))
    change_turned = mistake(TURNED_CHANGE)(lambda W, A, B, alpha: W + alpha / len(A) * (B @ A).T)
    wrong_order = mistake("""Your product has the size of the rank, and not that of W. (At rank 1 it is a number, added
        everywhere.) In which order should the two stand?""")(lambda W, A, B, alpha: W + alpha / len(A) * A @ B)


class MendTemperature(Exercise, name="fine_tuning.mend_temperature"):
    """Mend the temperature so that a low one sharpens the distribution and a high one flattens it."""

    hint = """At temperature 1 nothing should change, at 0.01 the best token should get almost everything, and at 2 the
        ratio of two probabilities should be the root of what it was."""

    def inputs():
        return [(2 * randn(8), 0.5), (2 * randn(3, 6), 1.7), (100 * randn(2, 7), 0.3), (randn(3), 1e30)]

    def reference(logits, temperature):
        return (logits / temperature).softmax(-1)

    divided_twice = as_it_stands("""The mistake is still there: every temperature gives the same distribution. You
        divide, and then you divide by the sum. What is left?""")(lambda x, T: normalised(x.softmax(-1) / T))
    subtracted = mistake("""You subtract the temperature from every logit, and a softmax does not notice what all of
        them share.""")(lambda x, T: (x - T).softmax(-1))
    of_probabilities = mistake("""Now the temperature does something, but all tokens are nearly even: a softmax of
        probabilities. Numbers of which kind is it made for?""")(lambda x, T: (x.softmax(-1) / T).softmax(-1))
    without_the_sum = mistake("Your numbers do not add up to one any more.")(lambda x, T: x.softmax(-1) / T)
    upside_down = mistake("The wrong way: a high temperature makes yours surer.")(lambda x, T: (x * T).softmax(-1))
    overflowing = mistake("""Right for small logits. The exponential of a large one is infinite. What may you subtract
        from all without changing any result?""")(lambda x, T: normalised((x / T).exp()))


class MendTopP(Exercise, name="fine_tuning.mend_top_p"):
    """Mend the draw so that it chooses among the fewest best tokens that together hold at least p."""

    hint = "Print, for a row, which tokens are left and what they hold. Is it at least p, and would one fewer do?"

    def inputs():
        return [rows_to_draw(64, 8, 3.0, 0.6), rows_to_draw(128, 12, 1.5, 0.8), rows_to_draw(2, 3, 1.0, 0.7)]

    def drawn_from(distribution: Callable[[Tensor, float], Tensor]) -> Callable:
        return lambda logits, p, noise: (distribution(logits, p) / noise).argmax(-1)

    reference = drawn_from(top_p)
    crossing_dropped = as_it_stands("""The mistake is still there: where one token holds more than p, token 0 is drawn.
        How many tokens are left there?""")(drawn_from(lambda logits, p: without_the_crossing(logits, p).nan_to_num()))
    crossing_dropped_but_the_best = mistake("""The best token is always there now. At the other places the token with
        which the sum reaches p is still missing.""")(drawn_from(without_the_crossing_but_the_best))
    nothing_cut = mistake("Any token can be drawn: nothing is cut.")(drawn_from(lambda logits, p: logits.softmax(-1)))
    place = mistake("You count from the best token on. Which token stands at that place?")(drawn_from(in_order_of_size))

    @mistake("""A fair draw, but of the noise each number belongs to one token, and yours meets the tokens in the order
        of their size. Put the probabilities back in their places first.""")
    def noise_in_order(logits, p, noise):
        probabilities, order = top_p(logits, p).sort(dim=-1, descending=True)
        return order.gather(-1, (probabilities / noise).argmax(-1)[:, None])[:, 0]


class MendPadding(Exercise, name="fine_tuning.mend_padding"):
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


class MendPromptLoss(Exercise, name="fine_tuning.mend_prompt_loss"):
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


class MendNewHead(Exercise, name="fine_tuning.mend_new_head"):
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


class MendSplit(Exercise, name="fine_tuning.mend_split"):
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


class MendPickle(Exercise, name="fine_tuning.mend_pickle"):
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
