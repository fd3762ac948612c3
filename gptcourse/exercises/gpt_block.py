"""The exercises of notebook 03: the parts of a GPT block, the whole GPT, opening weights and writing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import log, pi, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn, randn
from torch.testing import assert_close

from gptcourse.attention import KeyValueCache
from gptcourse.exercises.attention import MultiHeadAttention
from gptcourse.exercises.exercise import Exercise, as_it_stands, mistake, with_weights
from gptcourse.hf import from_gpt2_names, to_gpt2_names
from gptcourse.model import GPT, GPTConfig, GPTOutput

NOTEBOOK = "03 · A GPT block, and the whole GPT"
SAMPLE_VARIANCE = "Very close: your variance divides by C - 1, as for a sample. Here it is the mean of the squares."
OWN_DRAWS = (
    "You draw from torch's own generator, so the same seed does not give the same text. What is the last input for?"
)
ONE_CACHE = "One cache cannot serve all blocks: each block has keys and values of its own."
TEXT_AGAIN = """You put the whole text in again, and the caches hold it already: each key and value is there twice.
    After the prompt only the newest token has to go in."""
WRONG_DIMENSIONS = "You average over the wrong dimensions. Each token is normalised on its own, over its C numbers."


class LayerNorm(Exercise, name="gpt_block.layer_norm", minutes=10):
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


class Gelu(Exercise, name="gpt_block.gelu", minutes=5):
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


def random_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return weights of the module's names and shapes, so large that every one of them shows in the output."""
    return {name: randn(parameter.shape) / 3 for name, parameter in module.named_parameters()}


class TwoLayers(nn.Module):
    """GPT-2's MLP: (..., C) -> (..., C)."""

    def __init__(self, n_embd):
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(n_embd, 4 * n_embd), nn.Linear(4 * n_embd, n_embd)

    def forward(self, x):
        return self.c_proj(self.bend(self.c_fc(x)))

    def bend(self, x):
        return F.gelu(x, approximate="tanh")


class Mlp(Exercise, name="gpt_block.mlp", minutes=10):
    """Write the MLP as a module: C numbers become 4 C, each goes through GELU, and 4 C become C again."""

    hint = "Two linear layers with biases, and the tanh form of GELU in between. Nothing comes after the second layer."

    def inputs():
        return [(random_weights(TwoLayers(x.shape[-1])), x) for x in (randn(1, 2), randn(2, 3, 4), randn(1, 5, 6))]

    def through(answer, weights, x):
        return with_weights(answer(x.shape[-1]), weights)(x)

    reference = TwoLayers

    @mistake("Nothing between the two layers is curved: together they are one matrix.")
    class Straight(TwoLayers):
        def bend(self, x):
            return x

    @mistake("That is ReLU, of the first transformer. GPT-2 has another activation function.")
    class WithRelu(TwoLayers):
        def bend(self, x):
            return F.relu(x)

    @mistake("That is the exact GELU. GPT-2 uses the tanh form.")
    class Exact(TwoLayers):
        def bend(self, x):
            return F.gelu(x)

    @mistake("What the MLP returns goes through GELU once more. After the second layer there is nothing.")
    class BentTwice(TwoLayers):
        def forward(self, x):
            return self.bend(super().forward(x))

    @mistake("The block adds the input to what the MLP returns. Here the MLP adds it too.")
    class AddsItself(TwoLayers):
        def forward(self, x):
            return x + super().forward(x)


class PreNormBlock(nn.Module):
    """GPT-2's block: (B, T, C) -> (B, T, C)."""

    def __init__(self, n_embd, n_head):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.attn, self.mlp = MultiHeadAttention(n_embd, n_head), TwoLayers(n_embd)

    def forward(self, x):
        return self.wire(x, self.ln_1, self.attn, self.ln_2, self.mlp)

    def wire(self, x, ln_1, attn, ln_2, mlp):
        x = x + attn(ln_1(x))
        return x + mlp(ln_2(x))


