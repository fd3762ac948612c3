"""The exercises of notebook 02: a GPT block, its start and its loss."""

from __future__ import annotations

from collections.abc import Callable
from math import log, log2, pi, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn, randint, randn

from gptcourse.exercises.exercise import Exercise, as_it_stands, mistake
from gptcourse.model import GPTConfig

NOTEBOOK = "02 · A GPT block"
SAMPLE_VARIANCE = "Very close: your variance divides by C - 1, as for a sample. Here it is the mean of the squares."
WRONG_DIMENSIONS = "You average over the wrong dimensions. Each token is normalised on its own, over its C numbers."
NOT_AS_MANY = "The targets should be as many as the inputs: one answer for each question."
MIXED_UP = """Your rows and columns are mixed up: the vocabulary should be its own dimension, and a reshape does not
    move it there. What does one row of the logits hold?"""


def four_parts(size: int = 8) -> tuple[Callable, ...]:
    """Two norms, a stand-in for attention and an MLP; the norms have weights, so that they differ."""
    mlp = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))
    norm = nn.LayerNorm(size)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return norm, nn.Linear(size, size), nn.RMSNorm(size), mlp


def guesses(*sizes: tuple) -> list[tuple[Tensor, Tensor]]:
    """Logits (B, T, V) with a spread, and tokens (B, T)."""
    return [((spread * randn(B, T, V)).requires_grad_(), randint(V, (B, T))) for B, T, V, spread in sizes]


def added(x: Tensor, part: Callable, norm: Callable) -> Tensor:
    return x + part(norm(x))


class Residual(Exercise, name="gpt_block.residual"):
    """Wire a block: attention and MLP each read a normalised copy of the stream and add to the stream."""

    hint = "Say for each of the four parts what it reads, in which order they come, and to what its result is added."

    def inputs():
        large = 3 * randn(1, 5, 8) + 1
        return [(randn(1, 1, 2), *four_parts(2)), (randn(2, 3, 8), *four_parts()), (large, *four_parts())]

    def reference(x, ln_1, attn, ln_2, mlp):
        x = x + attn(ln_1(x))
        return x + mlp(ln_2(x))

    @mistake("""That is the order of the first transformer and of GPT-1, which normalises the stream itself. In GPT-2
        only the copies that the parts read are normalised.""")
    def post_norm(x, ln_1, attn, ln_2, mlp):
        x = ln_1(x + attn(x))
        return ln_2(x + mlp(x))

    without_additions = mistake("""The parts follow each other, but nothing adds to the stream: the path past them is
        missing.""")(lambda x, ln_1, attn, ln_2, mlp: mlp(ln_2(attn(ln_1(x)))))

    @mistake("You add to the normalised copy. What the parts write should be added to the stream itself.")
    def on_the_copy(x, ln_1, attn, ln_2, mlp):
        x = ln_1(x)
        x = ln_2(x + attn(x))
        return x + mlp(x)

    in_parallel = mistake("""Your MLP reads the stream as it was before attention wrote to it. (Some models do so to
        compute both at once; GPT-2 does not.)""")(lambda x, ln_1, attn, ln_2, mlp: x + attn(ln_1(x)) + mlp(ln_2(x)))
    with_one_norm = mistake("""Both parts use the same norm.
        Each has one of its own.""")(lambda x, ln_1, attn, ln_2, mlp: added(added(x, attn, ln_1), mlp, ln_1))
    norms_exchanged = mistake("""The norms are exchanged. Which of the two comes first
        in the block?""")(lambda x, ln_1, attn, ln_2, mlp: added(added(x, attn, ln_2), mlp, ln_1))
    one_long_path = mistake("""What attention wrote reaches the MLP, but not the end of the block: you add to the stream
        as it came in.""")(lambda x, ln_1, attn, ln_2, mlp: x + mlp(ln_2(x + attn(ln_1(x)))))


