"""The exercises of notebook 04: a training loop and its parts, honest measurements, and a detector of heads."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn, randint, randn

from gptcourse.exercises.exercise import Exercise, as_it_stands, mistake
from gptcourse.model import GPT, GPTConfig

NOTEBOOK = "04 · Training a GPT"
STILL_SUMS = """The mistake is still there: the steps follow more than the loss at hand. Print one weight's gradient
    right before each step: how much of it comes from this loss?"""
NO_GRADIENT = """The loss never changes, so the optimizer moves nothing. What should it find in each weight when it
    takes its step, and is it there at that moment?"""
LATE_STEP = "Each step follows the gradients of the step before. In which order should the parts happen?"
UNEQUAL_BATCHES = "The mean of means gives the examples of a small last batch more say. What should be counted?"
TINY = GPTConfig(vocab_size=7, n_positions=5, n_embd=8, n_layer=1, n_head=2)


def tokens_and_targets() -> tuple[Tensor, Tensor]:
    ids = randint(TINY.vocab_size, (2, 6))
    return ids[:, :-1], ids[:, 1:]


def trained(parts: str, model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable, limit: float) -> Tensor:
    """Train on each batch, doing the parts in the order given; return the losses."""
    losses = []
    for ids, targets in batches:
        loss = model(ids, targets).loss
        weights = list(model.parameters())
        actions = {
            "clear": optimizer.zero_grad,
            "backward": loss.backward,
            "clip": partial(nn.utils.clip_grad_norm_, weights, limit),
            "clip_each": lambda w=weights: [nn.utils.clip_grad_norm_(one, limit) for one in w],
            "step": optimizer.step,
        }
        for part in parts.split():
            actions[part]()
        losses.append(loss.detach())
    return torch.stack(losses)


class Loop(Exercise, name="training.loop", minutes=10):
    """Train on each batch once: clear, forward, backward, clip, step; return one loss per batch."""

    hint = "Write down what each weight's gradient is right before each of the five parts, for the first two batches."
    trains = ("model", "optimizer")

    def inputs():
        cases = []
        for rate, limit, n_batches in ((0.3, 0.5, 4), (0.1, 100.0, 3), (0.5, 0.1, 5)):
            model, batches = GPT(TINY), [tokens_and_targets() for _ in range(n_batches)]
            cases.append((model, torch.optim.SGD(model.parameters(), lr=rate), batches, limit))
        return cases

    def reference(model, optimizer, batches, max_grad_norm):
        return trained("clear backward clip step", model, optimizer, batches, max_grad_norm)

    @mistake(STILL_SUMS)
    def never_cleared(model, optimizer, batches, max_grad_norm):
        return trained("backward clip step", model, optimizer, batches, max_grad_norm)

    @mistake("The gradients are not limited. Where between the backward pass and the step should that happen?")
    def never_clipped(model, optimizer, batches, max_grad_norm):
        return trained("clear backward step", model, optimizer, batches, max_grad_norm)

    @mistake("You clip each tensor on its own, which turns the whole gradient into another direction.")
    def each_tensor(model, optimizer, batches, max_grad_norm):
        return trained("clear backward clip_each step", model, optimizer, batches, max_grad_norm)

    @mistake(LATE_STEP)
    def step_first(model, optimizer, batches, max_grad_norm):
        return trained("step clear backward clip", model, optimizer, batches, max_grad_norm)


def norm_of(gradients: list[Tensor]) -> float:
    return torch.stack([gradient.norm() for gradient in gradients]).norm().item()


class Clip(Exercise, name="training.clip", minutes=5):
    """Return the number by which all gradients are multiplied, so that their joint norm is at most max_norm."""

    hint = "All numbers of all tensors are one long vector. How long is it, and when should it become shorter?"

    def inputs():
        shapes = [(3, 2), (4,), (2, 2, 2)]
        return [([size * randn(shape) for shape in shapes], limit) for size, limit in ((3, 1.0), (0.1, 1.5), (2, 0.5))]

    def reference(gradients, max_norm):
        return min(1.0, max_norm / norm_of(gradients))

    @mistake("Gradients that are short enough should stay as they are; you make them longer.")
    def always(gradients, max_norm):
        return max_norm / norm_of(gradients)

    @mistake("The lengths of parts do not add up to the length of the whole. Think of two sides of a right angle.")
    def sum_of_norms(gradients, max_norm):
        return min(1.0, max_norm / sum(gradient.norm().item() for gradient in gradients))

    @mistake("You take the length of the longest tensor. The limit is for all of them as one vector.")
    def longest(gradients, max_norm):
        return min(1.0, max_norm / max(gradient.norm().item() for gradient in gradients))

    @mistake("You take the largest single number. The limit is for the length of all of them as one vector.")
    def largest_number(gradients, max_norm):
        return min(1.0, max_norm / max(gradient.abs().max().item() for gradient in gradients))

    @mistake("You divide by the square of the length.")
    def squared(gradients, max_norm):
        return min(1.0, max_norm / norm_of(gradients) ** 2)


def adamw(w, gradient, m, v, step, lr, weight_decay, *, corrected=True, decoupled=True, inside=False, first=0.9):
    """AdamW's step with its usual mistakes."""
    if not decoupled:
        gradient = gradient + weight_decay * w
    m, v = first * m + (1 - first) * gradient, 0.95 * v + 0.05 * gradient**2
    m_hat, v_hat = (m / (1 - first**step), v / (1 - 0.95**step)) if corrected else (m, v)
    move = m_hat / ((v_hat + 1e-8).sqrt() if inside else v_hat.sqrt() + 1e-8)
    return w - lr * (move + weight_decay * w * decoupled), m, v