class WholeBlock(Exercise, name="gpt_block.block", minutes=15):
    """Write the block as a module: attention and MLP each read a normalised copy of the stream and add to it."""

    hint = "Say for each of the four parts what it reads, in which order they come, and to what its result is added."

    def inputs():
        sizes = ((1, 2, 2, 1), (2, 3, 4, 2), (1, 5, 6, 3))
        return [(H, random_weights(PreNormBlock(C, H)), randn(B, T, C)) for B, T, C, H in sizes]

    def through(answer, n_head, weights, x):
        return with_weights(answer(x.shape[-1], n_head), weights)(x)

    reference = PreNormBlock

    @mistake("""That is the order of the first transformer and of GPT-1, which normalises the stream itself. In GPT-2
        only the copies that the parts read are normalised.""")
    class PostNorm(PreNormBlock):
        def wire(self, x, ln_1, attn, ln_2, mlp):
            x = ln_1(x + attn(x))
            return ln_2(x + mlp(x))

    @mistake("The parts follow each other, but nothing adds to the stream: the path past them is missing.")
    class WithoutAdditions(PreNormBlock):
        def wire(self, x, ln_1, attn, ln_2, mlp):
            return mlp(ln_2(attn(ln_1(x))))

    @mistake("You add to the normalised copy. What the parts write should be added to the stream itself.")
    class OnTheCopy(PreNormBlock):
        def wire(self, x, ln_1, attn, ln_2, mlp):
            x = ln_1(x)
            x = ln_2(x + attn(x))
            return x + mlp(x)

    @mistake("""Your MLP reads the stream as it was before attention wrote to it. (Some models do so to compute both at
        once; GPT-2 does not.)""")
    class InParallel(PreNormBlock):
        def wire(self, x, ln_1, attn, ln_2, mlp):
            return x + attn(ln_1(x)) + mlp(ln_2(x))

    @mistake("The norms are exchanged. Which of the two comes first in the block?")
    class NormsExchanged(PreNormBlock):
        def wire(self, x, ln_1, attn, ln_2, mlp):
            return super().wire(x, ln_2, attn, ln_1, mlp)

    @mistake("Nothing is normalised: each part should read a normalised copy of the stream.")
    class WithoutNorms(PreNormBlock):
        def wire(self, x, ln_1, attn, ln_2, mlp):
            return x + attn(x) + mlp(x + attn(x))

    @mistake("What attention wrote reaches the MLP, but not the end of the block: you add to the stream as it came in.")
    class OneLongPath(PreNormBlock):
        def wire(self, x, ln_1, attn, ln_2, mlp):
            return x + mlp(ln_2(x + attn(ln_1(x))))


def draw(model: nn.Module, std: Callable[[str], float], biases: float = 0.0) -> None:
    """Draw every matrix with the standard deviation of its name, and set the biases of the linear layers."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=std(name))
        elif name.endswith("bias") and ".ln" not in name:
            nn.init.constant_(parameter, biases)


class Initialise(Exercise, name="gpt_block.initialise", minutes=15):
    """Draw all matrices with standard deviation 0.02, those that write into the stream with less; biases become 0."""

    hint = "Print the name, the standard deviation and the mean of each parameter before and after. Which is not right?"
    trains = ("model",)

    def inputs():
        return [(6,), (1,), (3,)]

    def through(answer, n_layer):
        """Return spreads (in two thousandths) and means (in hundredths) of kinds of matrices, and the means of vectors.

        Drawn numbers never have exactly the standard deviation asked for: it is rounded.
        """
        model = GPT(GPTConfig(vocab_size=128, n_positions=256, n_embd=64, n_layer=n_layer, n_head=2))
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.reset_parameters()
        answer(model, n_layer)
        named = dict(model.named_parameters())
        ends = ("wte.weight", "wpe.weight", "c_attn.weight", "c_fc.weight", "attn.c_proj.weight", "mlp.c_proj.weight")
        kinds = [torch.cat([p.flatten() for name, p in named.items() if name.endswith(end)]) for end in ends]
        flat = [p.abs().mean() for name, p in named.items() if p.ndim == 1]  # norms stay 1 and 0
        spreads = [2 * (500 * kind.std()).round() for kind in kinds]  # in steps of which none begins near a right one
        return torch.stack([*spreads, *((100 * kind.mean()).round() for kind in kinds), *flat]).detach()

    def reference(model, n_layer):
        draw(model, lambda name: 0.02 / sqrt(2 * n_layer) if "c_proj" in name else 0.02)

    @mistake("All matrices are drawn alike. Those that write into the stream should shrink with depth.")
    def alike(model, n_layer):
        draw(model, lambda name: 0.02)

    @mistake("How many times does a block add to the stream?")
    def once_per_block(model, n_layer):
        draw(model, lambda name: 0.02 / sqrt(n_layer) if "c_proj" in name else 0.02)

    @mistake("The number of additions is right. But variances add up, and you divide the standard deviation.")
    def without_root(model, n_layer):
        draw(model, lambda name: 0.02 / (2 * n_layer) if "c_proj" in name else 0.02)

    @mistake("You shrink all matrices. Which two of each block write into the stream?")
    def all_smaller(model, n_layer):
        draw(model, lambda name: 0.02 / sqrt(2 * n_layer))

    @mistake("One of the two projections of each block is still as large as the other matrices: both write.")
    def mlp_forgotten(model, n_layer):
        draw(model, lambda name: 0.02 / sqrt(2 * n_layer) if "attn.c_proj" in name else 0.02)

    @mistake("The biases start at zero: yours are still as torch has drawn them.")
    def biases_left(model, n_layer):
        kept = {name: p.clone() for name, p in model.named_parameters() if name.endswith("bias")}
        Initialise.reference(model, n_layer)
        model.load_state_dict(kept, strict=False)


class Parameters(Exercise, name="gpt_block.parameters", minutes=15):
    """Return the exact number of parameters of a GPT-2-shaped model with a tied LM head."""

    hint = "Write down the shape of every weight and bias in one block, and compare with the shapes the model prints."

    def inputs():
        return [(50257, 1024, 768, 12), (65, 32, 16, 2), (3, 2, 1, 1)]

    def reference(vocab_size, n_positions, n_embd, n_layer):
        return GPTConfig(vocab_size, n_positions, n_embd, n_layer, n_head=1).num_parameters

    untied = mistake("""The LM head is counted apart. It shares its matrix with
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