class LayerNorm(Exercise, name="gpt_block.layer_norm"):
    """Normalise each token's vector to mean 0 and variance 1, then apply weight and bias."""

    hint = "Go through this example step by step: mean, variance, the root with the given eps, weight and bias."

    def inputs():
        far_from_zero = randn(2, 6, dtype=torch.float64) + 1e7  # where a difference of large squares is noise
        return [
            (torch.tensor([[1.0, 2.0, 4.0]]), torch.ones(3), torch.zeros(3), 0.1),
            (randn(2, 3, 8) + 1, randn(8), randn(8), 1e-5),
            (0.05 * randn(2, 8, 8), randn(8), randn(8), 1e-3),
            (torch.ones(2, 4), randn(4), randn(4), 1e-5),
            (far_from_zero, randn(6).double(), randn(6).double(), 1e-5),
        ]

    def divided_by(spread: Callable[[Tensor, float], Tensor]) -> Callable:
        """Return a layer norm that divides by this spread of x, given eps."""
        return lambda x, w, b, eps: (x - x.mean(-1, True)) / spread(x, eps) * w + b

    def normalised_over(dim: int | None) -> Callable:
        """Return a layer norm that takes the mean and the variance over this dimension (None: over everything)."""
        return lambda x, w, b, eps: (
            (x - x.mean(dim, True)) / (x.var(dim, correction=0, keepdim=True) + eps).sqrt() * w + b
        )

    def reference(x, weight, bias, eps):
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    sample_variance = mistake(SAMPLE_VARIANCE)(divided_by(lambda x, eps: (x.var(-1, keepdim=True) + eps).sqrt()))
    sample_deviation = mistake(SAMPLE_VARIANCE)(divided_by(lambda x, eps: x.std(-1, keepdim=True) + eps))
    eps_outside = mistake("""Very close: look at the formula again, and see how far
        its root reaches.""")(divided_by(lambda x, eps: x.std(-1, correction=0, keepdim=True) + eps))
    without_eps = mistake("""A vector of equal numbers has variance 0, and you divide by it.
        What is eps for?""")(divided_by(lambda x, eps: x.std(-1, correction=0, keepdim=True)))
    fixed = mistake("""Nearly: your eps is a fixed number, and it is one
        of the inputs.""")(lambda x, w, b, _: F.layer_norm(x, w.shape, w, b))
    mean_of_squares = mistake("""The difference of two large squares loses all digits when the mean is far
        from zero.""")(divided_by(lambda x, eps: (x.square().mean(-1, True) - x.mean(-1, True).square() + eps).sqrt()))
    by_variance = mistake("""You divide by the variance. To bring a spread back to 1, what should it
        be divided by?""")(divided_by(lambda x, eps: x.var(-1, correction=0, keepdim=True) + eps))
    rms = mistake("""The mean is still in there: that is RMSNorm, layer
        norm's younger sister.""")(lambda x, w, b, eps: x / (x.square().mean(-1, True) + eps).sqrt() * w + b)
    over_the_batch = mistake(WRONG_DIMENSIONS)(normalised_over(0))
    over_the_tokens = mistake(WRONG_DIMENSIONS)(normalised_over(-2))
    over_everything = mistake(WRONG_DIMENSIONS)(normalised_over(None))
    alone = mistake("Normalised; now weight and bias.")(lambda x, w, b, eps: F.layer_norm(x, w.shape, eps=eps))


