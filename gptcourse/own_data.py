"""A file of the learner's own: read, divided into three parts, and reported on before anything is trained.

`own_data(path)` takes a text, or rows (.csv, .tsv, .jsonl) of dialogues or of texts. One part is to train on, one to
choose settings by, and one to confirm the choice on, once. Near duplicates among rows never lie in two parts.

Source: Muennighoff et al. (2023), "Scaling Data-Constrained Language Models", section 6 (repeated data).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gptcourse.corpora import MINIMUM_CHARACTERS, MINIMUM_PART, TABLES, cell, end_of_line, read_text, table_rows
from gptcourse.data import Example, count_targets
from gptcourse.duplicates import near_duplicates, repeated_pieces
from gptcourse.files import expand
from gptcourse.finetuning import encode_dialogue
from gptcourse.ngrams import NGrams
from gptcourse.parts import NAMES, Parts, deal
from gptcourse.tokenizers import CharTokenizer, encode_text

LONGEST = 10_000_000  # characters
PAIRS = ("prompt/response", "prompt/completion", "instruction/output", "question/answer", "message/reply")
JSON_OBJECT = re.compile(r'\s*\[?\s*\{\s*"[^"\n]*"\s*:')  # or an array, which table_rows refuses
END = "\0"  # of each message and reply where characters are counted: no file has it
PIECE = 100_000  # characters encoded at once: the tokenizers library takes 400 bytes for each token of a call
N_BLOCKS, STUDENT_T = 20, 2.093  # blocks of an interval; Student's t with 19 degrees of freedom, 95 %
FEW_EPOCHS = 4


class Conversation(NamedTuple):
    """Pairs (message, reply) in their order, and the system message that stood before them."""

    pairs: tuple[tuple[str, str], ...]
    system: str = ""

    def examples(self, tokenizer, window: int | None = None) -> Iterator[Example]:
        """Yield an example for each reply, with all before it as its prompt, while they fit into the window.

        A system message opens the first one.
        """
        (first, reply), *others = self.pairs
        pairs = [(f"{self.system}\n\n{first}" if self.system else first, reply), *others]
        for i, pair in enumerate(pairs):
            example = encode_dialogue(tokenizer, *pair, earlier=pairs[:i])
            if window is not None and len(example[0]) > window:  # and so are those after it
                return
            yield example


@dataclass(frozen=True)
class OwnData:
    """A file in three parts: `train` to train on, `choose` to choose settings by, `confirm` to be opened once.

    A part is a text, or a list of conversations. `rows` holds the rows of each part, a text that was cut being one, and
    `groups` the number of each row's group of near duplicates, or None for a text that was cut.
    """

    name: str
    rows: Parts = field(repr=False)
    groups: Parts | None = field(default=None, repr=False)
    kind: str = "text"  # or "dialogues"

    @property
    def parts(self) -> Parts:
        """All three parts; texts in rows are joined by a blank line."""
        return Parts(*("\n\n".join(rows) if self.kind == "text" else rows for rows in self.rows))

    train = property(lambda self: self.parts.train)
    choose = property(lambda self: self.parts.choose)
    confirm = property(lambda self: self.parts.confirm)

    @property
    def alphabet(self) -> str:
        """Every character of the file once, in order: what a CharTokenizer can be made of."""
        return "".join(sorted(set().union(self._system, *(_characters(part)[0] for part in self.parts)) - {END}))

    @property
    def _system(self) -> str:
        return "".join(row.system for rows in self.rows for row in rows if isinstance(row, Conversation))

    def encode(self, tokenizer, window: int | None = None) -> dict:
        """Return {"train", "choose", "confirm"} as `tune` takes them: token ids (n,) of a text, examples of dialogues.

        Examples longer than `window` tokens are left out. Raises ValueError for a character that has no token, and for
        dialogues and a tokenizer without a chat format.
        """
        return {name: _encode(tokenizer, part, window) for name, part in self.parts._asdict().items()}

    def report(self, tokenizer, window: int | None = None, budget_tokens: float = 0) -> Report:
        """Return what to know before training with this tokenizer, context window and budget: print it.

        Raises ValueError for a tokenizer that knows no character of the file, and for dialogues and one without a chat
        format.
        """
        counts = Counter(self._system + "".join(_characters(part)[0] for part in self.parts))
        del counts[END]
        scripts = Counter()
        for character in filter(str.isalpha, counts):
            scripts[unicodedata.name(character, "unnamed").split()[0].capitalize()] += counts[character]
        known = set(tokenizer.characters) if isinstance(tokenizer, CharTokenizer) and self.kind == "text" else counts
        unknown = {character: n for character, n in counts.most_common() if character not in known}
        holes = dict.fromkeys(map(ord, unknown))
        encoded = Parts(*(_encode(tokenizer, part.translate(holes) if unknown else part) for part in self.parts))
        if not all(map(len, encoded)):
            raise ValueError("A part holds no character that this tokenizer has a token for: make one of `alphabet`.")
        is_text = self.kind == "text"
        n_tokens = [len(part) if is_text else sum(len(ids) for ids, _ in part) for part in encoded]
        n_learned = [len(part) if is_text else count_targets(part) for part in encoded]
        counted = "\n".join(self.parts).split("\n") if is_text else (ids for part in encoded for ids, _ in part)
        return Report(
            self,
            window,
            budget_tokens,
            characters=counts.total(),
            tokens=Parts(*n_tokens),
            lengths=np.array([*map(len, counted)]),
            repeats=_repeats(self),
            scripts={script: times / scripts.total() for script, times in scripts.most_common()},
            unknown=unknown,
            counting=_counting(self, n_learned),
        )


# ---- Reading


def own_data(path: str | Path, *, held_out: float = 0.1, seed: int = 0) -> OwnData:
    """Return a file of 1,000 to 10 million characters in three parts; `choose` and `confirm` take `held_out` each.

    Rows stand in a .csv, .tsv or .jsonl file, or in one that begins as JSON Lines; the first row decides whether they
    are "messages" with role and content, one of `PAIRS` (with or without a column "input"), or a "text". They are dealt
    out at random, near duplicates together. Any other file is one text, and its end is held out.

    Raises ValueError, in one sentence that names the line, for what cannot be read, and for a `held_out` that leaves a
    part empty.
    """
    path = expand(path)
    text = read_text(path)
    if not MINIMUM_CHARACTERS <= len(text) <= LONGEST:
        advice = "take a part of it" if len(text) > LONGEST else "a model needs more text"
        raise ValueError(f"{path} holds {len(text):,} characters, not {MINIMUM_CHARACTERS:,} to {LONGEST:,}: {advice}.")
    if path.suffix.lower() not in TABLES and not JSON_OBJECT.match(text):
        size = _held_out_size(path, held_out, len(text), MINIMUM_PART, "characters")
        first, second = (end_of_line(text, len(text) - n * size, size // 2) for n in (2, 1))
        return OwnData(path.name, Parts([text[:first]], [text[first:second]], [text[second:]]))
    rows = _read_rows(path)
    groups = near_duplicates([row if isinstance(row, str) else " ".join(m for m, _ in row.pairs) for row in rows])
    sizes = sorted(np.bincount(groups))
    if len(sizes) < 3:
        raise ValueError(f"{path} holds {len(sizes)} different rows, the others are near duplicates: 3 are needed.")
    dealt = deal(groups, _held_out_size(path, held_out, len(rows), sizes[1], "rows"), seed)
    kind = "text" if isinstance(rows[0], str) else "dialogues"
    return OwnData(path.name, Parts(*([rows[i] for i in p] for p in dealt)), Parts(*(groups[p] for p in dealt)), kind)


def _held_out_size(path, held_out, n, least, unit) -> int:
    """Return how many of n characters or rows each held-out part takes. Raises ValueError if a part gets too few."""
    size = round(n * held_out) if isinstance(held_out, Real) and 0 < held_out < 0.5 else 0
    if 3 * least > n:
        raise ValueError(f"{path} holds {n} {unit}, but three parts need {least} each that have no near duplicates.")
    if not least <= size <= (n - least) // 2:
        raise ValueError(
            f"held_out is {held_out}, but of {n:,} {unit} each of the three parts needs {least}: choose "
            f"{least / n:.6g} to {(n - least) // 2 / n:.6g}."
        )
    return size


def _read_rows(path) -> list[str] | list[Conversation]:
    rows, read = [], None
    for place, columns in table_rows(path):
        where = f"{path}, {place},"
        read = read or _reader(path, where, [name for name, _ in columns])
        rows.append(read(place, columns))
    if len(rows) < 3:
        raise ValueError(f"{path} holds {len(rows)} rows, but three parts need 3 or more: give more rows.")
    return rows


def _reader(path, where, names):
    """Return the function of a row's place and columns that reads rows with columns of these names."""
    known = {name.strip().casefold(): name for name in names}
    pair = next((pair.split("/") for pair in PAIRS if known.keys() >= {*pair.split("/")}), ())

    def read_pair(place, row) -> Conversation:
        message, reply = (cell(path, place, row, known[name]) for name in pair)
        more = dict(row).get(known.get("input"))
        more = json.dumps(more) if isinstance(more, int | float) and more == more else more
        return Conversation(((f"{message}\n\n{more}" if isinstance(more, str) and more.strip() else message, reply),))

    if "messages" in known:
        return lambda place, row: _conversation(f"{path}, {place},", dict(row).get(known["messages"]))
    if pair:
        return read_pair
    if "text" in known:
        return lambda place, row: cell(path, place, row, known["text"])
    listed = ", ".join(PAIRS)
    raise ValueError(f"{where} has the columns {', '.join(names)}: name yours messages, text, or one of {listed}.")


