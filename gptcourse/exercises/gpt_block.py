"""The exercises of notebook 02: a GPT block, its start, its loss and its training.

Each mistake is a formula that people really use. Its hint says what goes wrong, or asks the question that helps,
and leaves the mending to the learner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import log, log2, log10, pi, sqrt
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn, randint, randn

from gptcourse.exercises import Exercise, Mistake
from gptcourse.model import Block, GPTConfig

NOTEBOOK = "02 · A GPT block"
NOT_SHIFTED = (
    "The mistake is still there: a model that answers with the very token it has just read gets the best loss. "
    "What does the loss hold each guess against?"
)
STILL_SUMS = (
    "The steps follow more than the loss at hand. "
    "Print one weight's gradient right before each step: how much of it comes from this loss?"
)
NO_GRADIENT = (
    "The loss never changes, so the optimizer moves nothing. "
    "What should it find in each weight when it takes its step, and is it there at that moment?"
)
LATE_STEP = "Each step follows the gradients of the step before. In which order should the three happen?"
UNEQUAL_BATCHES = (
    "The mean of the batches' means gives the examples of a small last batch more say than the others. "
    "What should be counted?"
)


def normalised(x: Tensor, eps: float, mean_of: Callable = lambda x: x.mean(-1, keepdim=True)) -> Tensor:
    """Layer norm without weight and bias, for a given way of taking means."""
    centred = x - mean_of(x)
    return centred / (mean_of(centred**2) + eps).sqrt()


def gelu_like(x: Tensor, slope: float = sqrt(2 / pi), power: int = 3, front: float = 0.5) -> Tensor:
    return front * x * (1 + torch.tanh(slope * (x + 0.044715 * x**power)))


def four_parts() -> tuple[Callable, ...]:
    return nn.LayerNorm(8), nn.Linear(8, 8), nn.RMSNorm(8), nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))


def pre_norm(x: Tensor, ln_1: Callable, attn: Callable, ln_2: Callable, mlp: Callable) -> Tensor:
    """The package's block with these four parts in place of its own."""
    parts = SimpleNamespace(ln_1=ln_1, attn=lambda x, *_: (attn(x), None), ln_2=ln_2, mlp=mlp)
    return Block.forward(parts, x)[0]


def count(vocab_size: int, n_positions: int, n_embd: int, n_layer: int) -> int:
    return GPTConfig(vocab_size, n_positions, n_embd, n_layer, n_head=1).num_parameters


def written_std(n_layer: int) -> float:
    return GPTConfig(1, 1, 1, n_layer, n_head=1).initializer_range / sqrt(2 * n_layer)


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable, order: str) -> Tensor:
    """Train on each batch, doing "clear", "backward" and "step" in the order given; return the losses."""
    losses = []
    for x, y in batches:
        loss = F.mse_loss(model(x), y)
        actions = {"clear": optimizer.zero_grad, "backward": loss.backward, "step": optimizer.step}
        for word in order.split():
            actions[word]()
        losses.append(loss.detach())
    return torch.stack(losses)


def line_to_fit() -> tuple:
    model = nn.Linear(3, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def small_classifier(dropout: float) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 4))


def batches_of(*sizes: int, time: tuple[int, ...] = ()) -> list[tuple[Tensor, Tensor]]:
    return [(randn(size, *time, 6), randint(4, (size, *time))) for size in sizes]


def losses_of(model: nn.Module, batches: Iterable, training: bool) -> list[Tensor]:
    """Return the loss of every example, one tensor a batch."""
    model.train(training)
    with torch.no_grad():
        return [F.cross_entropy(model(x), y, reduction="none") for x, y in batches]


def hits_of(model: nn.Module, batches: Iterable) -> list[Tensor]:
    return [(model(x).argmax(-1) == y).float() for x, y in batches]


def pooled(parts: list[Tensor]) -> float:
    return torch.cat([part.flatten() for part in parts]).mean().item()


def mean_of_means(parts: list[Tensor]) -> float:
    return sum(part.mean().item() for part in parts) / len(parts)


def total(parts: list[Tensor]) -> float:
    return sum(part.sum().item() for part in parts)


