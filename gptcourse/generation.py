"""Write with a language model: from logits to a distribution, from a distribution to a token, and round again.

Sources: Fan et al. (2018), arXiv:1805.04833, section 5.4 (top-k); Holtzman et al. (2020), arXiv:1904.09751, section 3.1
(top-p); Nguyen et al. (2024), arXiv:2407.01082 (min-p); Tang et al. (2024), arXiv:2411.07641 (top-nσ); Meister et al.
(2023), arXiv:2202.00666 (locally typical); Keskar et al. (2019), arXiv:1909.05858, section 4.1 (repetition
penalty). The order of the rules is that of transformers; llama.cpp, by default, applies the temperature last.

Shapes: B texts in a batch, T tokens each, V = vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from numbers import Integral
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from gptcourse.checks import COUNT, COUNT_OR_ZERO, POSITIVE, POSITIVE_OR_ZERO, SHARE, An, ListOf, Shape, checked
from gptcourse.config import check_settings
from gptcourse.data import global_random
from gptcourse.fast_decoder import Decoder, can_decode
from gptcourse.model import GPT
from gptcourse.views import context_window, device_of, eval_view, is_transformers, new_cache, only_last, vocab_size_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LogitsProcessor: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Prompts: TypeAlias = Sequence[int] | Sequence[Sequence[int]] | np.ndarray | Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn, by default from the model's own distribution. ValueError for a value out of range.

    `temperature=0` takes the best token; `top_k=0`, `top_p=1`, `min_p=0`, `repetition_penalty=1`, `typical_p=1` and
    `top_n_sigma=0` switch a rule off. The same `seed` gives the same draws; None takes torch's global generator.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    typical_p: float = 1.0
    top_n_sigma: float = 0.0

    def __post_init__(self):
        check_settings(self)


@checked(sampling=An(Sampling))
def generate(
    model: GPT | PreTrainedModel,
    ids: Prompts,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    eos_token_id: int | None = None,
    use_cache: bool = True,
    logits_processor: LogitsProcessor | None = None,
) -> list[int] | list[list[int]] | np.ndarray | Tensor:
    """Continue a prompt, or each prompt of a batch, by up to `max_new_tokens` tokens.

    Args:
        model: a GPT, your own with a `config` (vocab_size, n_positions), or a causal language model of transformers,
            compiled or wrapped or not; it stays as it is.
        ids: a list or tuple of ints, or of such rows (of any lengths), or an integer tensor or array (T,) or (B, T).
        eos_token_id: a row ends after drawing it (in a prompt it ends nothing).
        use_cache: False computes every token anew at each step; slower, for the same result.
        logits_processor: called with the tokens so far (B, T) and the logits (B, V), it returns the logits to draw
            from: see `only_tokens_of`; those of transformers will do, and a LogitsProcessorList for several.

    Returns ids of the same kind (lists for tuples) with the new ones appended; in a tensor or array, rows that ended
    early are filled with eos_token_id. Once a text outgrows the model's window, only its end counts: see `first_kept`.

    Raises ValueError for an empty prompt, for anything that is not a token id of the model, for a tensor or array of a
    type too small to hold them all, and for a model of unknown window.
    """
    rows = check_prompts(model, ids, max_new_tokens, eos_token_id)
    vocab_size = vocab_size_of(model)
    if isinstance(ids, Tensor | np.ndarray) and vocab_size - 1 > np.iinfo(str(ids.dtype).removeprefix("torch.")).max:
        raise ValueError(f"ids are {ids.dtype}, which cannot hold token {vocab_size - 1}: convert them to int64.")
    noise = _noise(sampling)
    for tokens in _write(model, rows, max_new_tokens, sampling, noise, eos_token_id, use_cache, logits_processor):
        for row, token in zip(rows, tokens, strict=True):
            row += [] if token is None else [token]
    one = not isinstance(_as_list(ids[0]), list)
    if not isinstance(ids, Tensor | np.ndarray):
        return rows[0] if one else rows
    longest = max(map(len, rows))
    rows = np.array([row + [eos_token_id] * (longest - len(row)) for row in rows])[0 if one else slice(None)]
    return rows.astype(ids.dtype) if isinstance(ids, np.ndarray) else ids.new_tensor(rows)


@checked(sampling=An(Sampling))
def stream(
    model: GPT | PreTrainedModel,
    ids: Prompts,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    eos_token_id: int | None = None,
    use_cache: bool = True,
    logits_processor: LogitsProcessor | None = None,
) -> Iterator[int]:
    """Yield the new tokens of one prompt as they are drawn: those that `generate` appends, with the same arguments."""
    rows = check_prompts(model, ids, max_new_tokens, eos_token_id)
    if len(rows) > 1:
        raise ValueError(f"stream writes one text, but there are {len(rows)} prompts: use generate for a batch.")
    noise = _noise(sampling)
    texts = _write(model, rows, max_new_tokens, sampling, noise, eos_token_id, use_cache, logits_processor)
    return (token for (token,) in texts)


@torch.inference_mode()  # which torch leaves at each yield
def _write(model, prompts, max_new_tokens, sampling, noise, eos_token_id, use_cache, logits_processor):
    """Yield, for each position, the token that each row writes there, or None if it still reads or has ended.

    Writing starts after the shortest prompt; a row whose prompt goes on takes its own next token instead of the
    drawn one. So all rows stay aligned, with no padding and no masks: the way of the code of LLaMA (arXiv:2302.13971).
    """
    model = eval_view(model)
    if can_decode(model):
        model = Decoder(model)  # gives the same logits in less time; optional to read: fast_decoder.py
    starts = [len(prompt) for prompt in prompts]
    ends = [start + max_new_tokens for start in starts]
    next_logits, fill = _Reader(model, use_cache, max(ends)), eos_token_id or 0  # a logits processor sees the filling
    ids = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True, padding_value=fill)
    ids = F.pad(ids, (0, max_new_tokens), value=fill)  # (B, T), with room for what is written
    position = min(starts)
    while position < max(ends):
        writes = [start <= position < end for start, end in zip(starts, ends, strict=True)]
        if any(writes):  # if not, nothing is drawn, and the reader catches up later
            seen = ids[:, :position]
            logits = next_logits(seen)  # (B, V)
            if logits_processor is not None:
                logits = logits_processor(seen.to(logits.device), logits)
            probabilities = next_token_distribution(logits, sampling, seen).cpu()  # (B, V)
            drawn = _race(probabilities, noise(probabilities.shape))  # (B,)
            ids[:, position] = drawn if all(writes) else drawn.where(torch.tensor(writes), ids[:, position])
            tokens = [token if new else None for token, new in zip(drawn.tolist(), writes, strict=True)]
            yield tokens
            ended = [token is not None and token == eos_token_id for token in tokens]
            ends = [position + 1 if now else end for now, end in zip(ended, ends, strict=True)]
        position += 1


class _Reader:
    """Give the logits that follow a growing text, reading only what is not in the cache yet.

    When first_kept moves, every token comes to stand at another position: the cache is worth nothing and built anew.
    """

    def __init__(self, model, use_cache, length):
        self.model, self.use_cache, self.length = model, use_cache, length
        self.device = getattr(model, "device", None) or device_of(model)
        self.window, self.start, self.n_read, self.cache = context_window(model), 0, 0, None
        self.ours = hasattr(model, "new_cache")  # else a model of transformers, or one that knows no cache at all
        self.options = ({"use_cache": use_cache} if is_transformers(model) else {}) | only_last(model, 1)

    def __call__(self, ids):
        """Return the logits (B, V) of the token after ids (B, T)."""
        start = 0 if ids.shape[1] <= self.window else first_kept(ids.shape[1], self.window)
        if self.cache is None or start != self.start:
            self.start = self.n_read = start
            self.cache = new_cache(self.model, len(ids), self.length) if self.ours and self.use_cache else None
        new, self.n_read = ids[:, self.n_read :].to(self.device), ids.shape[1]
        cache = {} if self.cache is None else {"cache" if self.ours else "past_key_values": self.cache}
        output = self.model(new, **cache, **self.options)
        if not self.ours:
            self.cache = getattr(output, "past_key_values", None)  # None: everything is read anew
        return output.logits[:, -1]


@checked(length=COUNT_OR_ZERO, window=COUNT)
def first_kept(length: int, window: int) -> int:
    """Return the first position that counts once `length` tokens have been read through a window.

    Whenever a text outgrows the window, its last half-window is kept. The answer depends on the length alone: it is
    the same whether tokens were read or written, and whichever prompts share the batch.
    """
    half = max(1, window // 2)
    dropped = window + 1 - half  # tokens forgotten each time
    return dropped * math.ceil(max(0, length - window) / dropped)


@checked(logits=Shape("... V"), penalty=POSITIVE)
def apply_repetition_penalty(logits: Tensor, previous_ids: Sequence | Tensor, penalty: float) -> Tensor:
    """Make tokens that already occur less likely: divide their logits by `penalty`, or multiply where negative.

    logits (..., V), previous_ids (..., T); a token that occurs twice is penalised once. Keskar et al. (2019), section
    4.1, divide every logit; but dividing a negative one would make the token more likely, hence the two cases.
    """
    previous = _previous(previous_ids).to(logits.device)
    if previous.shape[:-1] != logits.shape[:-1]:
        raise ValueError(f"previous_ids {(*previous.shape,)} needs a row for each row of logits {(*logits.shape,)}.")
    if previous.numel() and not 0 <= previous.min() <= previous.max() < logits.shape[-1]:
        raise ValueError(f"previous_ids contains a token outside the vocabulary of {logits.shape[-1]} tokens.")
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, previous, True)  # (..., V)
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def _previous(ids):
    """Return the tokens so far as an int64 tensor."""
    try:
        previous = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError):
        previous = ids
    none = isinstance(previous, Tensor) and not previous.numel()
    return (previous if none else Shape("... T", "whole")("previous_ids", previous, {})).long()


@checked(logits=Shape("... V"), temperature=POSITIVE_OR_ZERO)
def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide the logits by the temperature: below 1 the distribution becomes sharper, above 1 flatter."""
    if temperature < 1e-6:  # the quotient would overflow; a shift of all logits changes no probability
        logits, temperature = logits - logits.amax(-1, keepdim=True), max(temperature, 1e-30)
    return logits / temperature