def _conversation(where, messages) -> Conversation:
    turns = [dict(turn) if isinstance(turn, tuple) else {} for turn in messages] if isinstance(messages, list) else []
    if not turns or not all(isinstance(turn.get(key), str) for turn in turns for key in ("role", "content")):
        raise ValueError(f'{where} needs messages: a list of {{"role": ..., "content": ...}}, both texts.')
    system = turns.pop(0)["content"] if turns[0]["role"] == "system" else ""
    roles = [turn["role"] for turn in turns]
    if strange := next((role for role in roles if role not in ("user", "assistant")), None):
        raise ValueError(
            f"{where} has a message of the role {strange!r}: user and assistant are read, after one of system at most."
        )
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError(
            f"{where} has the roles {', '.join(roles) or 'system alone'}: user and assistant must take turns, "
            "and each user's message needs a response."
        )
    contents = [turn["content"] for turn in turns]
    if not all(content.strip() for content in contents):
        raise ValueError(f"{where} has an empty message: write one there, or delete the row.")
    return Conversation(tuple(zip(contents[::2], contents[1::2], strict=True)), system)


# ---- The report


class Repeats(NamedTuple):
    """What stands twice: shares of the rows, or of a text's characters (in pieces of 50, spelt alike)."""

    within: float  # of the training part, what a part of it before it has
    choose: float  # of the choose part, what the training part has
    confirm: float
    exact: int = 0  # rows of the training part that stand there before, letter by letter
    row_by_row: float = 0.0  # of the held-out rows, those with a near duplicate in training, had each been dealt alone