class MendTwoWords(Exercise, name="gpt_block.mend_two_words", minutes=5):
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


class MendStack(Exercise, name="gpt_block.mend_stack", minutes=5):
    """Mend the stack so that each block has weights of its own, and the optimizer gets all of them."""

    hint = "Count the parameters of one block and those of the stack. How many times as many should there be?"

    def inputs():
        return [(2, 2, randn(1, 2)), (3, 4, randn(5, 4)), (5, 3, randn(2, 3, 3))]

    def through(answer, n_layer, size, x):
        stack = answer(lambda: nn.Linear(size, size), n_layer)
        return sum(p.numel() for p in stack.parameters()), stack(x)

    class reference(nn.Module):
        def __init__(self, make_block, n_layer):
            super().__init__()
            self.h = self.several(make_block, n_layer)

        def several(self, make_block, n_layer):
            return nn.ModuleList(make_block() for _ in range(n_layer))

        def forward(self, x):
            for block in self.h:
                x = x + block(x)
            return x

    @as_it_stands("""The mistake is still there: the stack says that it has no parameters at all. What does a module do
        with a plain list of modules?""")
    class PlainList(reference):
        def several(self, make_block, n_layer):
            return [make_block() for _ in range(n_layer)]

    @mistake("There are parameters now, but those of one block: the same block stands in the list again and again.")
    class SameBlock(reference):
        def several(self, make_block, n_layer):
            return nn.ModuleList([make_block()] * n_layer)

    @mistake("Of the additions to the stream nothing is left: each block now replaces what came before.")
    class WithoutAdditions(reference):
        def forward(self, x):
            for block in self.h:
                x = block(x)
            return x


