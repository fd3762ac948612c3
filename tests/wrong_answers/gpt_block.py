"""Wrong answers to the exercises of notebook 02."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from gptcourse.exercises.attention import MultiHeadAttention
from gptcourse.model import GPTOutput
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


class OwnMlp(nn.Module):
    def __init__(self, n_embd):
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 4 * n_embd)
        self.c_proj = nn.Linear(4 * n_embd, n_embd)
        self.gelu = nn.GELU("tanh")

    def forward(self, x):
        return self.c_proj(self.gelu(self.c_fc(x)))


class OwnBlock(nn.Module):
    def __init__(self, n_embd, n_head):
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
        self.attn = MultiHeadAttention(n_embd, n_head)
        self.ln_2 = nn.LayerNorm(n_embd)
        self.mlp = OwnMlp(n_embd)


@wrong("gpt_block.block", "Only the copies that the parts read should be")
class BlockWithNormsAfter(OwnBlock):
    def forward(self, x):
        x = x + self.attn(x)
        x = self.ln_1(x)
        x = x + self.mlp(x)
        return self.ln_2(x)


@wrong("gpt_block.block", "the path past the parts is missing")
class BlockInARow(OwnBlock):
    def forward(self, x):
        for norm, part in ((self.ln_1, self.attn), (self.ln_2, self.mlp)):
            x = part(norm(x))
        return x


class OwnGPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList([RightBlock(config.n_embd, config.n_head) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)

    def embed(self, ids):
        return self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))

    def forward(self, ids, targets=None):
        x = self.embed(ids)
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        return GPTOutput(logits, None if targets is None else F.cross_entropy(logits.mT, targets))


class RightBlock(OwnBlock):
    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


@wrong("gpt_block.whole", "cannot tell the order of the tokens")
class GPTWithoutPositions(OwnGPT):
    def embed(self, ids):
        return self.wte(ids)


@wrong("gpt_block.whole", "The norm after the last block is missing")
class GPTWithoutLastNorm(OwnGPT):
    def forward(self, ids, targets=None):
        x = self.embed(ids)
        for block in self.h:
            x = block(x)
        logits = x @ self.wte.weight.T
        return GPTOutput(logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten()))


@wrong("gpt_block.open", "lying on their side")
def opened_as_it_lies(weights):
    ours = {}
    for name in weights:
        ours[name.replace("transformer.", "")] = weights[name]
    ours["lm_head.weight"] = weights["transformer.wte.weight"]
    return ours


@wrong("gpt_block.open", "The LM head is missing")
def opened_without_head(weights):
    turned = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    return {n[len("transformer.") :]: w.t() if n.endswith(turned) else w for n, w in weights.items()}


@wrong("gpt_block.write", "The temperature does nothing")
def write_without_temperature(model, ids, n_new, temperature, draw):
    text = list(ids)
    for _ in range(n_new):
        logits = model(torch.tensor([text[-model.config.n_positions :]])).logits
        text.append(draw(torch.softmax(logits[0, -1].detach(), -1)))
    return text


@wrong("gpt_block.write", "Only the new tokens are returned")
def write_new_tokens(model, ids, n_new, temperature, draw):
    text, new = list(ids), []
    for _ in range(n_new):
        logits = model(torch.tensor([text[-model.config.n_positions :]])).logits[0, -1].detach()
        token = draw((logits / temperature).softmax(-1))
        text.append(token)
        new.append(token)
    return new


@wrong("gpt_block.mend_path", "The first path is mended")
def path_mended_once(x, ln_1, attn, ln_2, mlp):
    x = x + attn(ln_1(x))
    x = ln_2(x)
    x = x + mlp(x)
    return x


@wrong("gpt_block.mend_path", "only the last part's result")
def path_of_results(x, ln_1, attn, ln_2, mlp):
    normed = ln_1(x)
    attended = attn(normed)
    return mlp(ln_2(attended))