def _repeats(data: OwnData) -> Repeats:
    if data.groups is None:
        return Repeats(*repeated_pieces(*data.parts))
    (train, *held_out), groups = data.groups, np.concatenate(data.groups)
    shares = [float(np.isin(part, train).mean()) for part in held_out]
    sizes, share = np.bincount(groups), 2 * len(held_out[0]) / len(groups)  # of the rows, held out
    alone = (sizes * share ** np.maximum(sizes - 1, 0)).sum() / len(groups)  # no other one of the group in training
    return Repeats(
        1 - len(np.unique(train)) / len(train), *shares, len(train) - len(set(data.rows.train)), float(1 - alone)
    )


class Counting(NamedTuple):
    """What counting reaches: the lines to beat."""

    losses: list[float]  # of the 1-gram to the 6-gram table on choose, in nats per character that is learned
    to_beat: float  # the lowest of them, in nats per token
    intervals: tuple[float, float]  # half of the 95 % interval of that table's loss on choose and confirm, per token


@dataclass(frozen=True)
class Report:
    """What is to be known of a file before anything is trained on it; its text says it in a few lines."""

    data: OwnData = field(repr=False)
    window: int | None
    budget_tokens: float
    characters: int
    tokens: Parts  # how many
    lengths: np.ndarray = field(repr=False)  # of examples in tokens, of a text's lines in characters
    repeats: Repeats
    scripts: dict[str, float]  # shares of the letters, by the first words of their Unicode names
    unknown: dict[str, int]  # characters without a token
    counting: Counting

    @property
    def epochs(self) -> float:
        """How often the budget reads the training part."""
        return self.budget_tokens / max(self.tokens.train, 1)

    @property
    def too_long(self) -> int:
        """How many examples do not fit the window."""
        return int((self.lengths > self.window).sum()) if self.window and self.data.kind == "dialogues" else 0

    @property
    def warnings(self) -> list[str]:
        """One sentence for each thing to mend, or to keep in mind."""
        repeats, width, few = self.repeats, max(self.counting.intervals), FEW_EPOCHS * self.tokens.train
        leak = max(repeats.choose, repeats.confirm)
        found = [
            self.epochs > FEW_EPOCHS
            and f"The budget reads the training part {self.epochs:.1f} times. Up to about {FEW_EPOCHS} is nearly as "
            f"good as new text (Muennighoff et al. 2023, section 6): find more data, spend {few:,} tokens, or stop "
            "when the loss on choose rises.",
            leak > 0.01 and f"{leak:.0%} of a held-out part stands in the training part: a loss on it flatters.",
            repeats.within > 0.2
            and f"{repeats.within:.0%} of the training part repeats what stands before: it is smaller than it looks.",
            self.too_long and f"{self.too_long} examples are longer than {self.window} tokens: encode leaves them out.",
            self.unknown and "Some characters have no token: make the tokenizer of `alphabet`, or take one of bytes.",
            width > 0.02 * self.counting.to_beat
            and f"Small held-out parts: a loss on them is known to ± {width:.2f} nats per token. Hold out more, or "
            "compare runs block by block.",
        ]
        return [sentence for sentence in found if sentence]

    def __str__(self) -> str:
        data, repeats, counting, cut = self.data, self.repeats, self.counting, self.data.groups is None
        unit, measured = ("lines", "characters") if data.kind == "text" else ("examples", "tokens")
        median, high = np.percentile(self.lengths, (50, 95))
        sizes = zip(NAMES, self.tokens, data.rows, strict=True)
        unknown = [f"{character!r} × {times}" for character, times in self.unknown.items()]
        scripts = ", ".join(f"{script} {share:.1%}" for script, share in self.scripts.items()) or "no letters"
        exact, dealt = f" ({repeats.exact} letter by letter)", f" (dealt row by row: {repeats.row_by_row:.1%})"
        lines = {
            "file": f"{data.name}, {data.kind}, {self.characters:,} characters",
            "tokens": ", ".join(f"{n} {t:,}" + ("" if cut else f" ({len(r):,} rows)") for n, t, r in sizes),
            "held out": "the end, cut at lines" if cut else "rows at random, near duplicates together",
            "interval": "± {:.3f} nats per token on choose, ± {:.3f} on confirm (95 %)".format(*counting.intervals),
            unit: f"median {median:.0f} {measured}, 95th percentile {high:.0f}",
            "repeated": f"{repeats.within:.1%} of training{'' if cut else exact}; of choose {repeats.choose:.1%}, of "
            f"confirm {repeats.confirm:.1%} stand in training{'' if cut else dealt}",
            "scripts": f"{scripts} (of the letters; this does not tell the language)",
            "no token": f"{len(unknown)} characters{': ' * bool(unknown)}{', '.join(unknown[:8])}",
            "to beat": f"{min(counting.losses):.3f} nats per character, {counting.to_beat:.3f} per token, by counting "
            f"{np.argmin(counting.losses) + 1}-grams",
        }
        if self.budget_tokens:
            lines["budget"] = f"{self.budget_tokens:,.0f} tokens, {self.epochs:.1f} epochs"
        return "\n".join([*(f"{name:<9} {line}" for name, line in lines.items()), *(f"! {w}" for w in self.warnings)])