class GPTOfParts(nn.Module):
    """GPT-2: ids (B, T) -> logits (B, T, V) and the loss. Made of these exercises' parts: attention takes a cache."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(PreNormBlock(config.n_embd, config.n_head) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight
        Initialise.reference(self, config.n_layer)

    def forward(self, ids, targets=None):
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return GPTOutput(logits, loss)


class WholeGPT(Exercise, name="gpt_block.whole", minutes=30):
    """Write the whole GPT as a module: token ids in, logits and loss out."""

    hint = "Follow one token: its row, its place, the blocks, the last norm, the scores of all tokens, the loss."

    def inputs():
        shapes = (GPTConfig(5, 3, 4, 1, 2), GPTConfig(11, 6, 6, 2, 3), GPTConfig(76, 8, 16, 3, 2))
        tokens = [
            (torch.randint(c.vocab_size, (B, T)), c) for c, B, T in zip(shapes, (1, 2, 3), (2, 6, 5), strict=True)
        ]
        return [(c, random_weights(GPT(c)), ids, torch.randint(c.vocab_size, ids.shape)) for ids, c in tokens]

    def through(answer, config, weights, ids, targets):
        """Return whether the loss starts near ln V; then, with these weights, the logits and the loss."""
        model = answer(config)
        starts_well = torch.tensor(abs(model(ids, targets).loss.item() - log(config.vocab_size)) < 0.3)
        output = with_weights(model, weights)(ids, targets)
        assert_close(model(ids).logits, output.logits)  # without targets, the same logits
        return output.logits, output.loss, starts_well

    reference = GPTOfParts

    @mistake("""The first loss is far from ln V: as torch draws it, the token table has standard deviation 1. Call your
        initialisation at the end of the constructor.""")
    class NotInitialised(GPT):
        def __init__(self, config):
            super().__init__(config)
            nn.init.normal_(self.wte.weight, std=4.0)

    @mistake("""The LM head has a matrix of its own. In GPT-2 it is the token table itself: the same tensor under two
        names.""")
    class Untied(GPT):
        def __init__(self, config):
            super().__init__(config)
            self.lm_head.weight = nn.Parameter(self.wte.weight.detach().clone())

    @mistake("Nothing tells the tokens where they stand: the positions are not added.")
    class WithoutPositions(GPT):
        def _embed(self, ids, seen):
            return self.wte(ids) + 0 * self.wpe.weight[0]

    @mistake("Your first token takes the second row of the position table. Positions are counted from 0.")
    class FromOne(GPT):
        def _embed(self, ids, seen):
            return self.wte(ids) + self.wpe.weight.roll(-1, 0)[: ids.shape[1]]

    @mistake("After the last block comes one more norm, before the LM head.")
    class WithoutLastNorm(GPT):
        def forward(self, ids, targets=None):
            self.ln_f.forward = lambda x: x
            return super().forward(ids, targets)

    @mistake("The targets are moved on once more: as they come, each is already the token that follows.")
    class ShiftedTwice(GPT):
        def forward(self, ids, targets=None):
            logits = super().forward(ids).logits
            if targets is None:
                return GPTOutput(logits)
            return GPTOutput(logits, F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten()))

    @mistake("Your loss is a sum. It should be the mean over all targets, so that batches can be compared.")
    class Summed(GPT):
        def forward(self, ids, targets=None):
            logits, loss, _ = super().forward(ids, targets)
            return GPTOutput(logits, None if loss is None else loss * ids.numel())

    @mistake("These are probabilities. The logits are the scores before the softmax; cross-entropy takes those.")
    class Probabilities(GPT):
        def forward(self, ids, targets=None):
            logits, loss, _ = super().forward(ids, targets)
            return GPTOutput(logits.softmax(-1), loss)

    @mistake("Your tokens can look at those that come after them: the mask in attention is missing.")
    class SeesFuture(GPT):
        def forward(self, ids, targets=None):
            for block in self.h:
                block.attn.forward = partial(look_everywhere, block.attn)
            return super().forward(ids, targets)


def look_everywhere(attn: nn.Module, x: Tensor, *_) -> tuple[Tensor, None]:
    """Return what attention without a mask gives, in the package's module."""
    q, k, v = attn._queries_keys_values(x, 0)
    return attn.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)), None


class FromGpt2(Exercise, name="gpt_block.from_gpt2", minutes=10):
    """Rename the weights of a GPT-2 file and turn the matrices that it stores the other way round."""

    hint = "Compare the names and the shapes, one by one, with those of your own model."

    def inputs():
        shapes = (GPTConfig(3, 2, 2, 1, 1), GPTConfig(5, 4, 4, 2, 2), GPTConfig(7, 3, 6, 3, 2))
        models = [(config, random_weights(GPT(config))) for config in shapes]
        return [(to_gpt2_names(weights),) for _, weights in models]

    def through(answer, state):
        got = answer(state)
        return ", ".join(sorted(got)), torch.cat([got[name].flatten() for name in sorted(got)])

    def reference(state):
        return from_gpt2_names(state)

    @mistake("The names are right, and four matrices in each block lie the wrong way round.")
    def not_turned(state):
        return {name.removeprefix("transformer."): tensor for name, tensor in state.items()}

    @mistake("You turn the tables of tokens and positions too: those are stored as your model has them.")
    def all_turned(state):
        return {name.removeprefix("transformer."): t.T if t.ndim == 2 else t for name, t in state.items()}

    @mistake("The matrices are right; the names still have what the file puts in front.")
    def with_prefix(state):
        return {f"transformer.{name}": tensor for name, tensor in from_gpt2_names(state).items()}

    @mistake("You turn the matrices of attention only. The MLP's are stored in the same way.")
    def attention_alone(state):
        return {n: t.T if ".mlp." in n and t.ndim == 2 else t for n, t in from_gpt2_names(state).items()}