class Gelu(Exercise, name="gpt_block.gelu"):
    """Return the tanh form of GELU that GPT-2 and GPT-3 use."""

    hint = "Take the formula from the inside out. Far to the right it should be almost x, far to the left almost 0."

    def inputs():
        return [(torch.tensor([-1.0, 0.5, 2.0]),), (torch.linspace(-4, 4, 33),), (2 * randn(2, 3, 4),)]

    def reference(x):
        return F.gelu(x, approximate="tanh")

    exact = mistake("That is the exact form. GPT-2's tanh form differs in the fourth decimal.")(F.gelu)
    by_sigmoid = mistake("That is quicker, with a sigmoid. GPT-2 has a tanh.")(lambda x: x * torch.sigmoid(1.702 * x))
    relu = mistake("That still has the corner at zero. GELU rounds it off.")(F.relu)
    without_half = mistake("""Twice too large: far to the right the result should
        be almost x.""")(lambda x: x * (1 + torch.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))))
    short_root = mistake("""How far does the root in front of
        the bracket reach?""")(lambda x: 0.5 * x * (1 + torch.tanh(sqrt(2) / pi * (x + 0.044715 * x**3))))
    squared = mistake("""The small correction to x should be odd in x:
        look at its power.""")(lambda x: 0.5 * x * (1 + torch.tanh(sqrt(2 / pi) * (x + 0.044715 * x**2))))


class InitStd(Exercise, name="gpt_block.init_std"):
    """Return the initial standard deviation of the projections that write into the residual stream."""

    hint = "How many times is something added to the stream in all, and by how much does each time add to its variance?"

    def inputs():
        return [(12,), (1,), (96,)]

    def reference(n_layer):
        return 0.02 / sqrt(2 * n_layer)

    once_per_block = mistake("How many times does a block add to the stream?")(lambda L: 0.02 / sqrt(L))
    without_root = mistake("The number of additions is right. But variances add up.")(lambda L: 0.02 / (2 * L))
    of_other_matrices = mistake("That is for the other matrices. These should shrink with depth.")(lambda L: 0.02)
    factor = mistake("That is the factor. Which standard deviation does it scale?")(lambda L: (2 * L) ** -0.5)
    lost_brackets = mistake("Your brackets: what stands under the root, what below?")(lambda L: 0.02 / sqrt(2) * L)


class Parameters(Exercise, name="gpt_block.parameters"):
    """Return the exact number of parameters of a GPT-2-shaped model with a tied read-out."""

    hint = "Write down the shape of every weight and bias in one block, and compare with the shapes the model prints."

    def inputs():
        return [(50257, 1024, 768, 12), (65, 32, 16, 2), (3, 2, 1, 1)]

    def reference(vocab_size, n_positions, n_embd, n_layer):
        return GPTConfig(vocab_size, n_positions, n_embd, n_layer, n_head=1).num_parameters

    untied = mistake("""The read-out is counted apart. It shares its matrix with
        the token embedding.""")(lambda V, T, C, L: (2 * V + T) * C + L * (12 * C**2 + 13 * C) + 2 * C)
    rule_of_thumb = mistake("""That is the rule of thumb: only the matrices in the blocks. Embeddings, biases and norms
        are missing.""")(lambda V, T, C, L: 12 * L * C**2)
    matrices = mistake("""All matrices are there.
        What is missing are the small ones: biases and layer norms.""")(lambda V, T, C, L: (V + T) * C + 12 * L * C**2)
    without_the_last_norm = mistake("""One layer norm is missing, and it stands
        in no block.""")(lambda V, T, C, L: (V + T) * C + L * (12 * C**2 + 13 * C))
    without_biases = mistake("""The biases of the linear layers are missing:
        each output of each layer has one.""")(lambda V, T, C, L: (V + T) * C + L * (12 * C**2 + 4 * C) + 2 * C)
    without_projection = mistake("""The projection that joins the heads at the end of
        attention is missing.""")(lambda V, T, C, L: (V + T) * C + L * (11 * C**2 + 12 * C) + 2 * C)


