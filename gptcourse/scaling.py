"""What a model costs: memory to train it and arithmetic per token, from its shape alone.

Sources: Kaplan et al. (2020), "Scaling Laws for Neural Language Models", section 2.1; Chowdhery et al. (2022), PaLM,
appendix B; Korthikanti et al. (2022), "Reducing Activation Recomputation in Large Transformer Models", section 4.
"""

from __future__ import annotations

from gptcourse.model import GPTConfig


def flops_per_token(config: GPTConfig) -> int:
    """Return the floating-point operations that training on one token takes, forward and backward.

    Six per weight that is multiplied (two forward, four backward), and 12 · n_layer · n_embd · n_positions for
    attention's two products over a full window (PaLM, appendix B). Look-ups, norms and softmax are not counted.
    """
    multiplied = config.n_layer * 12 * config.n_embd**2 + config.vocab_size * config.n_embd
    return 6 * multiplied + 12 * config.n_layer * config.n_embd * config.n_positions


def training_memory(config: GPTConfig, batch_size: int = 1) -> dict[str, int]:
    """Estimate the bytes that training in float32 with AdamW holds at its highest point, by what they are for.

    Weights, gradients and AdamW's two averages: 4, 4 and 8 bytes per parameter. Activations, at the end of the forward
    pass: for each token 16 vectors of n_embd numbers in each block and two outside them wait for the backward pass (the
    fused attention kernel keeps no weights), and three of vocab_size: logits, their log-softmax and their gradient.
    """
    tokens = batch_size * config.n_positions
    per_token = (16 * config.n_layer + 2) * config.n_embd + 3 * config.vocab_size
    parameters = config.num_parameters
    return {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "optimizer": 8 * parameters,
        "activations": 4 * tokens * per_token,
    }
