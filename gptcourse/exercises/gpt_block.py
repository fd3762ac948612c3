"""The exercises of notebook 02: a GPT block, its start, its loss and its training."""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn, randn

from gptcourse.exercises.exercise import Exercise, as_it_stands, mistake
from gptcourse.model import GPTConfig

NOTEBOOK = "02 · A GPT block"
SAMPLE_VARIANCE = "Very close: your variance divides by C - 1, as for a sample. Here it is the mean of the squares."
WRONG_DIMENSIONS = "You average over the wrong dimensions. Each token is normalised on its own, over its C numbers."


def four_parts(size: int = 8) -> tuple[Callable, ...]:
    """Two norms, a stand-in for attention and an MLP; the norms have weights, so that they differ."""
    mlp = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))
    norm = nn.LayerNorm(size)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return norm, nn.Linear(size, size), nn.RMSNorm(size), mlp


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