@checked(logits=Shape("... V"), k=COUNT)
def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits and those equal to the k-th; the others become -inf. Fan et al. (2018), section 5.4."""
    kth = logits.topk(min(k, logits.shape[-1])).values[..., -1:]  # (..., 1)
    return logits.masked_fill(logits < kth, -math.inf)


@checked(logits=Shape("... V"), p=SHARE)
def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest best tokens that hold probability p, at least one. Holtzman et al. (2020), section 3.1."""
    ascending, order = logits.sort(dim=-1)
    # From the least likely token up: all go that together hold no more than 1 - p.
    drop = ascending.softmax(-1).cumsum(-1) <= 1 - p
    drop[..., -1] = False  # the best token stays, whatever p is
    return logits.masked_fill(drop.scatter(-1, order, drop), -math.inf)


@checked(logits=Shape("... V"), min_p=SHARE)
def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Keep the tokens that are at least `min_p` times as likely as the best one. Nguyen et al. (2024)."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < min_p * probabilities.amax(-1, keepdim=True), -math.inf)


@checked(logits=Shape("... V"), n=POSITIVE_OR_ZERO)
def keep_top_n_sigma(logits: Tensor, n: float) -> Tensor:
    """Keep the logits at most n of their standard deviations below the best one. Tang et al. (2024).

    The deviation (that of all, dividing by their number) is taken over the finite logits. A temperature scales both
    sides alike, so it changes nothing here.
    """
    finite = logits > -math.inf
    mean = logits.masked_fill(~finite, 0.0).sum(-1, keepdim=True) / finite.sum(-1, keepdim=True)
    squares = (logits - mean).masked_fill(~finite, 0.0).square().sum(-1, keepdim=True)
    deviation = (squares / finite.sum(-1, keepdim=True)).sqrt()
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) - n * deviation, -math.inf)


