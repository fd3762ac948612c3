"""Speculative decoding: a small model proposes several tokens, the large one checks them all in a single pass.

Sources: Leviathan et al. (2023), arXiv:2211.17192, algorithm 1; Chen et al. (2023), arXiv:2302.01318, algorithm 2. What
is written follows the large model's distribution exactly, whatever the small one proposes.

Shapes: V = vocab_size, n = tokens whose followers are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gptcourse.checks import COUNT, An, checked
from gptcourse.generation import Sampling, check_prompts, exponential_noise, next_token_distribution, rng_of, sample
from gptcourse.model import GPT
from gptcourse.ngrams import NGrams
from gptcourse.views import eval_view

Reader = Callable[[list[int], int], Tensor]  # (text, n) -> the logits (n, V) after each of its last n tokens


class Speculated(NamedTuple):
    """A text, and how it came about; `overlap` is the acceptance rate that Leviathan et al. (theorem 3.5) expect."""

    ids: list[int]
    passes: int  # of the large model; the first also reads the prompt
    tested: int  # proposed tokens that were reached, the first refused one included
    accepted: int
    overlap: float  # mean over the tested tokens of the sum of min(p, q)


@checked(n_draft=COUNT, sampling=An(Sampling))
@torch.inference_mode()
def speculate(
    model: GPT,
    draft: GPT | NGrams,
    ids: list[int],
    max_new_tokens: int,
    n_draft: int = 4,
    sampling: Sampling = Sampling(),
    eos_token_id: int | None = None,
) -> Speculated:
    """Continue a prompt as `generate` does, with `n_draft` proposals of the draft for each pass of the model.

    Raises ValueError as `generate` does, for several prompts, a text that outgrows a window, models of different
    vocabularies, and fewer than 1 proposal.
    """
    ids = _check(model, draft, ids, max_new_tokens, eos_token_id)
    read, read_draft, generator = _reader(model), _reader(draft), rng_of(sampling)
    text, end, passes, accepted, overlaps = list(ids), len(ids) + max_new_tokens, 0, 0, []
    while len(text) < end and not (len(text) > len(ids) and text[-1] == eos_token_id):
        proposal, q = list(text), []
        for _ in range(min(n_draft, end - len(text) - 1)):
            q.append(next_token_distribution(read_draft(proposal, 1)[0], sampling, proposal))
            proposal.append(sample(q[-1], exponential_noise(q[-1].shape, generator)).item())
        logits, passes = read(proposal, len(q) + 1), passes + 1
        for i in range(len(q) + 1):
            p = next_token_distribution(logits[i], sampling, text)
            noise = exponential_noise(p.shape, generator)
            if i == len(q):  # all proposals were accepted, and the model's pass gives one token more
                text.append(sample(p, noise).item())
                break
            u = torch.rand((), generator=generator).item()
            token, kept = accept_or_resample(p, q[i], proposal[len(text)], u, noise)
            text.append(token)
            accepted += kept
            overlaps.append(torch.minimum(p, q[i]).sum().item())
            if not kept or token == eos_token_id:
                break
    return Speculated(text, passes, len(overlaps), accepted, sum(overlaps) / max(len(overlaps), 1))


def accept_or_resample(p: Tensor, q: Tensor, token: int, u: float, noise: Tensor) -> tuple[int, bool]:
    """Return a token that follows p (V,), made from one drawn from q (V,), and whether it is that one.

    u is uniform between 0 and 1: the token stays with probability min(1, p / q). Otherwise another is drawn, with
    exponential `noise` (V,), from what q gives too little: max(0, p - q).
    """
    if u * q[token] < p[token]:
        return token, True
    return sample((p - q).clamp(min=0), noise).item(), False


def _reader(model: GPT | NGrams) -> Reader:
    """Return a reader with a memory: of a text that begins like the last one, only the rest is read."""
    if isinstance(model, NGrams):
        return lambda text, n: torch.stack(
            [torch.from_numpy(model.next_token_distribution(text[: len(text) - back])) for back in range(n)[::-1]]
        ).log()
    view, seen = eval_view(model), []
    cache = view.new_cache()

    def read(text: list[int], n: int) -> Tensor:
        same = next((i for i, (old, new) in enumerate(zip(seen, text, strict=False)) if old != new), len(seen))
        known = min(same, len(text) - n)
        for layer in cache:
            layer.length = known  # what stood there was refused, and is written over
        seen[:] = text
        new = torch.tensor([text[known:]], device=view.device)
        return view(new, cache=cache, logits_to_keep=n).logits[0].cpu()

    return read


def _check(model, draft, ids, max_new_tokens, eos_token_id):
    """Return the prompt as a list."""
    sizes = [part.vocab_size if isinstance(part, NGrams) else part.config.vocab_size for part in (model, draft)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"The model knows {sizes[0]} tokens and the draft {sizes[1]}: they need one tokenizer.")
    windows = [part.config.n_positions for part in (model, draft) if not isinstance(part, NGrams)]
    rows = check_prompts(model, ids, max_new_tokens, eos_token_id)
    if len(rows) > 1:
        raise ValueError(f"There are {len(rows)} prompts: give one.")
    if len(rows[0]) + max_new_tokens > min(windows):
        raise ValueError(f"{len(rows[0])} + {max_new_tokens} tokens do not fit into a window of {min(windows)}.")
    return rows[0]