class AdamWStep(Exercise, name="training.adamw", minutes=12):
    """Return the weights and the two averages after one step of AdamW, β₁ = 0.9, β₂ = 0.95, ε = 1e-8."""

    hint = (
        "First the two averages. What corrects them is for the move alone, and the decay is a share of the old weights."
    )

    def inputs():
        cases = [(randn(5), 1e-4 * randn(5), torch.zeros(5), torch.zeros(5), 1, 0.1, 0.1)]
        for step, decay in ((3, 0.5), (40, 0.1)):
            cases.append((randn(2, 3), randn(2, 3), 0.3 * randn(2, 3), torch.rand(2, 3), step, 0.05, decay))
        return cases

    def reference(w, gradient, m, v, step, lr, weight_decay):
        return adamw(w, gradient, m, v, step, lr, weight_decay)

    @mistake("Both averages begin at zero and are too small at first: what makes up for it in early steps?")
    def uncorrected(w, gradient, m, v, step, lr, weight_decay):
        return adamw(w, gradient, m, v, step, lr, weight_decay, corrected=False)

    @mistake("That is Adam with an L2 term: the decay goes through the averages. AdamW takes it off the weights alone.")
    def l2(w, gradient, m, v, step, lr, weight_decay):
        return adamw(w, gradient, m, v, step, lr, weight_decay, decoupled=False)

    @mistake("Your ε stands under the root, where it is the root of ε that counts.")
    def epsilon_inside(w, gradient, m, v, step, lr, weight_decay):
        return adamw(w, gradient, m, v, step, lr, weight_decay, inside=True)

    @mistake("Your decay is not multiplied by the learning rate.")
    def decay_alone(w, gradient, m, v, step, lr, weight_decay):
        moved, m, v = adamw(w, gradient, m, v, step, lr, 0.0)
        return moved - weight_decay * w, m, v

    @mistake("Your decay is a share of weights that have moved already. Which weights does algorithm 2 shrink?")
    def shrunk_after_the_move(w, gradient, m, v, step, lr, weight_decay):
        moved, m, v = adamw(w, gradient, m, v, step, lr, 0.0)
        return moved * (1 - lr * weight_decay), m, v

    @mistake("You return the corrected averages. The next step goes on from the averages as they were before that.")
    def corrected_returned(w, gradient, m, v, step, lr, weight_decay):
        w, m, v = adamw(w, gradient, m, v, step, lr, weight_decay)
        return w, m / (1 - 0.9**step), v / (1 - 0.95**step)

    @mistake("You use β₂ for both averages.")
    def one_beta(w, gradient, m, v, step, lr, weight_decay):
        return adamw(w, gradient, m, v, step, lr, weight_decay, first=0.95)


