"""The exercises of notebook 03: the parts of a GPT block, and the whole GPT."""

from __future__ import annotations

from collections.abc import Callable
from math import log, pi, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn, randint, randn

from gptcourse.exercises.attention import MultiHeadAttention
from gptcourse.exercises.exercise import Exercise, as_it_stands, mistake
from gptcourse.model import GPT, GPTConfig, GPTOutput

NOTEBOOK = "03 · A GPT block"
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


class MendPath(Exercise, name="gpt_block.mend_path"):
    """Mend the block so that the stream passes by untouched and both parts add to it."""

    hint = "Follow the stream with a finger from left to right. Is it ever replaced by something else?"
    inputs = Residual.inputs
    reference = Residual.reference

    @as_it_stands("""The mistake is still there: what came in is lost on the way. Which line puts something in the place
        of the stream, instead of beside it?""")
    def on_the_copy(x, ln_1, attn, ln_2, mlp):
        x = ln_1(x)
        x = x + attn(x)
        x = ln_2(x)
        return x + mlp(x)

    @mistake("The first path is mended. The second part still replaces the stream by its normalised copy.")
    def second_replaced(x, ln_1, attn, ln_2, mlp):
        x = ln_2(x + attn(ln_1(x)))
        return x + mlp(x)

    @mistake("The second path is mended. The first part still replaces the stream by its normalised copy.")
    def first_replaced(x, ln_1, attn, ln_2, mlp):
        x = ln_1(x)
        x = x + attn(x)
        return x + mlp(ln_2(x))

    @mistake("Now nothing adds to the stream: only the last part's result is left.")
    def without_additions(x, ln_1, attn, ln_2, mlp):
        return mlp(ln_2(attn(ln_1(x))))


# ---- Whole parts: the check copies weights in by name, and compares what comes out


def with_weights(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """Return the module in evaluation mode, its weights replaced by those of the same names."""
    module.load_state_dict(weights, strict=False)
    return module.eval()


class Mlp(nn.Module):
    def __init__(self, n_embd):
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(n_embd, 4 * n_embd), nn.Linear(4 * n_embd, n_embd)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class PlainBlock(nn.Module):
    """A block of GPT-2 whose parameters have the names of transformers."""

    def __init__(self, n_embd, n_head):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(n_embd), MultiHeadAttention(n_embd, n_head)
        self.ln_2, self.mlp = nn.LayerNorm(n_embd), Mlp(n_embd)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class WholeBlock(Exercise, name="gpt_block.block"):
    """Write a block as a module, built from the width and the number of heads: (B, T, C) -> (B, T, C)."""

    hint = "Compare with your wiring: which part reads what, and to what is its result added? Then look at the names."

    def inputs():
        cases = []
        for n_embd, n_head, shape in ((4, 2, (1, 3)), (8, 4, (2, 5)), (6, 1, (1, 4))):
            block = PlainBlock(n_embd, n_head)
            weights = {name: randn(value.shape) / 2 for name, value in block.state_dict().items()}
            cases.append((n_head, weights, randn(*shape, n_embd)))
        return cases

    def through(answer, n_head, weights, x):
        return with_weights(answer(x.shape[-1], n_head), weights)(x)

    reference = PlainBlock

    @mistake("The stream itself is normalised. Only the copies that the parts read should be.")
    class PostNorm(PlainBlock):
        def forward(self, x):
            x = self.ln_1(x + self.attn(x))
            return self.ln_2(x + self.mlp(x))

    @mistake("Nothing adds to the stream: the path past the parts is missing.")
    class WithoutAdditions(PlainBlock):
        def forward(self, x):
            return self.mlp(self.ln_2(self.attn(self.ln_1(x))))

    @mistake("Your MLP reads the stream as it was before attention wrote to it.")
    class InParallel(PlainBlock):
        def forward(self, x):
            return x + self.attn(self.ln_1(x)) + self.mlp(self.ln_2(x))

    @mistake("The exact form of the GELU, or another curve: GPT-2 computes it with tanh, and the decimals differ.")
    class ExactGelu(PlainBlock):
        def forward(self, x):
            x = x + self.attn(self.ln_1(x))
            return x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x))))