@checked(logits=Shape("... V"), p=SHARE)
def keep_typical_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest tokens that hold probability p, those first whose surprise, -ln p, is nearest to the entropy.

    Meister et al. (2023). Of equally near ones all are kept, as in transformers.
    """
    surprise = -logits.log_softmax(-1)
    entropy = (surprise.exp().reciprocal() * surprise).nansum(-1, keepdim=True)  # 0 · inf counts nothing
    distance, order = (surprise - entropy).abs().sort(dim=-1)
    held = logits.gather(-1, order).softmax(-1).cumsum(-1)
    last = (held < p).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    drop = distance > distance.gather(-1, last)
    return logits.masked_fill(drop.scatter(-1, order, drop), -math.inf)


@checked(logits=Shape("... V"), sampling=An(Sampling))
def next_token_distribution(
    logits: Tensor, sampling: Sampling, previous_ids: Sequence | Tensor | None = None
) -> Tensor:
    """Return the probabilities (..., V) that the next token is drawn from, given the model's logits (..., V).

    The rules follow one another as in transformers: repetition penalty, temperature, top-k, top-p, min-p, typical;
    top-nσ, which transformers has not, comes before top-k, as it looks at all logits. previous_ids (..., T), the
    tokens so far, are for the penalty only. Half precision is computed, and returned, in float32.

    Raises ValueError if the logits are not floating-point numbers or no distribution follows from them.
    """
    logits = logits.float() if logits.element_size() < 4 else logits
    if sampling.repetition_penalty != 1 and previous_ids is not None:
        logits = apply_repetition_penalty(logits, previous_ids, sampling.repetition_penalty)
    best = logits.max(-1, keepdim=True)  # NaN and +inf, if there are any, win
    if not all(map(math.isfinite, best.values.flatten().tolist())):
        raise ValueError("No token can be drawn, as the logits contain NaN or infinity: the training has diverged.")
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter(-1, best.indices, 1.0)
    if sampling.temperature != 1:
        logits = apply_temperature(logits, sampling.temperature)
    if sampling.top_n_sigma > 0:
        logits = keep_top_n_sigma(logits, sampling.top_n_sigma)
    if sampling.top_k > 0:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p > 0:
        logits = keep_min_p(logits, sampling.min_p)
    if sampling.typical_p < 1:
        logits = keep_typical_p(logits, sampling.typical_p)
    return logits.softmax(-1)


@checked(shape=ListOf(Integral, "sizes"), generator=An(torch.Generator))
def exponential_noise(shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    """Draw exponential noise, in float64 as float32 is too coarse near 0, where rare tokens win.

    Always on the CPU, so that a seed means the same wherever the model is.
    """
    shape = [COUNT_OR_ZERO("a size in the shape", size) for size in shape]
    with nullcontext() if generator else global_random:
        return torch.rand(shape, dtype=torch.float64, generator=generator).log_().neg_()


def _noise_rule(name, value, sizes):
    return (Shape("... V") if isinstance(value, Tensor) else POSITIVE)(name, value, sizes)


@checked(probabilities=Shape("... V"), noise=_noise_rule)
def sample(probabilities: Tensor, noise: Tensor | float) -> Tensor:
    """Draw a token from each row of probabilities (..., V): the arg-max of probability over exponential noise (..., V).

    A race: token i arrives after the time noise_i / p_i and is the first with probability p_i. Gumbel-max (Maddison et
    al., 2014, arXiv:1411.0030) without the logarithm. With the noise held fixed, draws can be compared: when a knob
    moves, the token changes only where the probabilities make it change.
    """
    return _race(probabilities, noise)


def _race(probabilities, noise):
    return (probabilities / noise).argmax(-1)


def only_tokens_of(tokenizer) -> LogitsProcessor:
    """Return a logits processor that rules out the ids which a padded vocabulary has and the tokenizer has not.

    tokenizer: ours or one of transformers. Only it knows which ids stand for text; a model knows its matrix alone.
    """
    vocabulary = tokenizer.get_vocab().values() if hasattr(tokenizer, "get_vocab") else range(tokenizer.vocab_size)
    known = torch.tensor(sorted(vocabulary))

    @cache
    def padded(size: int, device: torch.device) -> Tensor:
        mask = torch.ones(size, dtype=torch.bool)
        mask[known[known < size]] = False
        return mask.to(device)

    def rule_out(_ids: Tensor, logits: Tensor) -> Tensor:
        return logits.masked_fill(padded(logits.shape[-1], logits.device), -math.inf)

    return rule_out


def rng_of(sampling: Sampling) -> torch.Generator:
    """Return a generator of the settings' seed; a missing seed is drawn at once, from torch's global generator."""
    if sampling.seed is not None:
        return torch.Generator().manual_seed(sampling.seed)
    with global_random:  # which a training run may hold for a step
        return torch.Generator().manual_seed(torch.randint(2**63 - 1, ()).item())


def _noise(sampling):
    """Return what gives the noise of each draw, from this call's own generator."""
    if sampling.temperature == 0:
        return lambda shape: 1.0
    return partial(exponential_noise, generator=rng_of(sampling))


