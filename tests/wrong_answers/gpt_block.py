"""Wrong answers to the exercises of notebook 03."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from gptcourse.attention import KeyValueCache
from gptcourse.model import GPT, MLP, Block, GPTConfig, GPTOutput
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


@wrong("gpt_block.parameters", "The LM head is counted apart")
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


@wrong("gpt_block.mend_stack", "those of one block")
class StackOfOne(nn.Module):
    def __init__(self, make_block, n_layer):
        super().__init__()
        self.block, self.n_layer = make_block(), n_layer

    def forward(self, x):
        for _ in range(self.n_layer):
            x = x + self.block(x)
        return x


@wrong("gpt_block.mend_stack", "each block now replaces")
class StackInARow(nn.Sequential):
    def __init__(self, make_block, n_layer):
        super().__init__(*[make_block() for _ in range(n_layer)])


def shape(n_embd, n_head=1):
    return GPTConfig(2, 16, n_embd, 1, n_head)


@wrong("gpt_block.mlp", "of the first transformer")
class MlpWithRelu(MLP):
    def __init__(self, n_embd):
        super().__init__(shape(n_embd))
        self.activation = nn.ReLU()


@wrong("gpt_block.mlp", "the exact GELU")
class MlpExact(MLP):
    def __init__(self, n_embd):
        super().__init__(shape(n_embd))
        self.activation = nn.GELU()


@wrong("gpt_block.block", "before attention wrote to it")
class ParallelBlock(Block):
    def __init__(self, n_embd, n_head):
        super().__init__(shape(n_embd, n_head))

    def forward(self, x):
        a = self.attn(self.ln_1(x))[0]
        m = self.mlp(self.ln_2(x))
        return x + a + m


@wrong("gpt_block.block", "the path past them is missing")
class BlockWithoutAdditions(ParallelBlock):
    def forward(self, x):
        x = self.attn(self.ln_1(x))[0]
        return self.mlp(self.ln_2(x))


@wrong("gpt_block.initialise", "All matrices are drawn alike")
def initialised_alike(model, n_layer):
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(0, 0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data.zero_()


@wrong("gpt_block.initialise", "How many times does a block add")
def initialised_once_per_block(model, n_layer):
    initialised_alike(model, n_layer)
    for block in model.h:
        for part in (block.attn, block.mlp):
            part.c_proj.weight.data.normal_(0, 0.02 * n_layer**-0.5)


@wrong("gpt_block.whole", "The LM head has a matrix of its own")
class WholeUntied(nn.Module):
    def __init__(self, config):
        super().__init__()
        inner = GPT(config)
        self.wte, self.wpe, self.h, self.ln_f = inner.wte, inner.wpe, inner.h, inner.ln_f
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        nn.init.normal_(self.lm_head.weight, std=0.02)

    def forward(self, ids, targets=None):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)[0]
        logits = self.lm_head(self.ln_f(x))
        return GPTOutput(logits, self.loss(logits, targets))

    def loss(self, logits, targets):
        return None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@wrong("gpt_block.whole", "Your loss is a sum")
class WholeWithSum(WholeUntied):
    def __init__(self, config):
        super().__init__(config)
        self.lm_head.weight = self.wte.weight

    def loss(self, logits, targets):
        return None if targets is None else F.cross_entropy(logits.mT, targets, reduction="sum")


@wrong("gpt_block.from_gpt2", "lie the wrong way round")
def names_alone(state):
    return {name.replace("transformer.", ""): state[name] for name in state}


@wrong("gpt_block.from_gpt2", "You turn the tables")
def every_matrix_turned(state):
    renamed = {}
    for name, tensor in state.items():
        renamed[name[len("transformer.") :]] = tensor.t() if tensor.dim() == 2 else tensor
    return renamed


@wrong("gpt_block.generate", "makes it sharper")
def generate_multiplied(model, ids, n, temperature, generator):
    for _ in range(n):
        logits = model(ids[:, -model.config.n_positions :]).logits[:, -1] * temperature
        ids = torch.cat([ids, torch.multinomial(F.softmax(logits, -1), 1, generator=generator)], 1)
    return ids


@wrong("gpt_block.generate", "the most likely token")
def generate_greedily(model, ids, n, temperature, generator):
    for _ in range(n):
        logits = model(ids[:, -model.config.n_positions :]).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(-1)[:, None]], 1)
    return ids


def caches_for(model, n_texts):
    config = model.config
    return [KeyValueCache(n_texts, config.n_head, config.n_positions, config.head_size) for _ in model.h]


def pass_through(model, new, places, caches):
    x = model.wte(new) + model.wpe(places)
    for block, cache in zip(model.h, caches, strict=True):
        x = x + block.attn(block.ln_1(x), cache)
        x = x + block.mlp(block.ln_2(x))
    return model.lm_head(model.ln_f(x))


@wrong("gpt_block.generate_cached", "stands at position 0")
def cached_at_position_zero(model, ids, n, temperature, generator):
    caches, new = caches_for(model, len(ids)), ids
    with torch.no_grad():
        for _ in range(n):
            logits = pass_through(model, new, torch.arange(new.shape[1]), caches)[:, -1]
            new = torch.multinomial(F.softmax(logits / temperature, -1), 1, generator=generator)
            ids = torch.cat([ids, new], 1)
    return ids


@wrong("gpt_block.generate_cached", "goes through all blocks again")
def cached_for_one_pass(model, ids, n, temperature, generator):
    with torch.no_grad():
        for _ in range(n):
            caches = caches_for(model, len(ids))
            logits = pass_through(model, ids, torch.arange(ids.shape[1]), caches)[:, -1]
            drawn = torch.multinomial(F.softmax(logits / temperature, -1), 1, generator=generator)
            ids = torch.cat([ids, drawn], 1)
    return ids


@wrong("gpt_block.generate_cached", "each block has keys and values of its own")
def cached_in_one_cache_for_all(model, ids, n, temperature, generator):
    caches, new = caches_for(model, len(ids))[:1] * len(model.h), ids
    with torch.no_grad():
        for _ in range(n):
            start = caches[0].length
            logits = pass_through(model, new, torch.arange(start, start + new.shape[1]), caches)[:, -1]
            new = torch.multinomial(F.softmax(logits / temperature, -1), 1, generator=generator)
            ids = torch.cat([ids, new], 1)
    return ids


@wrong("gpt_block.generate_cached", "sees only itself")
def cached_by_nobody(model, ids, n, temperature, generator):
    new = ids
    with torch.no_grad():
        for _ in range(n):
            logits = model(new).logits[:, -1]
            new = torch.multinomial(F.softmax(logits / temperature, -1), 1, generator=generator)
            ids = torch.cat([ids, new], 1)
    return ids


@wrong("gpt_block.generate", "torch's own generator")
def generate_from_any_draws(model, ids, n, temperature, generator):
    for _ in range(n):
        logits = model(ids[:, -model.config.n_positions :]).logits[:, -1] / temperature
        ids = torch.cat([ids, torch.multinomial(F.softmax(logits, -1), 1)], 1)
    return ids