class WithDropout(nn.Module):
    """A language model that draws dice while it trains."""

    def __init__(self):
        super().__init__()
        self.gpt = GPT(GPTConfig(7, n_positions=5, n_embd=8, n_layer=1, n_head=2, dropout=0.3))

    def forward(self, ids, targets):
        return self.gpt(ids, targets)


def windows(tokens: Tensor, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(tokens) - 1, length):
        piece = tokens[start : start + length + 1]
        yield piece[None, :-1], piece[None, 1:]


@torch.no_grad()
def window_losses(model: nn.Module, pieces: Iterable, training: bool = False) -> list[tuple[float, int]]:
    """Return the loss and the number of targets of each window; the model is left in the mode in which it was."""
    before = model.training
    model.train(training)
    found = [(model(ids, targets).loss.item(), targets.numel()) for ids, targets in pieces]
    model.train(before)
    return found


def weighted(found: list[tuple[float, int]]) -> float:
    return sum(loss * count for loss, count in found) / sum(count for _, count in found)


class HeldOut(Exercise, name="training.held_out_loss", minutes=10):
    """Return the mean loss per token of a whole text, cut into windows, every token but the first predicted once."""

    hint = "Count the targets: a text of n tokens has n - 1. Is each of them counted once, and all of them alike?"

    def inputs():
        models = WithDropout(), WithDropout().eval(), WithDropout()
        return list(zip(models, [randint(7, (size,)) for size in (12, 11, 4)], (5, 4, 5), strict=True))

    def reference(model, tokens, length):
        return weighted(window_losses(model, windows(tokens, length)))

    @mistake("The model is measured in training: its dropout draws dice.")
    def in_training(model, tokens, length):
        return weighted(window_losses(model, windows(tokens, length), training=True))

    @mistake("The last window is shorter, and its tokens get more say than the others.")
    def mean_of_windows(model, tokens, length):
        found = window_losses(model, windows(tokens, length))
        return sum(loss for loss, _ in found) / len(found)

    @mistake("What is left at the end of the text, shorter than a window, is not counted.")
    def without_the_rest(model, tokens, length):
        pieces = list(windows(tokens, length))
        whole = [piece for piece in pieces if piece[0].shape[1] == length] or pieces
        return weighted(window_losses(model, whole))

    @mistake("The first token of each window after the first is never a target: where do your windows begin?")
    def with_gaps(model, tokens, length):
        starts = range(0, len(tokens) - 1, length + 1)
        pieces = [tokens[start : start + length + 1] for start in starts]
        return weighted(window_losses(model, [(p[None, :-1], p[None, 1:]) for p in pieces if len(p) > 1]))


class Kept:
    """A checkpoint in memory."""

    def __init__(self, model, optimizer, step):
        self.kept = copy.deepcopy((model.state_dict(), optimizer.state_dict(), step))

    def restore(self, model, optimizer) -> int:
        weights, averages, step = self.kept
        model.load_state_dict(weights)
        optimizer.load_state_dict(averages)
        return step


class WithoutAverages(Kept):
    def restore(self, model, optimizer) -> int:
        model.load_state_dict(self.kept[0])
        return self.kept[2]


class WithoutWeights(Kept):
    def restore(self, model, optimizer) -> int:
        optimizer.load_state_dict(self.kept[1])
        return self.kept[2]


class FromTheFirstBatch(Kept):
    def restore(self, model, optimizer) -> int:
        return 0 * super().restore(model, optimizer)


class OneTooFar(Kept):
    def restore(self, model, optimizer) -> int:
        return super().restore(model, optimizer) + 1


class NotCopied(Kept):
    def __init__(self, model, optimizer, step):
        self.kept = model.state_dict(), optimizer.state_dict(), step