def loss_and_logits(model: nn.Module, ids: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    output = model(ids, targets)
    return output.logits, output.loss, model(ids).logits


class WholeGPT(Exercise, name="gpt_block.whole"):
    """Write the whole GPT as a module, built from a GPTConfig: ids, and targets if given, to logits and loss."""

    hint = """Go from below: token and position vectors, the blocks in their order, the last norm, the LM head. Are the
        names those of GPT-2, and is the LM head the token table?"""

    def inputs():
        cases = []
        for n_layer, n_head, tokens in ((1, 1, 3), (2, 2, 5), (3, 4, 4)):
            config = GPTConfig(vocab_size=11, n_positions=6, n_embd=8, n_layer=n_layer, n_head=n_head)
            weights = {name: randn(w.shape) / 2 for name, w in GPT(config).state_dict().items()}
            weights["lm_head.weight"] = weights["wte.weight"]
            ids = randint(11, (2, tokens + 1))
            cases.append((config, weights, ids[:, :-1].clone(), ids[:, 1:].clone()))
        return cases

    def through(answer, config, weights, ids, targets):
        """Logits and loss with given weights; then the loss of a fresh model, which should be near ln V."""
        model = answer(config)
        if model.lm_head.weight is not model.wte.weight:
            raise ValueError("the LM head and the token table are not one tensor")
        fresh = answer(GPTConfig(vocab_size=50, n_positions=6, n_embd=64, n_layer=2, n_head=2))
        probe = torch.arange(50)[:48].view(8, 6)
        first = fresh(probe, probe.roll(1, 0)).loss
        near = "near ln V" if abs(first.item() - log(50)) < 0.3 else f"{first.item():.1f}, and ln V is {log(50):.1f}"
        return (*loss_and_logits(with_weights(model, weights), ids, targets), f"a first loss {near}")

    reference = GPT

    @mistake("""Your first loss is far from that of a model that knows nothing. Every matrix and table should begin with
        small random numbers; with the library's own start the table that is also the LM head is far too large.""")
    class NotInitialised(GPT):
        def __init__(self, config):
            super().__init__(config)
            nn.init.normal_(self.wte.weight)

    @mistake("The positions are missing: your model cannot tell the order of the tokens.")
    class WithoutPositions(GPT):
        def _embed(self, ids, seen):
            return self.wte(ids)

    @mistake("The norm after the last block is missing.")
    class WithoutLastNorm(GPT):
        def forward(self, ids, targets=None):
            x = self._embed(ids, 0)
            for block in self.h:
                x, _ = block(x)
            return as_output(self.lm_head(x), targets)

    @mistake("Your blocks run in the wrong order: the first one should read the embeddings.")
    class FromTheLast(GPT):
        def forward(self, ids, targets=None):
            x = self._embed(ids, 0)
            for block in reversed(self.h):
                x, _ = block(x)
            return as_output(self.lm_head(self.ln_f(x)), targets)

    @mistake("You use one and the same block again and again.")
    class OneBlock(GPT):
        def forward(self, ids, targets=None):
            x = self._embed(ids, 0)
            for _ in self.h:
                x, _ = self.h[0](x)
            return as_output(self.lm_head(self.ln_f(x)), targets)


def as_output(logits: Tensor, targets: Tensor | None) -> GPTOutput:
    loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return GPTOutput(logits, loss)


def renamed(
    weights: dict[str, Tensor], turned=("c_attn.weight", "c_proj.weight", "c_fc.weight"), head=True
) -> dict[str, Tensor]:
    """Return the weights of a GPT-2 file under our names, the matrices that end in `turned` transposed."""
    new = {}
    for name, value in weights.items():
        new[name.removeprefix("transformer.")] = value.T if name.endswith(tuple(turned)) else value
    return new | ({"lm_head.weight": new["wte.weight"]} if head else {})


class OpenWeights(Exercise, name="gpt_block.open"):
    """Return the weights of a GPT-2 file under the names and in the shapes of your own model."""

    hint = """Print both lists of names side by side, and the shapes. What stands before each name in the file, which
        matrices lie on their side, and which name of yours is not there?"""

    def inputs():
        cases = []
        for n_embd, n_layer in ((4, 1), (6, 2)):
            model = GPT(GPTConfig(vocab_size=5, n_positions=3, n_embd=n_embd, n_layer=n_layer, n_head=2))
            ours = {name: randn(value.shape) for name, value in model.state_dict().items()}
            del ours["lm_head.weight"]
            cases.append(({f"transformer.{name}": value for name, value in renamed(ours, head=False).items()},))
        return cases

    def through(answer, weights):
        """All numbers in the order of the names."""
        found = dict(answer(weights))
        return " ".join(sorted(found)), *(found[name].contiguous() for name in sorted(found))

    def reference(weights):
        return renamed(weights)

    @mistake("The names begin with a word that yours do not have.")
    def not_renamed(weights):
        return {name: value.T if value.ndim == 2 and ".c_" in name else value for name, value in weights.items()}

    @mistake("The file holds the matrices of its linear layers lying on their side (in, out). Yours are (out, in).")
    def not_turned(weights):
        return renamed(weights, turned=("nothing",))

    @mistake("You turn the two tables as well: their rows are tokens and places, as in yours.")
    def tables_turned(weights):
        return renamed(weights, turned=("c_attn.weight", "c_proj.weight", "c_fc.weight", "wte.weight", "wpe.weight"))

    @mistake("The LM head is missing: the file holds its table once, as that of the tokens.")
    def without_the_head(weights):
        return renamed(weights, head=False)


def written(
    model, ids, n_new: int, temperature: float, draw, *, place: int = -1, window=None, hot=lambda x, t: x / t
) -> tuple[int, ...]:
    """Write with usual mistakes: which place is read, how long the window is, what the temperature does."""
    ids, limit = list(ids), window or model.config.n_positions
    for _ in range(n_new):
        with torch.no_grad():
            logits = model(torch.tensor([ids[-limit:]])).logits[0, place]
        ids.append(draw(hot(logits, temperature).softmax(-1)))
    return tuple(ids)


def first_past(share: float) -> Callable[[Tensor], int]:
    """Return a die without chance: the first token at which the sum of the probabilities passes this share."""
    return lambda probabilities: int((probabilities.cumsum(-1) > share).nonzero()[0])


class Write(Exercise, name="gpt_block.write"):
    """Continue the ids by n_new tokens, each drawn by draw(probabilities) at this temperature; return all ids."""

    hint = "Which place's logits speak of the next token? What becomes of a text that is longer than the window?"

    def inputs():
        shape = {"vocab_size": 9, "n_positions": 4, "n_embd": 8, "n_layer": 1, "n_head": 2}
        models = [GPT(GPTConfig(**shape)).eval() for _ in range(3)]
        for model in models:
            for weight in model.parameters():
                nn.init.normal_(weight, std=0.7)
        settings = (([1], 2, 0.7, 0.5), ([2, 3], 8, 0.4, 0.3), ([4, 5, 6, 7, 8], 8, 3.0, 0.7))
        return [(m, ids, n, t, first_past(share)) for m, (ids, n, t, share) in zip(models, settings, strict=True)]

    def reference(model, ids, n_new, temperature, draw):
        return written(model, ids, n_new, temperature, draw)

    @mistake("You read the logits of the first place. Which place has seen the whole text?")
    def first_place(model, ids, n_new, temperature, draw):
        return written(model, ids, n_new, temperature, draw, place=0)

    @mistake("The temperature does nothing. Where, before the softmax, should it act?")
    def without_temperature(model, ids, n_new, temperature, draw):
        return written(model, ids, n_new, 1.0, draw)

    @mistake("The wrong way: a low temperature should make the likely tokens likelier.")
    def upside_down(model, ids, n_new, temperature, draw):
        return written(model, ids, n_new, temperature, draw, hot=lambda x, t: x * t)

    @mistake("The model reads one token at a time here: it should read all that the window holds.")
    def last_token_alone(model, ids, n_new, temperature, draw):
        return written(model, ids, n_new, temperature, draw, window=1)

    @mistake("Only the new tokens are returned. The text is what was there and what is new.")
    def new_alone(model, ids, n_new, temperature, draw):
        return written(model, ids, n_new, temperature, draw)[len(ids) :]
