"""Write only what a regular expression allows: at each step, rule out every token after which no match is possible.

Source: Willard and Louf (2023), "Efficient Guided Generation for Large Language Models", arXiv:2307.09702, section 3.
They look tokens up in a table made beforehand, as the library outlines-core does; here each is tried when it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from numbers import Integral

import torch
from torch import Tensor

from gptcourse.generation import LogitsProcessor
from gptcourse.tokenizers import token_bytes


def only_matching(pattern: str, tokenizer, prompt_length: int | Sequence[int], eos_token_id: int) -> LogitsProcessor:
    """Return a logits processor under which what follows the prompt matches `pattern`, and then ends.

    Args:
        pattern: of the module `regex`, without looking ahead or behind; the whole new text has to match it.
        tokenizer: ours, or a byte-level one of transformers. A token that ends within a letter is never used.
        prompt_length: tokens of the prompt, or of each prompt of a batch.
        eos_token_id: allowed only where the match is complete; what stands after it is free. `generate` needs it, too.

    Masking makes every text fit, but does not draw as the model would among those that fit: Park et al. (2024),
    "Grammar-Aligned Decoding", arXiv:2405.21047, section 3. Raises ValueError for a pattern that is none, and where no
    token can continue the text.
    """
    allowed, pieces = followers(pattern, tokenizer, eos_token_id), token_bytes(tokenizer)
    allowed("")  # a pattern that cannot begin is refused at once

    def rule_out(ids: Tensor, logits: Tensor) -> Tensor:
        """Return the logits (B, V) after ids (B, T), -inf where no match could follow."""
        lengths = [prompt_length] * len(ids) if isinstance(prompt_length, Integral) else prompt_length
        masked = torch.full_like(logits, -math.inf)
        for row, (text, length) in enumerate(zip(ids.tolist(), lengths, strict=True)):
            new = text[length:]
            free = len(text) < length or eos_token_id in new  # still reads its prompt, or has ended
            places = slice(None) if free else allowed(b"".join(pieces[i] for i in new).decode())
            masked[row, places] = logits[row, places]
        return masked

    return rule_out


def followers(pattern: str, tokenizer, eos_token_id: int) -> Callable[[str], list[int]]:
    """Return the function that gives the tokens after which a text, so far, still is the beginning of a match.

    The end token is one of them where the text is a match already. It raises ValueError where there are none.
    """
    import regex  # which transformers needs, too; unlike `re` it says whether a text could still become a match

    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}.") from None
    pieces = token_bytes(tokenizer)
    decoded = enumerate(piece.decode(errors="ignore") for piece in pieces)
    # Whole letters; the end token stands for no text, even if it is one elsewhere.
    texts = {i: text for i, text in decoded if i != eos_token_id and text and text.encode() == pieces[i]}
    firsts = {text[0] for text in texts.values()}

    @lru_cache(256)  # in a free part of the pattern each text allows nearly all tokens
    def allowed(text: str) -> list[int]:
        """Return the tokens that may follow a text."""
        begins = {sign for sign in firsts if compiled.fullmatch(text + sign, partial=True)}  # rules out most at once
        found = [i for i, new in texts.items() if new[0] in begins and compiled.fullmatch(text + new, partial=True)]
        found += [eos_token_id] if compiled.fullmatch(text) else []
        if not found:
            raise ValueError(f"No token of this vocabulary can continue {text!r} to a match of {pattern!r}.")
        return found

    return allowed