class Resume(Exercise, name="training.resume", minutes=10):
    """Keep what a run needs to go on after `step` steps, and put it into a new model and a new optimizer."""

    hint = "What does the next step depend on: which numbers of the model, which of the optimizer, and which batch?"

    def inputs():
        return [(GPT(TINY), [tokens_and_targets() for _ in range(count)], stop) for count, stop in ((6, 3), (5, 2))]

    def through(answer, model, batches, stop):
        """Return the losses after a run was stopped, went on for a step that is lost, and was taken up again."""
        first = copy.deepcopy(model)
        adam = partial(torch.optim.AdamW, lr=0.03)
        optimizer = adam(first.parameters())
        step = partial(trained, "clear backward clip step", limit=1.0)
        step(first, optimizer, batches[:stop])
        checkpoint = answer(first, optimizer, stop)
        step(first, optimizer, batches[stop : stop + 1])
        second = GPT(TINY)
        optimizer = adam(second.parameters())
        return step(second, optimizer, batches[checkpoint.restore(second, optimizer) :])

    reference = Kept
    averages_forgotten = mistake("""The weights are back, and the optimizer begins anew. What has it learned about each
        weight that the new one lacks?""")(WithoutAverages)
    weights_forgotten = mistake("The optimizer is back, and the model is a new one.")(WithoutWeights)
    same_batches_again = mistake("""The resumed run reads the first batches again. How should it know where the old one
        stopped?""")(FromTheFirstBatch)
    a_batch_left_out = mistake("A batch is left out: that of the step after the stop. Steps count from 0.")(OneTooFar)
    not_copied = mistake("""What you keep changes when the old run goes on: it is the run's own tensors, and training
        changes them in place.""")(NotCopied)


def mean_at(weights: Tensor, back: int, rows: slice) -> Tensor:
    """Return the mean weight of each head from place i to place i - back, over the rows."""
    size = weights.shape[-1]
    places = torch.arange(size)[rows]
    return weights[:, places, places - back].mean(-1)


class Induction(Exercise, name="training.induction", minutes=12):
    """Return each head's mean weight on what followed the last time, over the second copy of n tokens."""

    hint = "The text is n tokens and the same again. For a place in the second copy, which place did you look for?"

    def inputs():
        return [(torch.softmax(2 * randn(heads, 2 * n, 2 * n), -1).tril(), n) for heads, n in ((2, 3), (3, 6), (1, 4))]

    def reference(weights, n):
        return mean_at(weights, n - 1, slice(n, None))

    @mistake("That is where the same token stood the last time. The head should look at what came after it.")
    def same_token(weights, n):
        return mean_at(weights, n, slice(n, None))

    @mistake("That is what stood before the same token. The head should look at what came after it.")
    def one_before(weights, n):
        return mean_at(weights, n + 1, slice(n + 1, None))

    @mistake("You count the first copy as well, where nothing has been repeated yet.")
    def with_the_first_copy(weights, n):
        return mean_at(weights, n - 1, slice(n - 1, None))

    @mistake("Rows are who looks, columns who is looked at: yours are exchanged.")
    def transposed(weights, n):
        return mean_at(weights.mT, n - 1, slice(n, None))

    @mistake("That is the score of a head that looks at the token just before.")
    def previous(weights, n):
        return mean_at(weights, 1, slice(n, None))


# ---- Find the mistake


def line_to_fit(rate: float = 0.1) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(3, 1)
    return model, torch.optim.SGD(model.parameters(), lr=rate)


def pairs(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    return [(randn(size, 3), randn(size, 1)) for size in sizes]


def fitted(order: str, model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable) -> Tensor:
    """Train on each batch, doing "clear", "backward" and "step" in the order given; return the losses."""
    losses = []
    for x, y in batches:
        loss = F.mse_loss(model(x), y)
        actions = {"clear": optimizer.zero_grad, "backward": loss.backward, "step": optimizer.step}
        for word in order.split():
            actions[word]()
        losses.append(loss.detach())
    return torch.stack(losses)


class MendSwing(Exercise, name="training.mend_swing", minutes=4):
    """Mend the training so that each step follows the gradients of its own batch."""

    hint = """Follow the first two batches by hand: which gradients are there at each step, and which should be? Return
        one loss for each batch, in order."""
    trains = ("model", "optimizer")

    def inputs():
        return [(*line_to_fit(), pairs(*[8] * 6)), (*line_to_fit(0.05), pairs(4, 5, 6))]

    def reference(model, optimizer, batches):
        return fitted("clear backward step", model, optimizer, batches)

    never_cleared = as_it_stands(STILL_SUMS)(partial(fitted, "backward step"))
    without_backward = mistake(NO_GRADIENT)(partial(fitted, "clear step"))
    step_first = mistake(LATE_STEP)(partial(fitted, "step clear backward"))


def classifier(dropout: float) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 4))