def _as_list(ids):
    """Return a tuple, an array or a tensor as a list, and anything else as it is."""
    if isinstance(ids, Tensor | np.ndarray):
        return ids.tolist()
    return list(ids) if isinstance(ids, tuple) else ids


def check_prompts(model, ids: Prompts, max_new_tokens: int, eos_token_id: int | None = None) -> list[list[int]]:
    """Return the prompts as lists of ints. Raises a ValueError that says what is wrong with an argument."""
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, Integral) or max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens!r}, but it must be a whole number of 0 or more.")
    rows = _as_list(ids)
    if not isinstance(rows, list):
        raise ValueError(
            f"A prompt is token ids in a list, tensor or array, not {type(ids).__name__}: encode text first."
        )
    rows = [_as_list(row) for row in rows]
    rows = rows if rows and all(isinstance(row, list) for row in rows) else [rows]
    if not all(rows):
        raise ValueError("The prompt is empty: give at least one token to continue from.")
    vocab_size = vocab_size_of(model)
    for token in chain([] if eos_token_id is None else [eos_token_id], *rows):
        if isinstance(token, bool) or not isinstance(token, Integral):
            raise ValueError(f"A token id is a whole number, not {token!r}.")
        if not 0 <= token < vocab_size:
            raise ValueError(f"Token {token} is outside the vocabulary: this model knows 0 to {vocab_size - 1}.")
    return [[int(token) for token in row] for row in rows]
