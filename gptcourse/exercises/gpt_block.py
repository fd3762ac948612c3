"""The exercises of notebook 02: a GPT block, its start, its loss and its training.

A hint says what goes wrong, or asks the question that helps, and leaves the mending to the learner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import log, log2, pi, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn, randint, randn

from gptcourse.exercises.exercise import Exercise, as_it_stands, mistake
from gptcourse.model import GPTConfig

NOTEBOOK = "02 · A GPT block"
SAMPLE_VARIANCE = """Very close: your variance divides by C - 1, as one does for a sample. Here it is the plain mean of
    the squared deviations."""
WRONG_DIMENSIONS = "You average over the wrong dimensions. Each token is normalised on its own, over its C numbers."
COPIES = "At each place the answer is what the model has just read: it would learn to copy."
NOT_AS_MANY = "The targets should be as many as the inputs: one answer for each question."
MIXED_UP = """Your rows and columns are mixed up: the vocabulary should be its own dimension, and a reshape does not
    move it there. What does one row of the logits hold?"""
WRONG_SHARES = "Your probabilities add up to one along the wrong dimension: the tokens of the vocabulary compete."
NOT_SHIFTED = """The mistake is still there: a model that answers with the very token it has just read gets the best
    loss. What does the loss hold each guess against?"""
STILL_SUMS = """The steps follow more than the loss at hand. Print one weight's gradient right before each step: how
    much of it comes from this loss?"""
NO_GRADIENT = """The loss never changes, so the optimizer moves nothing. What should it find in each weight when it
    takes its step, and is it there at that moment?"""
LATE_STEP = "Each step follows the gradients of the step before. In which order should the three happen?"
UNEQUAL_BATCHES = """The mean of the batches' means gives the examples of a small last batch more say than the others.
    What should be counted?"""


def four_parts(size: int = 8) -> tuple[Callable, ...]:
    """Two norms, a stand-in for attention and an MLP; the norms have weights, so that they differ."""
    mlp = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))
    norm = nn.LayerNorm(size)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return norm, nn.Linear(size, size), nn.RMSNorm(size), mlp


def line_to_fit(rate: float = 0.1) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(3, 1)
    return model, torch.optim.SGD(model.parameters(), lr=rate)


def pairs(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    return [(randn(size, 3), randn(size, 1)) for size in sizes]


def run(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable, order: str) -> Tensor:
    """Train on each batch, doing "clear", "backward" and "step" in the order given; return the losses."""
    losses = []
    for x, y in batches:
        loss = F.mse_loss(model(x), y)
        actions = {"clear": optimizer.zero_grad, "backward": loss.backward, "step": optimizer.step}
        for word in order.split():
            actions[word]()
        losses.append(loss.detach())
    return torch.stack(losses)


def classifier(dropout: float, training: bool = True) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 4)).train(training)


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


class Residual(Exercise, name="gpt_block.residual"):
    """Wire a block: attention and MLP each read a normalised copy of the stream and add to the stream."""

    hint = "Say for each of the four parts what it reads, in which order they come, and to what its result is added."

    def inputs():
        return [
            (randn(1, 1, 2), *four_parts(2)),
            (randn(2, 3, 8), *four_parts()),
            (3 * randn(1, 5, 8) + 1, *four_parts()),
        ]

    def reference(x, ln_1, attn, ln_2, mlp):
        x = x + attn(ln_1(x))
        return x + mlp(ln_2(x))

    @mistake("""That is the order of the first transformer and of GPT-1, which normalises the stream itself. In GPT-2
        only the copies that the parts read are normalised.""")
    def post_norm(x, ln_1, attn, ln_2, mlp):
        x = ln_1(x + attn(x))
        return ln_2(x + mlp(x))

    @mistake("The parts follow each other, but nothing adds to the stream: the path past them is missing.")
    def without_additions(x, ln_1, attn, ln_2, mlp):
        return mlp(ln_2(attn(ln_1(x))))

    @mistake("You add to the normalised copy. What the parts write should be added to the stream itself.")
    def on_the_copy(x, ln_1, attn, ln_2, mlp):
        x = ln_1(x)
        x = ln_2(x + attn(x))
        return x + mlp(x)

    @mistake("""Your MLP reads the stream as it was before attention wrote to it. (Some models do so on purpose, to
        compute both at once; GPT-2 does not.)""")
    def in_parallel(x, ln_1, attn, ln_2, mlp):
        return x + attn(ln_1(x)) + mlp(ln_2(x))

    @mistake("Both parts use the same norm. Each has one of its own.")
    def with_one_norm(x, ln_1, attn, ln_2, mlp):
        x = x + attn(ln_1(x))
        return x + mlp(ln_1(x))

    @mistake("The norms are exchanged. Which of the two comes first in the block?")
    def norms_exchanged(x, ln_1, attn, ln_2, mlp):
        x = x + attn(ln_2(x))
        return x + mlp(ln_1(x))

    @mistake("What attention wrote reaches the MLP, but not the end of the block: you add to the stream as it came in.")
    def one_long_path(x, ln_1, attn, ln_2, mlp):
        return x + mlp(ln_2(x + attn(ln_1(x))))


class LayerNorm(Exercise, name="gpt_block.layer_norm"):
    """Normalise each token's vector to mean 0 and variance 1, then apply weight and bias."""

    hint = (
        "Go through this example step by step: mean, variance, the root with the eps that was given, weight and bias."
    )

    def inputs():
        far_from_zero = randn(2, 6, dtype=torch.float64) + 1e7  # where a difference of large squares is noise
        return [
            (torch.tensor([[1.0, 2.0, 4.0]]), torch.ones(3), torch.zeros(3), 0.1),
            (randn(2, 3, 8) + 1, randn(8), randn(8), 1e-5),
            (0.05 * randn(2, 8, 8), randn(8), randn(8), 1e-3),
            (torch.ones(2, 4), randn(4), randn(4), 1e-5),
            (far_from_zero, randn(6).double(), randn(6).double(), 1e-5),
        ]

    def reference(x, weight, bias, eps):
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    @mistake(SAMPLE_VARIANCE)
    def sample_variance(x, w, b, eps):
        return (x - x.mean(-1, True)) / (x.var(-1, keepdim=True) + eps).sqrt() * w + b

    @mistake(SAMPLE_VARIANCE)
    def sample_deviation(x, w, b, eps):
        return (x - x.mean(-1, True)) / (x.std(-1, keepdim=True) + eps) * w + b

    @mistake("Very close: look at the formula again, and see how far its root reaches.")
    def eps_outside(x, w, b, eps):
        return (x - x.mean(-1, True)) / (x.std(-1, correction=0, keepdim=True) + eps) * w + b

    @mistake("A vector of equal numbers has variance 0, and you divide by it. What is eps for?")
    def without_eps(x, w, b, eps):
        return (x - x.mean(-1, True)) / x.std(-1, correction=0, keepdim=True) * w + b

    @mistake("Nearly: your eps is a fixed number, and it is one of the inputs.")
    def fixed_eps(x, w, b, eps):
        return F.layer_norm(x, w.shape, w, b)

    @mistake("""The difference of two large squares loses all its digits when the mean is far from zero. Subtract the
        mean first, and square after it.""")
    def mean_of_squares(x, w, b, eps):
        variance = x.square().mean(-1, True) - x.mean(-1, True).square()
        return (x - x.mean(-1, True)) / (variance + eps).sqrt() * w + b

    @mistake("You divide by the variance. To bring a spread back to 1, what should it be divided by?")
    def by_variance(x, w, b, eps):
        return (x - x.mean(-1, True)) / (x.var(-1, correction=0, keepdim=True) + eps) * w + b

    @mistake("The mean is still in there: that is RMSNorm, layer norm's younger sister.")
    def rms(x, w, b, eps):
        return x / (x.square().mean(-1, True) + eps).sqrt() * w + b

    @mistake(WRONG_DIMENSIONS)
    def over_the_batch(x, w, b, eps):
        return (x - x.mean(0, True)) / (x.var(0, correction=0, keepdim=True) + eps).sqrt() * w + b

    @mistake(WRONG_DIMENSIONS)
    def over_the_tokens(x, w, b, eps):
        return (x - x.mean(-2, True)) / (x.var(-2, correction=0, keepdim=True) + eps).sqrt() * w + b

    @mistake(WRONG_DIMENSIONS)
    def over_everything(x, w, b, eps):
        return (x - x.mean()) / (x.var(correction=0) + eps).sqrt() * w + b

    @mistake("Normalised it is. Weight and bias are not used yet.")
    def alone(x, w, b, eps):
        return F.layer_norm(x, w.shape, eps=eps)