class Shift(Exercise, name="gpt_block.shift"):
    """Cut windows of tokens into inputs and targets: each target is the token that follows."""

    hint = "For a window 1 2 3 4 the model reads 1 2 3, and what should it answer at each place?"

    def inputs():
        return [(torch.tensor([[1, 2, 3, 4]]),), (torch.arange(12).view(2, 6),), (randint(65, (4, 9)),)]

    def reference(tokens):
        return tokens[:, :-1], tokens[:, 1:]

    shortened_only = mistake("""At each place the answer is what the model has just read:
        it would learn to copy.""")(lambda tokens: (tokens[:, :-1], tokens[:, :-1]))
    backwards = mistake("""Your model reads a token and answers with the one before it.
        Time runs the other way.""")(lambda tokens: (tokens[:, 1:], tokens[:, :-1]))
    rolled = mistake("""Your last target is the first token of the window, come round from the front. A window of T + 1
        tokens holds T questions, not T + 1.""")(lambda tokens: (tokens, tokens.roll(-1, dims=1)))
    along_the_batch = mistake("""You cut along the batch:
        whole texts are dropped. Which dimension is time?""")(lambda tokens: (tokens[:-1], tokens[1:]))
    last_token_alone = mistake(NOT_AS_MANY)(lambda tokens: (tokens[:, :-1], tokens[:, -1]))
    all_inputs = mistake(NOT_AS_MANY)(lambda tokens: (tokens, tokens[:, 1:]))


class Loss(Exercise, name="gpt_block.loss"):
    """Return the mean of minus the log-probability of the right tokens, from logits."""

    hint = "At each place one number counts: the log-probability of the right token. All places count the same."

    def inputs():
        return guesses((1, 1, 3, 1), (2, 3, 5, 1), (3, 4, 6, 200))

    def reference(logits, targets):
        return F.cross_entropy(logits.mT, targets)

    through_probabilities = mistake("""Right for small logits. With large ones a probability becomes exactly 0, and its
        logarithm minus infinity. Is there a way to the log-probability that never goes
        through the probability?""")(lambda x, y: -x.softmax(-1).gather(-1, y[..., None]).log().mean())
    of_probabilities = mistake("""The function that you feed takes logits, and you give it probabilities: the softmax
        happens twice.""")(lambda x, y: F.cross_entropy(x.softmax(-1).mT, y))
    summed = mistake("""That is the sum over all places.
        The mean does not grow with the batch.""")(lambda x, y: F.cross_entropy(x.mT, y, reduction="sum"))
    negative = mistake("The sign: a loss should be positive.")(lambda x, y: -F.cross_entropy(x.mT, y))
    per_text = mistake("""You divide by the number of texts. Every place in every text has a loss
        of its own.""")(lambda x, y: F.cross_entropy(x.mT, y, reduction="sum") / len(y))
    in_bits = mistake("That is the loss in bits. Nats are asked for.")(lambda x, y: F.cross_entropy(x.mT, y) / log(2))
    of_each_place = mistake("""These are the losses of all places, and they are right.
        One number was asked for.""")(lambda x, y: F.cross_entropy(x.mT, y, reduction="none"))
    reshaped = mistake(MIXED_UP)(lambda x, y: F.cross_entropy(x.reshape(len(x), x.shape[2], x.shape[1]), y))
    as_they_are = mistake(MIXED_UP)(lambda x, y: F.cross_entropy(x, y))
    over_time = mistake("""Your probabilities add up to one along the wrong dimension: the tokens of the vocabulary
        compete.""")(lambda x, y: -x.log_softmax(1).gather(-1, y[..., None]).mean())


class FirstLoss(Exercise, name="gpt_block.first_loss"):
    """Return the loss in nats of a model that gives every token the same probability."""

    hint = "Which probability does each token get, and what is the loss of a token with that probability?"

    def inputs():
        return [(50257,), (65,), (2,)]

    def reference(vocab_size):
        return log(vocab_size)

    in_bits = mistake("That is in bits. Nats use the natural logarithm.")(lambda V: log2(V))
    probability = mistake("That is the probability of each token. What loss does it give?")(lambda V: 1 / V)
    negative = mistake("The sign: a loss should be positive.")(lambda V: -log(V))
    averaged = mistake("You average over the vocabulary. Only the right token counts.")(lambda V: log(V) / V)