def _encode(tokenizer, part, window=None):
    """Return the token ids (n,) of a text, or the examples of conversations, those that fit the window."""
    if not isinstance(part, str):
        return [example for row in part for example in row.examples(tokenizer, window)]
    size = len(part) if isinstance(tokenizer, CharTokenizer) else PIECE  # whole: an error names a place
    pieces = [part[i : i + size] for i in range(0, len(part), size or 1)]
    ids = [torch.tensor(encode_text(tokenizer, piece, start=not i)) for i, piece in enumerate(pieces)]
    return torch.cat([torch.empty(0, dtype=torch.int64), *ids])


def _characters(part) -> tuple[str, np.ndarray]:
    """Return all characters of a part, and which of them a model learns: of dialogues the replies with their ends."""
    if isinstance(part, str):
        return part, np.ones(len(part), dtype=bool)
    texts = [text + END for row in part for pair in row.pairs for text in pair]
    return "".join(texts), np.repeat(np.arange(len(texts)) % 2 == 1, [len(text) for text in texts])


def _counting(data: OwnData, n_learned: list[int]) -> Counting:
    """Count the training part's n-grams of characters; `n_learned` tokens of each part are what a model learns."""
    characters = CharTokenizer(END + data.alphabet)
    (train, _), *held_out = map(_characters, data.parts)
    n = max(n for n in range(1, 7) if characters.vocab_size**n < 2**63 and n <= len(train))
    tables = NGrams(characters.encode(train), characters.vocab_size, n)
    losses = [tables.token_losses(characters.encode(text))[:, learned] for text, learned in held_out]  # (n, characters)
    best = int(np.argmin(losses[0].mean(1)))
    per_token = [part[best] * part.shape[1] / n for part, n in zip(losses, n_learned[1:], strict=True)]
    return Counting(losses[0].mean(1).tolist(), float(per_token[0].mean()), tuple(map(_half_width, per_token)))


def _half_width(losses: np.ndarray) -> float:
    """Return half of the 95 % interval of the mean of losses that depend on their neighbours, by 20 blocks."""
    if len(losses) < 2 * N_BLOCKS:
        return float("inf")
    means = [block.mean() for block in np.array_split(losses, N_BLOCKS)]
    return float(STUDENT_T * np.std(means, ddof=1) / N_BLOCKS**0.5)