def labelled(*sizes: int, time: tuple[int, ...] = ()) -> list[tuple[Tensor, Tensor]]:
    return [(randn(size, *time, 6), randint(4, (size, *time))) for size in sizes]


@torch.no_grad()
def losses_of(model: nn.Module, batches: Iterable) -> list[Tensor]:
    """Return the losses of all examples, batch by batch, in the mode in which the model is."""
    return [F.cross_entropy(model(x), y, reduction="none") for x, y in batches]


def hits_of(model: nn.Module, batches: Iterable) -> list[Tensor]:
    return [(model(x).argmax(-1) == y).float() for x, y in batches]


def pooled(parts: list[Tensor]) -> float:
    return torch.cat([part.flatten() for part in parts]).mean().item()


def mean_of_means(parts: list[Tensor]) -> float:
    return sum(part.mean().item() for part in parts) / len(parts)


def total(parts: list[Tensor]) -> float:
    return sum(part.sum().item() for part in parts)


class MendTwice(Exercise, name="training.mend_twice", minutes=4):
    """Mend the measurement so that the same model on the same data always gives the same loss."""

    hint = "All examples count the same, and the model should be in the state in which it will be used."

    def inputs():
        models = classifier(0.5), classifier(0.2), classifier(0.4).eval()
        return list(zip(models, [labelled(8, 8, 3), labelled(5, 2), labelled(6, 3)], strict=True))

    def reference(model, batches):
        was_training = model.training
        result = pooled(losses_of(model.eval(), batches))
        model.train(was_training)
        return result

    @as_it_stands("""The mistake is still there: two measurements of one model on the same data differ. Which part
        throws dice, and how does it know when not to?""")
    def as_it_comes(model, batches):
        return pooled(losses_of(model, batches))

    @mistake("The first batch is still measured in training. The switch has to come before it.")
    def switched_late(model, batches):
        return pooled(losses_of(model, batches[:1]) + losses_of(model.eval(), batches[1:]))

    @mistake(UNEQUAL_BATCHES)
    def of_batches(model, batches):
        return mean_of_means(losses_of(model.eval(), batches))

    @mistake("That is the loss of the last batch alone.")
    def of_the_last(model, batches):
        return losses_of(model.eval(), batches)[-1].mean().item()


class MendPercent(Exercise, name="training.mend_percent", minutes=3):
    """Mend the accuracy so that it is the share of right answers, whatever the sizes of the batches."""

    hint = "Imagine all batches poured into one: what is the share of right answers there?"

    def inputs():
        models = [nn.Linear(6, 4) for _ in range(3)]
        return list(zip(models, [labelled(32, 32, 5), labelled(8, 3, time=(7,)), labelled(1, 5, 4)], strict=True))

    def reference(model, batches):
        return pooled(hits_of(model, batches))

    @as_it_stands("""The mistake is still there: a share is never more than 1. What is counted above the line, and what
        below it?""")
    def over_batches(model, batches):
        return total(hits_of(model, batches)) / len(batches)

    @mistake(UNEQUAL_BATCHES)
    def of_batches(model, batches):
        return mean_of_means(hits_of(model, batches))

    @mistake("""Right for one answer per example. A text has an answer at every place: are those counted below the
        line?""")
    def per_text(model, batches):
        return total(hits_of(model, batches)) / sum(len(y) for _, y in batches)

    @mistake("You take every batch to be as large as the first. The last is smaller.")
    def equal_batches(model, batches):
        return total(hits_of(model, batches)) / (len(batches) * batches[0][1].numel())

    @mistake("That is right in percent. A share lies between 0 and 1.")
    def in_percent(model, batches):
        return 100 * pooled(hits_of(model, batches))