def write(model, ids, n, temperature, generator, place=-1, choose=None, window=None):
    """Continue ids (B, T) by n tokens."""
    choose = choose or (lambda p: torch.multinomial(p, 1, generator=generator))
    for _ in range(n):
        seen = ids[:, -(window or model.config.n_positions) :]
        with torch.no_grad():
            probabilities = (model(seen).logits[:, place] / temperature).softmax(-1)
        ids = torch.cat((ids, choose(probabilities)), dim=1)
    return ids


class Generate(Exercise, name="gpt_block.generate", minutes=15):
    """Let a model write: draw one token after the other, each from the distribution that the text so far gives."""

    hint = "Write one token first: cut the text to the window, take the last logits, divide, softmax, draw, append."

    def inputs():
        def lively(config):
            model = GPT(config)
            nn.init.normal_(model.wte.weight, std=0.5)
            return model

        shapes = (GPTConfig(5, 4, 8, 1, 1), GPTConfig(11, 6, 8, 2, 2), GPTConfig(23, 5, 12, 1, 3))
        settings = ((1, 1, 3, 1.0, 11), (2, 3, 7, 0.5, 12), (3, 7, 6, 1.5, 13))
        pairs = zip(map(lively, shapes), settings, strict=True)
        return [(m, torch.randint(m.config.vocab_size, (B, T)), n, heat, seed) for m, (B, T, n, heat, seed) in pairs]

    def through(answer, model, ids, n, temperature, seed):
        return answer(model, ids, n, temperature, torch.Generator().manual_seed(seed))

    def reference(model, ids, n, temperature, generator):
        return write(model, ids, n, temperature, generator)

    @mistake("With a text longer than the window the model has no position left. Which tokens should it still read?")
    def whole_text(model, ids, n, temperature, generator):
        return write(model, ids, n, temperature, generator, window=10_000)

    @mistake("A high temperature should make the distribution flatter, and yours makes it sharper.")
    def multiplied(model, ids, n, temperature, generator):
        return write(model, ids, n, 1 / temperature, generator)

    @mistake("The temperature changes nothing in what you write. Where does it come in?")
    def temperature_ignored(model, ids, n, temperature, generator):
        return write(model, ids, n, 1.0, generator)

    @mistake("You always take the most likely token. Asked is a draw, in which the others have their chance.")
    def greedy(model, ids, n, temperature, generator):
        return write(model, ids, n, temperature, generator, choose=lambda p: p.argmax(-1, keepdim=True))

    @mistake("You read what the model says after the first token; it has said more after the last.")
    def after_the_first(model, ids, n, temperature, generator):
        return write(model, ids, n, temperature, generator, place=0)

    @mistake("These are the new tokens alone. Return the text with them.")
    def new_alone(model, ids, n, temperature, generator):
        return write(model, ids, n, temperature, generator)[:, ids.shape[1] :]

    @mistake(OWN_DRAWS)
    def own_draws(model, ids, n, temperature, generator):
        return write(model, ids, n, temperature, None)


@torch.no_grad()
def write_cached(
    model,
    ids,
    n,
    temperature,
    generator,
    start=lambda cache: cache.length,
    again=False,
    shared=False,
    forget=False,
    place=-1,
    norm=None,
):
    """Continue ids (B, T) by n tokens, with a cache for each block (shared: one for all)."""
    config, new = model.config, ids
    sizes = (ids.shape[0], config.n_head, config.n_positions, config.head_size)
    caches = [KeyValueCache(*sizes) for _ in model.h]
    for _ in range(n):
        first = start(caches[0])
        x = model.wte(new) + model.wpe.weight[first : first + new.shape[1]]
        for block, cache in zip(model.h, caches, strict=True):
            x = x + block.attn(block.ln_1(x), caches[0] if shared else None if forget else cache)
            x = x + block.mlp(block.ln_2(x))
        logits = model.lm_head((norm or model.ln_f)(x[:, place])) / temperature
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        ids = torch.cat((ids, drawn), dim=1)
        new = ids if again else drawn
    return ids


