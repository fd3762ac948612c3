"""Measure how fast models of one shape train: ours, nanoGPT's loop, transformers' GPT-2; and the products alone.

    python -m benchmarks training [rounds]

nanoGPT cannot be installed as a package; `NanoGPT` and `plain_loop` rebuild its arithmetic and its settings in our own
words: `F.scaled_dot_product_attention`, a tied LM head; AdamW with decay for matrices alone, gradients clipped at 1,
batches drawn at random from one array. So that it trains the same model it has biases and GPT-2's GELU, the one with
tanh. Two rows show what nanoGPT's own exact GELU changes, and what a fused AdamW does, which is ours, and which nanoGPT
asks for on a GPU alone. transformers' model runs in the loop with the fused one.

The matmul rate is what would be reached if a step were only the products of its matrices, forward and twice backward:
what is left to gain. No dropout, float32, no compilation. Nobody evaluates during the run.
"""

import sys

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.timing import measure, rate, ratio, setting
from gptcourse.model import GPT, GPTConfig
from gptcourse.training import TrainingConfig, train

STEPS, LEARNING_RATE = 10, 1e-3
NANOGPT, MATMUL = "nanoGPT, rebuilt", "matmul only"
SHAPES = {  # the model, and the sequences in a batch
    "nanoGPT's CPU recipe": (GPTConfig(65, n_positions=64, n_embd=128, n_layer=4, n_head=4), 12),
    "the bundled model": (GPTConfig(2048, n_positions=256, n_embd=256, n_layer=6, n_head=4), 4),
}


class NanoBlock(nn.Module):
    """A block, with nanoGPT's `bias=True`."""

    def __init__(self, config, gelu):
        super().__init__()
        self.gelu = gelu
        width, self.n_head = config.n_embd, config.n_head
        self.ln_1, self.ln_2 = (nn.LayerNorm(width) for _ in range(2))
        self.c_attn, self.attn_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.mlp_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        """Map (B, T, C) to (B, T, C)."""
        n_rows, n_tokens, width = x.shape
        heads = (n_rows, n_tokens, self.n_head, width // self.n_head)
        q, k, v = (part.view(heads).transpose(1, 2) for part in self.c_attn(self.ln_1(x)).split(width, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        x = x + self.attn_proj(y)
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate=self.gelu))


class NanoGPT(nn.Module):
    """nanoGPT's arithmetic, rebuilt; gelu: "tanh" as in GPT-2, or "none", the exact one."""

    def __init__(self, config, gelu="tanh"):
        super().__init__()
        self.wte, self.wpe = (
            nn.Embedding(config.vocab_size, config.n_embd),
            nn.Embedding(config.n_positions, config.n_embd),
        )
        self.h = nn.ModuleList(NanoBlock(config, gelu) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        for weight in self.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)

    def forward(self, ids, targets):
        """Return the mean loss in nats."""
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def plain_loop(loss_of, model, tokens, length, batch_size, fused=True):
    """Train for STEPS steps, as nanoGPT's loop does."""
    matrices, vectors = ([w for w in model.parameters() if (w.dim() >= 2) == big] for big in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.99), fused=fused)
    for _ in range(STEPS):
        starts = torch.randint(len(tokens) - length, (batch_size,))
        ids = torch.stack([tokens[start : start + length] for start in starts])
        targets = torch.stack([tokens[start + 1 : start + 1 + length] for start in starts])
        loss_of(model, ids, targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def transformers_loss(model, ids, targets):
    """Return the mean loss of transformers' GPT-2."""
    return F.cross_entropy(model(ids, use_cache=False).logits.flatten(0, 1), targets.flatten())


def products(model, n_tokens):
    """Return a job that does only the products of one step, STEPS times."""
    weights = [module.weight.detach() for module in model.modules() if isinstance(module, nn.Linear)]
    inputs = {width: torch.randn(n_tokens, width) for weight in weights for width in weight.shape}

    @torch.no_grad()
    def job():
        for _ in range(STEPS):
            for weight in weights:  # (out, in)
                x, gradient = inputs[weight.shape[1]], inputs[weight.shape[0]]
                x @ weight.t(), gradient @ weight, gradient.t() @ x

    return job


def jobs_for(shape, batch_size):
    """Return, by name, what trains a model of this shape for STEPS steps, and the products alone."""
    torch.manual_seed(0)
    tokens = torch.randint(shape.vocab_size, (100_000,))
    ours, nano, exact = GPT(shape), NanoGPT(shape), NanoGPT(shape, gelu="none")
    theirs = ours.to_transformers().train()
    config = TrainingConfig(STEPS, batch_size, LEARNING_RATE)
    data = (tokens, shape.n_positions, batch_size)
    return {
        "gptcourse": lambda: train(ours, tokens, config, device="cpu", progress=False),
        NANOGPT: lambda: plain_loop(NanoGPT.__call__, nano, *data, fused=False),
        "nanoGPT, exact GELU": lambda: plain_loop(NanoGPT.__call__, exact, *data, fused=False),
        "nanoGPT, fused AdamW": lambda: plain_loop(NanoGPT.__call__, nano, *data),
        "transformers, same loop": lambda: plain_loop(transformers_loss, theirs, *data),
        MATMUL: products(ours, batch_size * shape.n_positions),
    }


def main(rounds):
    """Print tokens a second for each shape, side by side."""
    print(setting())
    for name, (shape, batch_size) in SHAPES.items():
        seconds = measure(jobs_for(shape, batch_size), rounds)
        print(f"\n{name}: {shape.num_parameters:,} parameters, {batch_size} x {shape.n_positions} tokens a step")
        print(f"{'':<32}{'tokens/s':>9}{'of nanoGPT':>12}{'of the matmul rate':>20}")
        for job, values in seconds.items():
            tokens_per_second = rate(STEPS * batch_size * shape.n_positions, values)
            shares = ratio(seconds[NANOGPT], values), ratio(seconds[MATMUL], values)
            print(f"{job:<32}{tokens_per_second:>9,.0f}{shares[0]:>12.2f}{shares[1]:>20.0%}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
