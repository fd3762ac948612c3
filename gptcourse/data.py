"""What a step of training reads: batches and random numbers as functions of (seed, step), padding, checks.

Nothing random is carried from step to step, so a checkpoint needs no state of a generator. An *example* is a pair of
lists: token ids, and for each the target that follows it, or IGNORED where nothing is to be learned.

Source: Salmon et al. (2011), "Parallel Random Numbers: As Easy as 1, 2, 3" (Philox, a generator with a counter).
Shapes: B sequences in a batch, T tokens each.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import wraps
from itertools import chain
from numbers import Integral
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gptcourse.checks import COUNT, COUNT_OR_ZERO, SEED, TEXT, An, ListOf, Shape, as_array, checked, shown
from gptcourse.config import TrainingConfig

Example: TypeAlias = tuple[list[int], list[int]]
Batches: TypeAlias = Callable[[int], list[tuple[Tensor, Tensor]]]
IGNORED = -100  # the target that F.cross_entropy leaves out
# Held while dropout draws from torch's global generator, which other threads may draw from as well.
global_random = threading.RLock()


@checked(template=TEXT, text=TEXT)
def fill_template(template: str, text: str) -> str:
    """Return a template such as "{text}\\n{label}" with its text, up to the label. ValueError for one without both."""
    if template.count("{label}") != 1 or not template.endswith("{label}") or "{text}" not in template:
        raise ValueError(f"The template must hold {{text}} and end with {{label}}, but it is {template!r}.")
    return template.removesuffix("{label}").replace("{text}", text)


def alone_with_random(function: Callable) -> Callable:
    """Return a function that draws from torch's global generator, and lets no thread that trains draw meanwhile."""

    @wraps(function)
    def call(*arguments, **named):
        """Call it with the generator held."""
        with global_random:
            return function(*arguments, **named)

    return call


@checked(seed=SEED, counters=COUNT_OR_ZERO)
def counted_rng(seed: int, *counters: int) -> np.random.Generator:
    """Return the generator of these up to two counters: always the same, and independent of all others. ValueError."""
    if len(counters) > 2:
        raise ValueError(f"There are {len(counters)} counters, but the generator takes two at most.")
    # Drawing moves Philox's 256-bit counter up from its low end, so the counters go into the high half: in the low one,
    # each step would draw most of the numbers of the step before again.
    return np.random.Generator(np.random.Philox(key=seed, counter=sum(c << 64 * i for i, c in enumerate(counters, 2))))


@contextmanager
def counted_dropout(device: torch.device, seed: int, step: int, part: int) -> Iterator[None]:
    """Let dropout on `device` depend on the counters alone, and give torch's generator back as it was."""
    backend = {"cuda": torch.cuda, "mps": torch.mps}.get(device.type, torch)
    # Not torch.manual_seed: it would seed the caller's other devices as well.
    seed_device = torch.default_generator.manual_seed if backend is torch else backend.manual_seed
    current = torch.cuda.device(device) if backend is torch.cuda else nullcontext()  # whose generator is meant
    with global_random, current:
        state = backend.get_rng_state()
        seed_device(int(counted_rng(seed, step, part + 1).integers(2**63)))  # + 1: part 0 is the batch's own
        try:
            yield
        finally:
            backend.set_rng_state(state)


