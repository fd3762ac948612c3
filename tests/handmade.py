"""A GPT whose heads are known, for tests of what finds, draws and records heads."""

import torch

from gptcourse.model import GPT, GPTConfig

SHARP = 30.0  # large enough for a softmax that gives everything to one key


def handmade_model(vocab_size: int = 64) -> GPT:
    """Return a GPT of two layers whose heads are known, because every parameter is written here and none is trained.

    Layer 0: head 0 looks at the previous token and notes which it was, head 1 looks at the first token and says
    nothing. Layer 1: head 0 is an induction head (it looks for a token that noted what stands here now, and predicts
    that token again), head 1 looks at everything alike. The two-step circuit is that of Elhage et al. (2021), section
    "Induction heads". The width has three parts: where a token stands, which it is, which stood before it.
    """
    n_positions = 2 * vocab_size
    model = GPT(GPTConfig(vocab_size, n_positions, n_embd=4 * vocab_size, n_layer=2, n_head=2))
    place, token, before = range(n_positions), range(n_positions, 3 * vocab_size), range(3 * vocab_size, 4 * vocab_size)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0)
        model.wpe.weight[place, place] = 1.0
        model.wte.weight[range(vocab_size), token] = 1.0
        first, second = (block.attn for block in model.h)
        _connect(first, query=place[1:], key=place[:-1], value=token, output=before)
        head_1 = first.head_size  # the row of its first query; all 2 * n_positions queries come before the keys
        first.c_attn.bias[head_1] = SHARP  # head 1 always asks for number 0,
        first.c_attn.weight[2 * n_positions + head_1, 0] = SHARP  # which the first place has
        _connect(second, query=token, key=before, value=token, output=token)
        second.c_proj.weight.mul_(4.0)  # louder than the token that stands here, which is still in the stream
    return model.eval()


def _connect(layer, query, key, value, output):
    """Let head 0 look from where number i of `query` is to where number i of `key` is, and copy `value` to `output`."""
    queries, keys, values = layer.c_attn.weight.chunk(3)  # (C, C) each; the first rows of each are those of head 0
    queries[range(len(query)), query] = SHARP
    keys[range(len(key)), key] = SHARP
    values[range(len(value)), value] = 1.0
    layer.c_proj.weight[output, range(len(value))] = 1.0