class GenerateCached(Exercise, name="gpt_block.generate_cached", minutes=30):
    """Let a model write with a cache for each block, so that every token goes through the blocks once."""

    hint = """Print, for each pass, which ids go in, at which positions, and how many keys each cache holds afterwards.
        All the rest is the forward pass of your block and of your GPT."""

    def inputs():
        shapes = (
            GPTConfig(5, 8, 8, 1, 1),
            GPTConfig(11, 28, 8, 2, 2),
            GPTConfig(23, 39, 12, 3, 3),
        )  # room for one_cache
        settings = ((8, 2, 6, 2.0, 11), (12, 5, 9, 3.0, 12), (10, 3, 10, 4.0, 13))
        models = [GPTOfParts(config) for config in shapes]
        for model in models:  # so lively that every token read changes the draws
            with_weights(model, {name: 3 * weight for name, weight in random_weights(model).items()})
        pairs = zip(models, settings, strict=True)
        return [(m, torch.randint(m.config.vocab_size, (B, T)), n, heat, seed) for m, (B, T, n, heat, seed) in pairs]

    def through(answer, model, ids, n, temperature, seed):
        """Return the text, and whether each token went through the first block once (the last one may, too)."""
        seen = []
        hook = model.h[0].attn.register_forward_hook(lambda module, given, out: seen.append(out.shape[1]))
        try:
            text = answer(model, ids, n, temperature, torch.Generator().manual_seed(seed))
        finally:
            hook.remove()
        return text, torch.tensor(sum(seen) in (text.shape[1] - 1, text.shape[1]))

    def reference(model, ids, n, temperature, generator):
        return write_cached(model, ids, n, temperature, generator)

    @mistake("""The text is right, and every token goes through all blocks again for each new one. After the prompt
        only the newest token has to go in.""")
    def anew(model, ids, n, temperature, generator):
        for _ in range(n):
            ids = write_cached(model, ids, 1, temperature, generator)
        return ids

    @mistake(TEXT_AGAIN)
    def whole_text_again(model, ids, n, temperature, generator):
        return write_cached(model, ids, n, temperature, generator, start=lambda cache: 0, again=True)

    @mistake(TEXT_AGAIN)
    def whole_text_behind_it(model, ids, n, temperature, generator):
        return write_cached(model, ids, n, temperature, generator, again=True)

    @mistake("""The first draw is right. After it every new token says that it stands at position 0. How many tokens
        came before it?""")
    def positions_from_zero(model, ids, n, temperature, generator):
        return write_cached(model, ids, n, temperature, generator, start=lambda cache: 0)

    @mistake("""The first draw is right. After it every new token stands one place too far: with it the text is one
        token longer, and positions are counted from 0.""")
    def one_too_far(model, ids, n, temperature, generator):
        return write_cached(
            model, ids, n, temperature, generator, start=lambda cache: cache.length + (cache.length > 0)
        )

    @mistake("""The first draw is right. After it every new token sees only itself. Is a cache made once for each block,
        and does attention get it in every pass?""")
    def never_remembered(model, ids, n, temperature, generator):
        return write_cached(model, ids, n, temperature, generator, start=lambda cache: 0, forget=True)

    @mistake(ONE_CACHE)
    def one_cache(model, ids, n, temperature, generator):
        return write_cached(model, ids, n, temperature, generator, shared=True)

    @mistake(ONE_CACHE)
    def one_cache_and_right_positions(model, ids, n, temperature, generator):
        places = {"start": lambda cache: cache.length // len(model.h), "shared": True}
        return write_cached(model, ids, n, temperature, generator, **places)

    @mistake(OWN_DRAWS)
    def own_draws(model, ids, n, temperature, generator):
        return write_cached(model, ids, n, temperature, None)

    @mistake("The prompt gives logits for each of its tokens. Which of them says what follows?")
    def after_the_first(model, ids, n, temperature, generator):
        return write_cached(model, ids, n, temperature, generator, place=0)

    @mistake("After the last block comes one more norm, before the LM head.")
    def without_last_norm(model, ids, n, temperature, generator):
        return write_cached(model, ids, n, temperature, generator, norm=nn.Identity())
