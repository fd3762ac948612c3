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


@wrong("gpt_block.shift", "come round from the front")
def shift_by_rolling(tokens):
    return tokens, torch.roll(tokens, shifts=-1, dims=1)


@wrong("gpt_block.shift", "You cut along the batch")
def shift_texts(tokens):
    x = tokens[:-1]
    y = tokens[1:]
    return x, y


@wrong("gpt_block.loss", "logarithm minus infinity")
def loss_through_probabilities(logits, targets):
    p = torch.softmax(logits, dim=-1)
    return -torch.log(p.gather(2, targets.unsqueeze(2))).mean()


@wrong("gpt_block.loss", "the softmax happens twice")
def loss_of_probabilities(logits, targets):
    B, T, V = logits.shape
    return F.cross_entropy(torch.softmax(logits, dim=-1).view(B * T, V), targets.view(B * T))


@wrong("gpt_block.first_loss", "The sign")
def first_loss_below_zero(vocab_size):
    return math.log(1 / vocab_size)


@wrong("gpt_block.first_loss", "average over the vocabulary")
def first_loss_averaged_again(vocab_size):
    p = torch.full((vocab_size,), 1 / vocab_size)
    return -(p * p.log()).mean()


@wrong("gpt_block.mend_sure", "no logarithm is taken")
def sure_without_logarithm(logits, targets):
    return F.nll_loss(F.softmax(logits, -1).view(-1, logits.size(-1)), targets.view(-1))


@wrong("gpt_block.mend_sure", "A sigmoid squeezes")
def sure_with_sigmoid(logits, targets):
    return F.cross_entropy(torch.sigmoid(logits).flatten(0, 1), targets.flatten())


@wrong("gpt_block.mend_parrot", "Nobody knows its answer")
def parrot_rolled(logits, tokens):
    return F.cross_entropy(logits.flatten(0, 1), torch.roll(tokens, -1, dims=1).flatten())


@wrong("gpt_block.mend_parrot", "after joining the texts")
def parrot_shifted_across_texts(logits, tokens):
    logits, tokens = logits.reshape(-1, logits.size(-1)), tokens.reshape(-1)
    return F.cross_entropy(logits[:-1], tokens[1:])


@wrong("gpt_block.mend_two_words", "You average over the text")
def two_words_from_the_mean(hidden, token_embedding, label_head):
    return F.linear(hidden.mean(dim=1), token_embedding).argmax(dim=-1)


@wrong("gpt_block.mend_two_words", "Which token wins")
def two_words_as_scores(hidden, token_embedding, label_head):
    return F.linear(hidden[:, -1], token_embedding)