class MendSure(Exercise, name="gpt_block.mend_sure"):
    """Mend the loss so that a model that is sure and right gets almost zero."""

    hint = "Read in torch's documentation what the loss function expects as its first input."

    def inputs():
        return guesses((2, 3, 5, 1), (3, 4, 6, 20))

    def reference(logits, targets):
        return F.cross_entropy(logits.mT, targets)

    of_probabilities = as_it_stands("""The mistake is still there: however sure and right a model is, its loss stays far
        above zero. What does the loss function do with its first input before it looks
        at the targets?""")(lambda x, y: F.cross_entropy(x.softmax(-1).mT, y))
    without_logarithm = mistake("""Now no logarithm is taken anywhere, and the loss is negative. What does this loss
        function expect?""")(lambda x, y: F.nll_loss(x.softmax(-1).mT, y))
    without_softmax = mistake("""Now there is no softmax anywhere:
        this loss function expects log-probabilities.""")(lambda x, y: F.nll_loss(x.mT, y))
    of_sigmoids = mistake("""A sigmoid squeezes the logits just as the softmax did. Does anything have to be squeezed
        here?""")(lambda x, y: F.cross_entropy(x.sigmoid().mT, y))


class MendParrot(Exercise, name="gpt_block.mend_parrot"):
    """Mend the loss so that each guess is held against the token that comes next."""

    hint = "The guess made at place t belongs to the token at place t + 1 of the same text."

    def inputs():
        return guesses((2, 5, 7, 1), (3, 4, 9, 3))

    def reference(logits, tokens):
        return F.cross_entropy(logits[:, :-1].mT, tokens[:, 1:])

    not_shifted = as_it_stands("""The mistake is still there: a model that answers with the very token it has just read
        gets the best loss. What does the loss hold each guess against?""")(lambda x, y: F.cross_entropy(x.mT, y))
    backwards = mistake("""Shifted, but the wrong way:
        each guess is held against the token before.""")(lambda x, y: F.cross_entropy(x[:, 1:].mT, y[:, :-1]))
    rolled = mistake("""Your last guess is held against the first token of the same text. Nobody knows its answer: leave
        it out.""")(lambda x, y: F.cross_entropy(x.mT, y.roll(-1, 1)))
    across_texts = mistake("""You shift after joining the texts, so the last guess of one meets the first token of the
        next. Shift each text on its own.""")(lambda x, y: F.cross_entropy(x.flatten(0, 1)[:-1], y.flatten()[1:]))
    along_the_batch = mistake("""You shift along the batch:
        guesses about one text meet the tokens of another.""")(lambda x, y: F.cross_entropy(x[:-1].mT, y[1:]))


class MendTwoWords(Exercise, name="gpt_block.mend_two_words"):
    """Mend the choice of the next token so that it can be any token of the vocabulary."""

    hint = "Every token of the vocabulary should have a chance, and the whole text should have a say."

    def inputs():
        sizes = ((2, 2, 2, 3), (4, 5, 8, 30), (7, 3, 16, 50))
        return [(randn(B, T, C), randn(V, C), nn.Linear(C, 2)) for B, T, C, V in sizes]

    def reference(hidden, token_embedding, label_head):
        return F.linear(hidden[:, -1], token_embedding).argmax(-1)

    of_labels = as_it_stands("""The mistake is still there: whatever the text, only the tokens 0 and 1 are ever chosen.
        How many scores are compared, and of what?""")(lambda x, table, head: head(x[:, -1]).argmax(-1))
    of_first = mistake("""You read the state at the first place, which has seen
        one token only.""")(lambda x, table, head: (x[:, 0] @ table.T).argmax(-1))
    from_the_mean = mistake("""You average over the text, as one does to judge it.
        Which state knows what comes next?""")(lambda x, table, head: (x.mean(1) @ table.T).argmax(-1))
    at_all = mistake("""You choose a token at every place of the text.
        Only one is new: which?""")(lambda x, table, head: (x @ table.T).argmax(-1))
    scores = mistake("These are the scores of all tokens. Which token wins?")(lambda x, table, head: x[:, -1] @ table.T)