class Gelu(Exercise, name="gpt_block.gelu"):
    """Return the tanh form of GELU that GPT-2 and GPT-3 use."""

    hint = """Take the formula from the inside out, number by number. Far to the right the result should be almost x,
        far to the left almost 0."""

    def inputs():
        return [(torch.tensor([-1.0, 0.5, 2.0]),), (torch.linspace(-4, 4, 33),), (2 * randn(2, 3, 4),)]

    def reference(x):
        return F.gelu(x, approximate="tanh")

    @mistake("That is the exact form. GPT-2 uses the tanh form, and they differ in the fourth decimal.")
    def exact(x):
        return F.gelu(x)

    @mistake("That is a quicker approximation, with a sigmoid. GPT-2's formula has a tanh.")
    def by_sigmoid(x):
        return x * torch.sigmoid(1.702 * x)

    @mistake("That still has the corner at zero. GELU rounds it off.")
    def relu(x):
        return F.relu(x)

    @mistake("Twice too large: far to the right the result should be almost x.")
    def without_half(x):
        return x * (1 + torch.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))

    @mistake("How far does the root in front of the bracket reach?")
    def short_root(x):
        return 0.5 * x * (1 + torch.tanh(sqrt(2) / pi * (x + 0.044715 * x**3)))

    @mistake("The small correction to x should be odd in x: look at its power.")
    def squared(x):
        return 0.5 * x * (1 + torch.tanh(sqrt(2 / pi) * (x + 0.044715 * x**2)))