EXERCISES = (
    Exercise(
        name="gpt_block.layer_norm",
        asks="Normalise each token's vector to mean 0 and variance 1, then apply weight and bias.",
        inputs=lambda: [
            (randn(2, 3, 8) + 1, randn(8), randn(8), 1e-5),
            (0.05 * randn(2, 8, 8), randn(8), randn(8), 1e-3),
            (torch.ones(2, 4), randn(4), randn(4), 1e-5),
        ],
        reference=lambda x, weight, bias, eps: F.layer_norm(x, weight.shape, weight, bias, eps),
        hint="With weight 1 and bias 0 each vector should come out with mean 0 and a mean square of almost 1.",
        mistakes=(
            *(
                Mistake(
                    formula,
                    "Very close: your variance divides by C - 1, as one does for a sample. "
                    "Here it is the plain mean of the squared deviations.",
                )
                for formula in (
                    lambda x, w, b, eps: (x - x.mean(-1, True)) / (x.var(-1, keepdim=True) + eps).sqrt() * w + b,
                    lambda x, w, b, eps: (x - x.mean(-1, True)) / (x.std(-1, keepdim=True) + eps) * w + b,
                )
            ),
            Mistake(
                lambda x, w, b, eps: (x - x.mean(-1, True)) / (x.var(-1, False, keepdim=True).sqrt() + eps) * w + b,
                "Very close: look at the formula again, and see how far its root reaches.",
            ),
            Mistake(
                lambda x, w, b, eps: normalised(x, 0.0) * w + b,
                "A vector of equal numbers has variance 0, and you divide by it. What is eps for?",
            ),
            Mistake(
                lambda x, w, b, eps: (x - x.mean(-1, True)) / (x.var(-1, False, keepdim=True) + eps) * w + b,
                "You divide by the variance. To bring a spread back to 1, what should it be divided by?",
            ),
            Mistake(
                lambda x, w, b, eps: x / (x.square().mean(-1, True) + eps).sqrt() * w + b,
                "The mean is still in there: that is RMSNorm, layer norm's younger sister.",
            ),
            *(
                Mistake(
                    lambda x, w, b, eps, dim=dim: normalised(x, eps, lambda x: x.mean(dim, keepdim=True)) * w + b,
                    "You average over the wrong dimensions. Each token is normalised on its own, over its C numbers.",
                )
                for dim in (0, 1, -2, (0, 1), (1, 2), None)
            ),
            Mistake(lambda x, w, b, eps: normalised(x, eps), "Normalised it is. Weight and bias are not used yet."),
            Mistake(
                lambda x, w, b, eps: (normalised(x, eps) + b) * w,
                "Weight and bias are both there. Should the weight stretch the bias, too?",
            ),
        ),
    ),
    Exercise(
        name="gpt_block.gelu",
        asks="Return the tanh form of GELU that GPT-2 and GPT-3 use.",
        inputs=lambda: [(torch.linspace(-4, 4, 33),), (2 * randn(2, 3, 4),)],
        reference=lambda x: F.gelu(x, approximate="tanh"),
        hint=(
            "Take the formula from the inside out. Far to the right the result should be almost x, far to "
            "the left almost 0."
        ),
        mistakes=(
            Mistake(F.gelu, "That is the exact form. GPT-2 uses the tanh form, and they differ in the fourth decimal."),
            Mistake(
                lambda x: x * torch.sigmoid(1.702 * x),
                "That is a quicker approximation, with a sigmoid. GPT-2's formula has a tanh.",
            ),
            Mistake(F.silu, "That is SiLU, the smooth ReLU of newer models. GPT-2's formula has a tanh."),
            Mistake(F.relu, "That still has the corner at zero. GELU rounds it off."),
            Mistake(
                lambda x: gelu_like(x, front=1.0), "Twice too large: far to the right the result should be almost x."
            ),
            Mistake(lambda x: gelu_like(x, slope=sqrt(2) / pi), "How far does the root in front of the bracket reach?"),
            Mistake(lambda x: gelu_like(x, slope=1.0), "A factor in front of the bracket with x is missing."),
            Mistake(
                lambda x: gelu_like(x, power=2), "The small correction to x should be odd in x: look at its power."
            ),
        ),
    ),
    Exercise(
        name="gpt_block.residual",
        asks="Wire a block: attention and MLP each read a normalised copy of the stream and add to the stream.",
        inputs=lambda: [(randn(2, 3, 8), *four_parts()), (3 * randn(1, 5, 8) + 1, *four_parts())],
        reference=pre_norm,
        hint="If attention and MLP gave zeros, the block should give back x unchanged.",
        mistakes=(
            Mistake(
                lambda x, ln_1, attn, ln_2, mlp: ln_2((y := ln_1(x + attn(x))) + mlp(y)),
                "That is the order of the first transformer and of GPT-1, which normalises the stream itself. "
                "In GPT-2 only the copies that the parts read are normalised.",
            ),
            Mistake(
                lambda x, ln_1, attn, ln_2, mlp: mlp(ln_2(attn(ln_1(x)))),
                "The parts follow each other, but nothing adds to the stream: the path past them is missing.",
            ),
            Mistake(
                lambda x, ln_1, attn, ln_2, mlp: (y := (n := ln_1(x)) + attn(n), m := ln_2(y), m + mlp(m))[-1],
                "You add to the normalised copy. What the parts write should be added to the stream itself.",
            ),
            Mistake(
                lambda x, ln_1, attn, ln_2, mlp: x + attn(ln_1(x)) + mlp(ln_2(x)),
                "Your MLP reads the stream as it was before attention wrote to it. "
                "(Some models do so on purpose, to compute both at once; GPT-2 does not.)",
            ),
            Mistake(
                lambda x, ln_1, attn, ln_2, mlp: (y := x + attn(ln_1(x))) + mlp(ln_1(y)),
                "Both parts use the same norm. Each has one of its own.",
            ),
            Mistake(lambda x, ln_1, attn, ln_2, mlp: (y := x + attn(x)) + mlp(y), "The norms are not used at all."),
            Mistake(
                lambda x, ln_1, attn, ln_2, mlp: x + mlp(ln_2(x + attn(ln_1(x)))),
                "What attention wrote reaches the MLP, but not the end of the block: you add to the "
                "stream as it came in.",
            ),
            Mistake(
                lambda x, ln_1, attn, ln_2, mlp: (y := x + mlp(ln_2(x))) + attn(ln_1(y)),
                "All parts are there. Which of the two reads the stream first?",
            ),
        ),
    ),
    Exercise(
        name="gpt_block.init_std",
        asks="Return the initial standard deviation of the projections that write into the residual stream.",
        inputs=lambda: [(12,), (1,), (96,)],
        reference=written_std,
        hint="One block should give about 0.0141, and the result should shrink slowly with depth.",
        mistakes=(
            Mistake(
                lambda n_layer: 0.02 / sqrt(n_layer),
                "You count one addition for each block. How many times does a block add to the stream?",
            ),
            Mistake(
                lambda n_layer: 0.02 / (2 * n_layer),
                "The number of additions is right. But variances add up, not standard deviations.",
            ),
            Mistake(
                lambda n_layer: 0.02 / n_layer,
                "Count the additions in a block, and remember that it is variances that add up.",
            ),
            Mistake(lambda n_layer: 0.02, "That is for the other matrices. These should shrink with depth."),
            Mistake(
                lambda n_layer: (2 * n_layer) ** -0.5, "That is the factor. Which standard deviation does it scale?"
            ),
            Mistake(
                lambda n_layer: 0.02 * sqrt(2 * n_layer), "Yours grows with depth. Should more layers write more each?"
            ),
            Mistake(
                lambda n_layer: 0.02 / sqrt(2) * n_layer,
                "Look at your brackets: what stands under the root, what below the line?",
            ),
            Mistake(
                lambda n_layer: 0.02**2 / (2 * n_layer), "That is the variance. The standard deviation was asked for."
            ),
        ),
    ),
    Exercise(
        name="gpt_block.parameters",
        asks="Return the exact number of parameters of a GPT-2-shaped model with a tied read-out.",
        inputs=lambda: [(50257, 1024, 768, 12), (65, 32, 16, 2)],
        reference=count,
        hint=(
            "Write down the shape of every weight and bias in one block, and compare with the shapes the model prints."
        ),
        mistakes=(
            Mistake(
                lambda V, T, C, L: count(V, T, C, L) + V * C,
                "The read-out is counted apart. It shares its matrix with the token embedding.",
            ),
            Mistake(
                lambda V, T, C, L: 12 * L * C**2,
                "That is the rule of thumb: only the matrices in the blocks. Embeddings, biases and norms are missing.",
            ),
            Mistake(
                lambda V, T, C, L: 12 * L * C**2 + (V + T) * C,
                "All matrices are there. What is missing are the small ones: biases and layer norms.",
            ),
            Mistake(
                lambda V, T, C, L: count(V, T, C, L) - 2 * C, "One layer norm is missing, and it stands in no block."
            ),
            Mistake(lambda V, T, C, L: count(V, T, C, L) - T * C, "The position embeddings are missing."),
            Mistake(
                lambda V, T, C, L: count(V, T, C, L) - 9 * C * L,
                "The biases of the linear layers are missing: each output of each layer has one.",
            ),
            Mistake(
                lambda V, T, C, L: count(V, T, C, L) - (2 * L + 1) * C, "A layer norm has a bias as well as a weight."
            ),
            Mistake(lambda V, T, C, L: count(V, T, C, L) - (4 * L + 2) * C, "The layer norms are missing."),
            Mistake(
                lambda V, T, C, L: count(V, T, C, L) - L * (C**2 + C),
                "The projection that joins the heads at the end of attention is missing.",
            ),
        ),
    ),
    Exercise(
        name="gpt_block.shift",
        asks="Cut windows of tokens into inputs and targets: each target is the token that follows.",
        inputs=lambda: [(torch.arange(12).view(2, 6),), (randint(65, (4, 9)),)],
        reference=lambda tokens: tuple(tokens.unfold(1, tokens.shape[1] - 1, 1).unbind(1)),
        hint="For a window 1 2 3 4 the model reads 1 2 3, and what should it answer at each place?",
        mistakes=(
            Mistake(
                lambda tokens: (tokens, tokens),
                "At each place the answer is what the model has just read: it would learn to copy.",
            ),
            Mistake(
                lambda tokens: (tokens[:, :-1], tokens[:, :-1]),
                "At each place the answer is what the model has just read: it would learn to copy.",
            ),
            Mistake(
                lambda tokens: (tokens[:, 1:], tokens[:, :-1]),
                "Your model reads a token and answers with the one before it. Time runs the other way.",
            ),
            Mistake(
                lambda tokens: (tokens, tokens.roll(-1, dims=1)),
                "Your last target is the first token of the window, come round from the front. "
                "A window of T + 1 tokens holds T questions, not T + 1.",
            ),
            Mistake(
                lambda tokens: (tokens[:-1], tokens[1:]),
                "You cut along the batch: whole texts are dropped. Which dimension is time?",
            ),
            Mistake(
                lambda tokens: (tokens[:, :-2], tokens[:, 2:]), "Your target skips a token. How far ahead is next?"
            ),
            *(
                Mistake(formula, "The targets should be as many as the inputs: one answer for each question.")
                for formula in (
                    lambda tokens: (tokens[:, :-1], tokens[:, -1]),
                    lambda tokens: (tokens[:, :-1], tokens[:, -1:]),
                    lambda tokens: (tokens, tokens[:, 1:]),
                    lambda tokens: (tokens[:, :-1], tokens),
                )
            ),
        ),
    ),
    Exercise(
        name="gpt_block.loss",
        asks="Return the mean of minus the log-probability of the right tokens, from logits.",
        inputs=lambda: [(randn(2, 3, 5), randint(5, (2, 3))), (200 * randn(3, 4, 6), randint(6, (3, 4)))],
        reference=lambda logits, targets: F.cross_entropy(logits.mT, targets),
        hint="At each place one number counts: the log-probability of the right token. All places count the same.",
        mistakes=(
            Mistake(
                lambda logits, targets: -logits.softmax(-1).gather(-1, targets[..., None]).log().mean(),
                "Right for small logits. With large ones a probability becomes exactly 0, and its logarithm "
                "minus infinity. "
                "Is there a way to the log-probability that never goes through the probability?",
            ),
            Mistake(
                lambda logits, targets: F.cross_entropy(logits.softmax(-1).mT, targets),
                "The function that you feed takes logits, and you give it probabilities: the softmax happens twice.",
            ),
            Mistake(
                lambda logits, targets: F.cross_entropy(logits.mT, targets, reduction="sum"),
                "That is the sum over all places. The mean does not grow with the batch.",
            ),
            Mistake(
                lambda logits, targets: -F.cross_entropy(logits.mT, targets),
                "The sign: a logarithm of a probability is negative, and a loss should be positive.",
            ),
            Mistake(
                lambda logits, targets: F.cross_entropy(logits.mT, targets, reduction="sum") / len(targets),
                "You divide by the number of texts. Every place in every text has a loss of its own.",
            ),
            Mistake(
                lambda logits, targets: F.cross_entropy(logits.mT, targets) / log(2),
                "That is the loss in bits. It is asked for in nats, with the natural logarithm.",
            ),
            Mistake(
                lambda logits, targets: F.cross_entropy(logits.mT, targets, reduction="none"),
                "These are the losses of all places, and they are right. One number was asked for.",
            ),
            *(
                Mistake(
                    formula,
                    "Your rows and columns are mixed up: the vocabulary should be its own dimension, and a reshape "
                    "does not move it there. What does one row of the logits hold?",
                )
                for formula in (
                    lambda logits, targets: F.cross_entropy(
                        logits.reshape(len(logits), logits.shape[2], logits.shape[1]), targets
                    ),
                    lambda logits, targets: F.cross_entropy(logits, targets),
                )
            ),
            *(
                Mistake(
                    lambda logits, targets, dim=dim: -logits.log_softmax(dim).gather(-1, targets[..., None]).mean(),
                    "Your probabilities add up to one along the wrong dimension: the tokens of the vocabulary compete.",
                )
                for dim in (0, 1)
            ),
            Mistake(
                lambda logits, targets: -logits.gather(-1, targets[..., None]).mean(),
                "That is the mean logit. A logit alone says nothing: it counts against all the others.",
            ),
            Mistake(
                lambda logits, targets: -logits.log_softmax(-1).mean(),
                "You average over the whole vocabulary. At each place only the right token's log-probability counts.",
            ),
        ),
    ),
    Exercise(
        name="gpt_block.first_loss",
        asks="Return the loss in nats of a model that gives every token the same probability.",
        inputs=lambda: [(50257,), (65,), (2,)],
        reference=lambda vocab_size: F.cross_entropy(torch.zeros(vocab_size), torch.tensor(0)).item(),
        hint="Which probability does each token get, and what is the loss of a token with that probability?",
        mistakes=(
            Mistake(log2, "That is in bits. Nats use the natural logarithm."),
            Mistake(log10, "That is the logarithm to base 10. Nats use the natural one."),
            Mistake(
                lambda vocab_size: 1 / vocab_size, "That is the probability of each token. What loss does it give?"
            ),
            Mistake(lambda vocab_size: -log(vocab_size), "The sign: a loss should be positive."),
            Mistake(
                lambda vocab_size: -log(1 / vocab_size) / vocab_size,
                "You average over the vocabulary once more. Only the right token's loss counts.",
            ),
            Mistake(
                lambda vocab_size: vocab_size, "That is the perplexity: among how many tokens the model hesitates."
            ),
        ),
    ),
    Exercise(
        name="gpt_block.mend_sure",
        asks="Mend the loss so that a model that is sure and right gets almost zero.",
        inputs=lambda: [(randn(2, 3, 5), randint(5, (2, 3))), (20 * randn(3, 4, 6), randint(6, (3, 4)))],
        reference=lambda logits, targets: F.cross_entropy(logits.mT, targets),
        hint="Read in torch's documentation what the loss function expects as its first input.",
        mistakes=(
            Mistake(
                lambda logits, targets: F.cross_entropy(logits.softmax(-1).mT, targets),
                "The mistake is still there: however sure and right a model is, its loss stays far above zero. "
                "What does the loss function do with its first input before it looks at the targets?",
                untouched=True,
            ),
            Mistake(
                lambda logits, targets: F.nll_loss(logits.softmax(-1).mT, targets),
                "Now no logarithm is taken anywhere, and the loss is negative. What does this loss function expect?",
            ),
            Mistake(
                lambda logits, targets: F.nll_loss(logits.mT, targets),
                "Now there is no softmax anywhere: this loss function expects log-probabilities.",
            ),
            Mistake(
                lambda logits, targets: F.cross_entropy(logits.argmax(-1).float(), targets.float()),
                "The arg-max has no gradient, and the loss wants the score of every token, not the winner alone.",
            ),
            Mistake(
                lambda logits, targets: F.cross_entropy(logits.sigmoid().mT, targets),
                "A sigmoid squeezes the logits just as the softmax did. Does anything have to be squeezed here?",
            ),
        ),
    ),
    Exercise(
        name="gpt_block.mend_parrot",
        asks="Mend the loss so that each guess is held against the token that comes next.",
        inputs=lambda: [(randn(2, 5, 7), randint(7, (2, 5))), (3 * randn(3, 4, 9), randint(9, (3, 4)))],
        reference=lambda logits, tokens: F.cross_entropy(logits[:, :-1].mT, tokens[:, 1:]),
        hint="The guess made at place t belongs to the token at place t + 1 of the same text.",
        mistakes=(
            Mistake(lambda logits, tokens: F.cross_entropy(logits.mT, tokens), NOT_SHIFTED, untouched=True),
            Mistake(lambda logits, tokens: F.cross_entropy(logits[:, :-1].mT, tokens[:, :-1]), NOT_SHIFTED),
            Mistake(lambda logits, tokens: F.cross_entropy(logits[:, 1:].mT, tokens[:, 1:]), NOT_SHIFTED),
            Mistake(
                lambda logits, tokens: F.cross_entropy(logits[:, 1:].mT, tokens[:, :-1]),
                "Shifted, but the wrong way: each guess is held against the token before.",
            ),
            Mistake(
                lambda logits, tokens: F.cross_entropy(logits.mT, tokens.roll(-1, 1)),
                "Your last guess is held against the first token of the same text. Nobody knows its "
                "answer: leave it out.",
            ),
            Mistake(
                lambda logits, tokens: F.cross_entropy(logits.flatten(0, 1)[:-1], tokens.flatten()[1:]),
                "You shift after joining the texts, so the last guess of one meets the first token of the next. "
                "Shift each text on its own.",
            ),
            Mistake(
                lambda logits, tokens: F.cross_entropy(logits[:-1].mT, tokens[1:]),
                "You shift along the batch: guesses about one text meet the tokens of another.",
            ),
        ),
    ),
    Exercise(
        name="gpt_block.mend_swing",
        asks="Mend the training so that each step follows the gradients of its own batch.",
        inputs=lambda: [(*line_to_fit(), [(randn(8, 3), randn(8, 1)) for _ in range(6)])],
        reference=lambda model, optimizer, batches: trained(model, optimizer, batches, "clear backward step"),
        hint=(
            "Follow the first two batches by hand: which gradients are there at each step, and which should be? "
            "Return one loss for each batch, in order."
        ),
        mistakes=(
            Mistake(
                lambda model, optimizer, batches: trained(model, optimizer, batches, "backward step"),
                STILL_SUMS,
                untouched=True,
            ),
            Mistake(lambda model, optimizer, batches: trained(model, optimizer, batches, "clear step"), NO_GRADIENT),
            *(
                Mistake(lambda model, optimizer, batches, order=order: trained(model, optimizer, batches, order), hint)
                for order, hint in (("step clear backward", LATE_STEP), ("step backward", STILL_SUMS))
            ),
        ),
    ),
    Exercise(
        name="gpt_block.mend_standstill",
        asks="Mend the training so that the loss falls.",
        inputs=lambda: [(*line_to_fit(), randn(16, 3), randn(16, 1), 6)],
        reference=lambda model, optimizer, x, y, steps: trained(
            model, optimizer, [(x, y)] * steps, "clear backward step"
        ),
        hint=(
            "Look at a weight's gradient right before the optimizer takes its step. "
            "Return one loss for each step, in order."
        ),
        mistakes=tuple(
            Mistake(
                lambda model, optimizer, x, y, steps, order=order: trained(model, optimizer, [(x, y)] * steps, order),
                hint,
                untouched=order == "clear step",
            )
            for order, hint in (
                ("clear step", NO_GRADIENT),
                ("step clear backward", LATE_STEP),
                ("backward step", STILL_SUMS),
                ("step backward", STILL_SUMS),
            )
        ),
    ),
    Exercise(
        name="gpt_block.mend_twice",
        asks="Mend the measurement so that the same model on the same data always gives the same loss.",
        inputs=lambda: [(small_classifier(0.5), batches_of(8, 8, 3)), (small_classifier(0.2), batches_of(5, 2))],
        reference=lambda model, batches: pooled(losses_of(model, batches, training=False)),
        hint="All examples count the same, and the model should be in the state in which it will be used.",
        mistakes=(
            Mistake(
                lambda model, batches: pooled(losses_of(model, batches, training=True)),
                "The mistake is still there: two measurements of one model on the same data differ. "
                "Which part of a model throws dice, and how does it know when not to?",
                untouched=True,
            ),
            Mistake(
                lambda model, batches: mean_of_means(losses_of(model, batches, training=True)),
                "Two measurements still differ, and besides, batches of different sizes now count the same.",
            ),
            Mistake(
                lambda model, batches: pooled(
                    losses_of(model, batches[:1], training=True) + losses_of(model, batches[1:], training=False)
                ),
                "The first batch is still measured in training. The switch has to come before the first look.",
            ),
            Mistake(lambda model, batches: mean_of_means(losses_of(model, batches, training=False)), UNEQUAL_BATCHES),
            Mistake(
                lambda model, batches: losses_of(model, batches, training=False)[-1].mean().item(),
                "That is the loss of the last batch alone.",
            ),
            Mistake(
                lambda model, batches: total(losses_of(model, batches, training=False)) / len(batches),
                "The sum over all examples is divided by the number of batches. How many examples were there?",
            ),
        ),
    ),
    Exercise(
        name="gpt_block.mend_percent",
        asks="Mend the accuracy so that it is the share of right answers, whatever the sizes of the batches.",
        inputs=lambda: [
            (nn.Linear(6, 4), batches_of(32, 32, 5)),
            (nn.Linear(6, 4), batches_of(8, 3, time=(7,))),
        ],
        reference=lambda model, batches: pooled(hits_of(model, batches)),
        hint="Imagine all batches poured into one: what is the share of right answers there?",
        mistakes=(
            Mistake(
                lambda model, batches: total(hits_of(model, batches)) / len(batches),
                "The mistake is still there: a share of all answers is never more than 1. "
                "What is counted above the line, and what below it?",
                untouched=True,
            ),
            Mistake(lambda model, batches: mean_of_means(hits_of(model, batches)), UNEQUAL_BATCHES),
            Mistake(
                lambda model, batches: total(hits_of(model, batches)) / sum(len(y) for _, y in batches),
                "Right for one answer per example. Where an example is a text, it has an answer at every place: "
                "are those counted below the line, too?",
            ),
            Mistake(
                lambda model, batches: total(hits_of(model, batches)) / (len(batches) * batches[0][1].numel()),
                "You take every batch to be as large as the first. The last is smaller.",
            ),
            Mistake(
                lambda model, batches: 100 * pooled(hits_of(model, batches)),
                "That is right in percent. A share lies between 0 and 1.",
            ),
        ),
    ),
    Exercise(
        name="gpt_block.mend_two_words",
        asks="Mend the choice of the next token so that it can be any token of the vocabulary.",
        inputs=lambda: [
            (randn(4, 5, 8), randn(30, 8), nn.Linear(8, 2)),
            (randn(7, 3, 16), randn(50, 16), nn.Linear(16, 2)),
        ],
        reference=lambda hidden, token_embedding, label_head: F.linear(hidden, token_embedding)[:, -1].argmax(-1),
        hint="Every token of the vocabulary should have a chance, and the whole text should have a say.",
        mistakes=(
            Mistake(
                lambda hidden, token_embedding, label_head: label_head(hidden[:, -1]).argmax(-1),
                "The mistake is still there: whatever the text, only the tokens 0 and 1 are ever chosen. "
                "How many scores are compared, and what is each of them a score of?",
                untouched=True,
            ),
            Mistake(
                lambda hidden, token_embedding, label_head: (hidden[:, 0] @ token_embedding.T).argmax(-1),
                "You read the state at the first place, which has seen one token only.",
            ),
            Mistake(
                lambda hidden, token_embedding, label_head: (hidden.mean(1) @ token_embedding.T).argmax(-1),
                "You average over the text, as one does to judge it. Which state knows what comes next?",
            ),
            Mistake(
                lambda hidden, token_embedding, label_head: (hidden @ token_embedding.T).argmax(-1),
                "You choose a token at every place of the text. Only one is new: which?",
            ),
            Mistake(
                lambda hidden, token_embedding, label_head: hidden[:, -1] @ token_embedding.T,
                "These are the scores of all tokens, and they are right. Which token wins?",
            ),
            Mistake(
                lambda hidden, token_embedding, label_head: hidden[:, -1].argmax(-1),
                "You choose among the numbers of the hidden state. They are not tokens yet.",
            ),
        ),
    ),
)