@checked(tokens=Shape("n", "whole"), batch_size=COUNT, sequence_length=COUNT, seed=SEED, step=COUNT_OR_ZERO)
def get_batch(tokens: Tensor, batch_size: int, sequence_length: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Return (ids, targets), each (B, T), cut at random places out of (n,) `tokens`.

    The target of each token is the token after it. A pure function: the same seed and step give the same batch. Raises
    ValueError, also for a text that is no longer than a sequence.
    """
    if len(tokens) <= sequence_length:
        raise ValueError(f"{len(tokens)} tokens hold no sequence of {sequence_length} and a token after it: give more.")
    starts = counted_rng(seed, step).integers(0, len(tokens) - sequence_length, size=(batch_size, 1))
    places = (torch.from_numpy(starts) + torch.arange(sequence_length)).to(tokens.device)  # (B, T)
    return tokens[places], tokens[places + 1]


@checked(step=COUNT_OR_ZERO, config=An(TrainingConfig))
def batch_size_at(step: int, config: TrainingConfig) -> int:
    """Return the number of sequences per forward pass in one step, counted from 0.

    It climbs in a straight line, rounded up to whole sequences, for `batch_ramp_steps` steps, the step after which is
    the first with the full batch. GPT-3's line is one of tokens: from 32,000 to the full batch over the first 4 to 12
    billion (Brown et al. 2020, appendix B). Learning rates do not follow it.
    """
    ramp = config.batch_ramp_steps
    return math.ceil(config.batch_size * (min(step, ramp) + 1) / (ramp + 1))


@checked(tokens=Shape("n", "whole"), config=An(TrainingConfig), sequence_length=COUNT, n_processes=COUNT)
def text_batches(tokens: Tensor, config: TrainingConfig, sequence_length: int, n_processes: int) -> Batches:
    """Return the function from a step to the micro-batches (ids, targets) of all processes, cut out of a text."""
    n_parts = config.gradient_accumulation_steps * n_processes

    def batches(step: int) -> list[tuple[Tensor, Tensor]]:
        n_sequences = n_parts * batch_size_at(step, config)
        ids, targets = get_batch(tokens, n_sequences, sequence_length, config.seed, step)
        return list(zip(ids.chunk(n_parts), targets.chunk(n_parts), strict=True))

    return batches


@checked(examples=ListOf(list | tuple, "examples", 1), config=An(TrainingConfig), n_processes=COUNT)
def example_batches(examples: Sequence[Example], config: TrainingConfig, n_processes: int) -> Batches:
    """Return the function from a step to the micro-batches (ids, targets) of all processes, drawn from examples."""
    n_parts = config.gradient_accumulation_steps * n_processes

    def batches(step: int) -> list[tuple[Tensor, Tensor]]:
        shape = n_parts, batch_size_at(step, config)
        drawn = counted_rng(config.seed, step).integers(len(examples), size=shape)
        return [pad([examples[i] for i in part]) for part in drawn]

    return batches


@checked()
def pad(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Return ids and targets (B, T), padded on the right: no token looks to its right, so no mask is needed.

    Raises ValueError for none, and for what is no pair of lists of whole numbers.
    """
    if not (rows := _pairs(examples)):
        raise ValueError("There are no examples to pad: give one or more.")
    ids, targets = (
        [torch.from_numpy(np.array(row, dtype=np.int64)) for row in part] for part in zip(*rows, strict=True)
    )
    return pad_sequence(ids, batch_first=True), pad_sequence(targets, batch_first=True, padding_value=IGNORED)


def _pairs(examples: Iterable[Example]) -> list[Example]:
    """Return examples as pairs of lists. Raises ValueError for what is none."""
    try:
        pairs = [(list(ids), list(targets)) for ids, targets in examples]
    except (TypeError, ValueError, IndexError):
        pairs = [([None], [])]
    kinds = {*map(type, chain.from_iterable(chain.from_iterable(pairs)))}
    if not all(issubclass(kind, Integral) and kind is not bool for kind in kinds):
        raise ValueError("Examples are a list of pairs (ids, targets), both lists of whole numbers.")
    return pairs


def count_targets(examples: Iterable[Example]) -> int:
    """Return the number of targets that are not IGNORED."""
    return sum(target != IGNORED for _, targets in _pairs(examples) for target in targets)


def check_tokens(tokens, vocab_size: float, least: int, name: str) -> Tensor:
    """Return token ids as an int64 tensor (n,), or raise ValueError with one sentence that says what is wrong."""
    array = as_array(tokens)
    if array.ndim != 1:
        raise ValueError(f"The {name} must be one row of token ids, as encode() gives; their shape is {array.shape}.")
    if len(array) < least:
        raise ValueError(f"The {name} are {len(array)}, but at least {least} are needed: give a longer text.")
    if array.dtype.kind not in "iu":
        raise ValueError(f"The {name} must be whole numbers, not {array.dtype}: give what encode() returns.")
    if array.min() < 0 or array.max() >= vocab_size:
        raise ValueError(
            f"The {name} go from {array.min()} to {array.max()}, but the model knows ids from 0 to {vocab_size - 1}: "
            "use the tokenizer that the model was made for."
        )
    return torch.from_numpy(array.astype(np.int64))


def check_examples(examples: Iterable[Example], vocab_size: int, window: int) -> list[Example]:
    """Return the examples as a list. Raises ValueError for none, and for one that a model of this size cannot take."""
    examples = _pairs(examples)
    if not examples or any(set(targets) <= {IGNORED} for _, targets in examples):
        raise ValueError("There must be examples with something to learn in each: encode_dialogues makes such ones.")
    for ids, targets in examples:
        if len(ids) != len(targets):
            raise ValueError(f"An example has {len(ids)} ids and {len(targets)} targets: give a target for each id.")
    longest = max(len(ids) for ids, _ in examples)
    if longest > window:
        raise ValueError(f"An example is {longest} tokens long, but this model takes {window}: shorten or drop it.")
    found = {*chain(*(ids for ids, _ in examples))} | {*chain(*(targets for _, targets in examples))} - {IGNORED}
    if wrong := sorted(token for token in found if not 0 <= token < vocab_size):
        raise ValueError(
            f"An example holds token {shown(wrong[0])}, but the model knows ids from 0 to {vocab_size - 1}: use the "
            "tokenizer that the model was made for."
        )
    return examples


def fingerprint(tokens: Tensor | None) -> str | None:
    """Return a short identification of token ids: their number and SHA-256."""
    return None if tokens is None else _fingerprint(Shape("n", "whole")("tokens", tokens, {}).cpu().numpy())


def _fingerprint(numbers: np.ndarray) -> str:
    return f"{len(numbers)} ids, sha256 {hashlib.sha256(np.ascontiguousarray(numbers)).hexdigest()[:16]}"


@checked()
def fingerprint_examples(examples: Iterable[Example]) -> str:
    """Return the same of all ids and targets of examples."""
    numbers = [number for ids, targets in _pairs(examples) for number in (*ids, *targets)]
    return _fingerprint(np.array(numbers, dtype=np.int64))