class InitStd(Exercise, name="gpt_block.init_std"):
    """Return the initial standard deviation of the projections that write into the residual stream."""

    hint = "How many times is something added to the stream in all, and by how much does each time add to its variance?"

    def inputs():
        return [(12,), (1,), (96,)]

    def reference(n_layer):
        return 0.02 / sqrt(2 * n_layer)

    @mistake("You count one addition for each block. How many times does a block add to the stream?")
    def once_per_block(n_layer):
        return 0.02 / sqrt(n_layer)

    @mistake("The number of additions is right. But variances add up, not standard deviations.")
    def without_root(n_layer):
        return 0.02 / (2 * n_layer)

    @mistake("That is for the other matrices. These should shrink with depth.")
    def of_other_matrices(n_layer):
        return 0.02

    @mistake("That is the factor. Which standard deviation does it scale?")
    def factor(n_layer):
        return (2 * n_layer) ** -0.5

    @mistake("Look at your brackets: what stands under the root, what below the line?")
    def lost_brackets(n_layer):
        return 0.02 / sqrt(2) * n_layer


class Parameters(Exercise, name="gpt_block.parameters"):
    """Return the exact number of parameters of a GPT-2-shaped model with a tied read-out."""

    hint = "Write down the shape of every weight and bias in one block, and compare with the shapes the model prints."

    def inputs():
        return [(50257, 1024, 768, 12), (65, 32, 16, 2), (3, 2, 1, 1)]

    def reference(vocab_size, n_positions, n_embd, n_layer):
        return GPTConfig(vocab_size, n_positions, n_embd, n_layer, n_head=1).num_parameters

    @mistake("The read-out is counted apart. It shares its matrix with the token embedding.")
    def untied(V, T, C, L):
        return (2 * V + T) * C + L * (12 * C**2 + 13 * C) + 2 * C

    @mistake("That is the rule of thumb: only the matrices in the blocks. Embeddings, biases and norms are missing.")
    def rule_of_thumb(V, T, C, L):
        return 12 * L * C**2

    @mistake("All matrices are there. What is missing are the small ones: biases and layer norms.")
    def matrices(V, T, C, L):
        return (V + T) * C + 12 * L * C**2

    @mistake("One layer norm is missing, and it stands in no block.")
    def without_the_last_norm(V, T, C, L):
        return (V + T) * C + L * (12 * C**2 + 13 * C)

    @mistake("The biases of the linear layers are missing: each output of each layer has one.")
    def without_biases(V, T, C, L):
        return (V + T) * C + L * (12 * C**2 + 4 * C) + 2 * C

    @mistake("The projection that joins the heads at the end of attention is missing.")
    def without_projection(V, T, C, L):
        return (V + T) * C + L * (11 * C**2 + 12 * C) + 2 * C


