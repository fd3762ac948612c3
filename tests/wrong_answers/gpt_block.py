"""Wrong answers to the exercises of notebook 02."""

import math

import torch
import torch.nn.functional as F

from wrong_answers import wrong


@wrong("gpt_block.layer_norm", "divides by C - 1")
def norm_with_sample_variance(x, weight, bias, eps):
    mean, var = x.mean(-1, keepdim=True), torch.var(x, dim=-1, keepdim=True)
    return weight * (x - mean) / torch.sqrt(var + eps) + bias


@wrong("gpt_block.layer_norm", "how far its root reaches")
def norm_with_eps_outside(x, weight, bias, eps):
    std = x.std(-1, unbiased=False, keepdim=True)
    return weight * (x - x.mean(-1, keepdim=True)) / (std + eps) + bias


@wrong("gpt_block.gelu", "the exact form")
def gelu_by_error_function(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


@wrong("gpt_block.gelu", "the corner at zero")
def gelu_as_relu(x):
    return x.clamp(min=0)


@wrong("gpt_block.residual", "the path past them is missing")
def block_without_additions(x, ln_1, attn, ln_2, mlp):
    x = attn(ln_1(x))
    x = mlp(ln_2(x))
    return x


@wrong("gpt_block.residual", "before attention wrote to it")
def block_in_parallel(x, ln_1, attn, ln_2, mlp):
    a = attn(ln_1(x))
    m = mlp(ln_2(x))
    return x + a + m


@wrong("gpt_block.init_std", "How many times does a block add")
def std_once_per_block(n_layer):
    return 0.02 / math.sqrt(n_layer)


@wrong("gpt_block.init_std", "That is the factor")
def std_factor_alone(n_layer):
    return 1 / math.sqrt(2 * n_layer)


@wrong("gpt_block.parameters", "The read-out is counted apart")
def parameters_untied(vocab_size, n_positions, n_embd, n_layer):
    block = 12 * n_embd**2 + 13 * n_embd
    return 2 * vocab_size * n_embd + n_positions * n_embd + n_layer * block + 2 * n_embd


@wrong("gpt_block.parameters", "joins the heads")
def parameters_without_projection(vocab_size, n_positions, n_embd, n_layer):
    linear = 3 * n_embd * (n_embd + 1) + 4 * n_embd * (n_embd + 1) + n_embd * (4 * n_embd + 1)
    return n_embd * (vocab_size + n_positions) + n_layer * (linear + 4 * n_embd) + 2 * n_embd


@wrong("gpt_block.mend_two_words", "You average over the text")
def two_words_from_the_mean(hidden, token_embedding, label_head):
    return F.linear(hidden.mean(dim=1), token_embedding).argmax(dim=-1)


@wrong("gpt_block.mend_two_words", "Which token wins")
def two_words_as_scores(hidden, token_embedding, label_head):
    return F.linear(hidden[:, -1], token_embedding)