class Shift(Exercise, name="gpt_block.shift"):
    """Cut windows of tokens into inputs and targets: each target is the token that follows."""

    hint = "For a window 1 2 3 4 the model reads 1 2 3, and what should it answer at each place?"

    def inputs():
        return [(torch.tensor([[1, 2, 3, 4]]),), (torch.arange(12).view(2, 6),), (randint(65, (4, 9)),)]

    def reference(tokens):
        return tokens[:, :-1], tokens[:, 1:]

    @mistake(COPIES)
    def shortened_only(tokens):
        return tokens[:, :-1], tokens[:, :-1]

    @mistake("Your model reads a token and answers with the one before it. Time runs the other way.")
    def backwards(tokens):
        return tokens[:, 1:], tokens[:, :-1]

    @mistake("""Your last target is the first token of the window, come round from the front. A window of T + 1 tokens
        holds T questions, not T + 1.""")
    def rolled(tokens):
        return tokens, tokens.roll(-1, dims=1)

    @mistake("You cut along the batch: whole texts are dropped. Which dimension is time?")
    def along_the_batch(tokens):
        return tokens[:-1], tokens[1:]

    @mistake(NOT_AS_MANY)
    def last_token_alone(tokens):
        return tokens[:, :-1], tokens[:, -1]

    @mistake(NOT_AS_MANY)
    def all_inputs(tokens):
        return tokens, tokens[:, 1:]


class Loss(Exercise, name="gpt_block.loss"):
    """Return the mean of minus the log-probability of the right tokens, from logits."""

    hint = "At each place one number counts: the log-probability of the right token. All places count the same."

    def inputs():
        shapes = ((1, 1, 3, 1), (2, 3, 5, 1), (3, 4, 6, 200))
        return [((s * randn(B, T, V)).requires_grad_(), randint(V, (B, T))) for B, T, V, s in shapes]

    def reference(logits, targets):
        return F.cross_entropy(logits.mT, targets)

    @mistake("""Right for small logits. With large ones a probability becomes exactly 0, and its logarithm minus
        infinity. Is there a way to the log-probability that never goes through the probability?""")
    def through_probabilities(logits, targets):
        return -logits.softmax(-1).gather(-1, targets[..., None]).log().mean()

    @mistake("The function that you feed takes logits, and you give it probabilities: the softmax happens twice.")
    def of_probabilities(logits, targets):
        return F.cross_entropy(logits.softmax(-1).mT, targets)

    @mistake("That is the sum over all places. The mean does not grow with the batch.")
    def summed(logits, targets):
        return F.cross_entropy(logits.mT, targets, reduction="sum")

    @mistake("The sign: a logarithm of a probability is negative, and a loss should be positive.")
    def negative(logits, targets):
        return -F.cross_entropy(logits.mT, targets)

    @mistake("You divide by the number of texts. Every place in every text has a loss of its own.")
    def per_text(logits, targets):
        return F.cross_entropy(logits.mT, targets, reduction="sum") / len(targets)

    @mistake("That is the loss in bits. It is asked for in nats, with the natural logarithm.")
    def in_bits(logits, targets):
        return F.cross_entropy(logits.mT, targets) / log(2)

    @mistake("These are the losses of all places, and they are right. One number was asked for.")
    def of_each_place(logits, targets):
        return F.cross_entropy(logits.mT, targets, reduction="none")

    @mistake(MIXED_UP)
    def reshaped(logits, targets):
        return F.cross_entropy(logits.reshape(len(logits), logits.shape[2], logits.shape[1]), targets)

    @mistake(MIXED_UP)
    def as_they_are(logits, targets):
        return F.cross_entropy(logits, targets)

    @mistake(WRONG_SHARES)
    def over_time(logits, targets):
        return -logits.log_softmax(1).gather(-1, targets[..., None]).mean()


class FirstLoss(Exercise, name="gpt_block.first_loss"):
    """Return the loss in nats of a model that gives every token the same probability."""

    hint = "Which probability does each token get, and what is the loss of a token with that probability?"

    def inputs():
        return [(50257,), (65,), (2,)]

    def reference(vocab_size):
        return log(vocab_size)

    @mistake("That is in bits. Nats use the natural logarithm.")
    def in_bits(vocab_size):
        return log2(vocab_size)

    @mistake("That is the probability of each token. What loss does it give?")
    def probability(vocab_size):
        return 1 / vocab_size

    @mistake("The sign: a loss should be positive.")
    def negative(vocab_size):
        return -log(vocab_size)

    @mistake("You average over the vocabulary once more. Only the right token's loss counts.")
    def averaged_again(vocab_size):
        return log(vocab_size) / vocab_size


class MendSure(Exercise, name="gpt_block.mend_sure"):
    """Mend the loss so that a model that is sure and right gets almost zero."""

    hint = "Read in torch's documentation what the loss function expects as its first input."

    def inputs():
        return [
            ((s * randn(*size)).requires_grad_(), randint(size[2], size[:2]))
            for s, size in ((1, (2, 3, 5)), (20, (3, 4, 6)))
        ]

    def reference(logits, targets):
        return F.cross_entropy(logits.mT, targets)

    @as_it_stands("""The mistake is still there: however sure and right a model is, its loss stays far above zero. What
        does the loss function do with its first input before it looks at the targets?""")
    def of_probabilities(logits, targets):
        return F.cross_entropy(logits.softmax(-1).mT, targets)

    @mistake("Now no logarithm is taken anywhere, and the loss is negative. What does this loss function expect?")
    def without_logarithm(logits, targets):
        return F.nll_loss(logits.softmax(-1).mT, targets)

    @mistake("Now there is no softmax anywhere: this loss function expects log-probabilities.")
    def without_softmax(logits, targets):
        return F.nll_loss(logits.mT, targets)

    @mistake("A sigmoid squeezes the logits just as the softmax did. Does anything have to be squeezed here?")
    def of_sigmoids(logits, targets):
        return F.cross_entropy(logits.sigmoid().mT, targets)


class MendParrot(Exercise, name="gpt_block.mend_parrot"):
    """Mend the loss so that each guess is held against the token that comes next."""

    hint = "The guess made at place t belongs to the token at place t + 1 of the same text."

    def inputs():
        return [
            ((s * randn(*size)).requires_grad_(), randint(size[2], size[:2]))
            for s, size in ((1, (2, 5, 7)), (3, (3, 4, 9)))
        ]

    def reference(logits, tokens):
        return F.cross_entropy(logits[:, :-1].mT, tokens[:, 1:])

    @as_it_stands(NOT_SHIFTED)
    def not_shifted(logits, tokens):
        return F.cross_entropy(logits.mT, tokens)

    @mistake("Shifted, but the wrong way: each guess is held against the token before.")
    def backwards(logits, tokens):
        return F.cross_entropy(logits[:, 1:].mT, tokens[:, :-1])

    @mistake("Your last guess is held against the first token of the same text. Nobody knows its answer: leave it out.")
    def rolled(logits, tokens):
        return F.cross_entropy(logits.mT, tokens.roll(-1, 1))

    @mistake("""You shift after joining the texts, so the last guess of one meets the first token of the next. Shift
        each text on its own.""")
    def across_texts(logits, tokens):
        return F.cross_entropy(logits.flatten(0, 1)[:-1], tokens.flatten()[1:])

    @mistake("You shift along the batch: guesses about one text meet the tokens of another.")
    def along_the_batch(logits, tokens):
        return F.cross_entropy(logits[:-1].mT, tokens[1:])


class MendTwoWords(Exercise, name="gpt_block.mend_two_words"):
    """Mend the choice of the next token so that it can be any token of the vocabulary."""

    hint = "Every token of the vocabulary should have a chance, and the whole text should have a say."

    def inputs():
        sizes = ((2, 2, 2, 3), (4, 5, 8, 30), (7, 3, 16, 50))
        return [(randn(B, T, C), randn(V, C), nn.Linear(C, 2)) for B, T, C, V in sizes]

    def reference(hidden, token_embedding, label_head):
        return F.linear(hidden[:, -1], token_embedding).argmax(-1)

    @as_it_stands("""The mistake is still there: whatever the text, only the tokens 0 and 1 are ever chosen. How many
        scores are compared, and what is each of them a score of?""")
    def of_labels(hidden, token_embedding, label_head):
        return label_head(hidden[:, -1]).argmax(-1)

    @mistake("You read the state at the first place, which has seen one token only.")
    def from_the_first(hidden, token_embedding, label_head):
        return (hidden[:, 0] @ token_embedding.T).argmax(-1)

    @mistake("You average over the text, as one does to judge it. Which state knows what comes next?")
    def from_the_mean(hidden, token_embedding, label_head):
        return (hidden.mean(1) @ token_embedding.T).argmax(-1)

    @mistake("You choose a token at every place of the text. Only one is new: which?")
    def at_every_place(hidden, token_embedding, label_head):
        return (hidden @ token_embedding.T).argmax(-1)

    @mistake("These are the scores of all tokens, and they are right. Which token wins?")
    def scores(hidden, token_embedding, label_head):
        return hidden[:, -1] @ token_embedding.T
