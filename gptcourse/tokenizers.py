"""From text to token ids and back: one token per character, or byte-level byte-pair encoding (BPE).

Sources: Sennrich, Haddow and Birch (2016), section 3.2 (BPE on words); Radford et al. (2019), GPT-2, section 2.2 (BPE
on bytes). The BPE is trained and run by the `tokenizers` library, so AutoTokenizer opens what it saves.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Iterable
from numbers import Integral
from pathlib import Path

import tokenizers
from tokenizers.pre_tokenizers import ByteLevel, FixedLength, Sequence

from gptcourse.checks import TEXT
from gptcourse.files import expand, write_files

CHAT_TOKENS = ("<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (  # the same format for transformers' apply_chat_template
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if message.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "additional_special_tokens": list(CHAT_TOKENS),
    "eos_token": "<|end|>",
    "pad_token": "<|end|>",
    "clean_up_tokenization_spaces": False,
    "chat_template": CHAT_TEMPLATE,
}
CHARACTERS_FILE, BPE_FILE, CONFIG_FILE, GENERATION_FILE = TOKENIZER_FILES = (
    *("characters.json", "tokenizer.json", "tokenizer_config.json"),
    "generation_config.json",  # where transformers, and a server made of it, looks for the token that ends a reply
)
SMALLEST_BPE = 256 + len(CHAT_TOKENS)  # every byte, and no merge
LONGEST_WORD = 256  # bytes: each merge goes through whole words, which in a text without spaces are the whole text
LONG_TEXT = 10_000_000  # characters: with fewer, training takes seconds


class CharTokenizer:
    """One token per character, in sorted order. Raises ValueError for an empty text and half a surrogate pair."""

    def __init__(self, text: str):
        if not text:
            raise ValueError("A CharTokenizer takes its alphabet from a text, and this text is empty.")
        self.characters = sorted(set(check_text(text)))
        self._ids = {character: i for i, character in enumerate(self.characters)}

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        """Return one id per character. Raises ValueError that names the first unknown character and its place."""
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            character = error.args[0]
            raise ValueError(
                f"The character {character!r} (at position {text.index(character)}) was not in the text this tokenizer "
                "was made from: remove it, or make the tokenizer from a text that holds it."
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of these ids. Raises ValueError for an id that is not in the vocabulary."""
        return "".join(self.characters[i] for i in _check_ids(ids, self.vocab_size))

    def save(self, directory: str | Path) -> None:
        """Write characters.json into the directory."""
        _write(directory, {CHARACTERS_FILE: json.dumps("".join(self.characters)) + "\n"})

    @classmethod
    def load(cls, directory: str | Path) -> CharTokenizer:
        """Read what `save` has written. Raises ValueError for a missing or damaged file."""
        return _read(expand(directory) / CHARACTERS_FILE, lambda text: cls(_alphabet(json.loads(text))))


class BPETokenizer:
    """Byte-level BPE: frequent words are one token, rare ones several, and every text can be written.

    Three ids are reserved for the chat format (CHAT_TOKENS). Typed text never produces them: a customer who types
    "<|end|>" sends those plain characters, and cannot end the conversation.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True  # typed special tokens are plain text

    @classmethod
    def train(cls, texts: str | Iterable[str], vocab_size: int) -> BPETokenizer:
        """Learn a vocabulary: reserved tokens, bytes, merges. Raises ValueError for fewer than 259 and short texts."""
        _check_size(vocab_size)
        texts = [check_text(text) for text in ([texts] if isinstance(texts, str) else texts)]
        tokenizer, words = tokenizers.Tokenizer(tokenizers.models.BPE()), ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=min(vocab_size, SMALLEST_BPE + 4 * sum(map(len, texts))),  # the library takes memory for all
            special_tokens=list(CHAT_TOKENS),
            initial_alphabet=ByteLevel.alphabet(),
            show_progress=sum(map(len, texts)) > LONG_TEXT,
        )
        tokenizer.pre_tokenizer = Sequence([words, FixedLength(LONGEST_WORD)])
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.pre_tokenizer = words  # to encode long words takes no longer than to encode short ones
        if (size := tokenizer.get_vocab_size()) < vocab_size:
            raise ValueError(f"These texts give only {size} tokens, not {vocab_size}: use more text or fewer tokens.")
        return cls(tokenizer)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the reserved ones included."""
        return self._tokenizer.get_vocab_size()

    @property
    def vocabulary(self) -> tuple[list[str], list[tuple[str, str]]]:
        """The tokens in the order of their ids, a letter for each byte as in the file, and the merges in theirs."""
        model = json.loads(self._tokenizer.to_str())["model"]
        return sorted(model["vocab"], key=model["vocab"].get), [tuple(pair) for pair in model["merges"]]

    def shortened(self, vocab_size: int) -> BPETokenizer:
        """Return the tokenizer that training on the same texts with a smaller `vocab_size` gives: fewer merges.

        Raises ValueError if vocab_size is less than 259, or more than this tokenizer has.
        """
        _check_size(vocab_size)
        if vocab_size > self.vocab_size:
            raise ValueError(f"vocab_size is {vocab_size}, but this tokenizer has only {self.vocab_size} tokens.")
        state = json.loads(self._tokenizer.to_str())
        ids, merges = state["model"]["vocab"], state["model"]["merges"]
        made = [ids[left + right] for left, right in merges]  # two merges may make the same token
        state["model"]["merges"] = merges[: made.index(vocab_size - 1) + 1] if vocab_size > SMALLEST_BPE else []
        state["model"]["vocab"] = {token: i for token, i in ids.items() if i < vocab_size}
        return BPETokenizer(tokenizers.Tokenizer.from_str(json.dumps(state)))

    def token_id(self, token: str) -> int:
        """Return the id of one token, such as "<|end|>". Raises ValueError if there is no such token."""
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise ValueError(f"The vocabulary has no token {token!r}; the reserved ones are {', '.join(CHAT_TOKENS)}.")
        return index

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. Raises ValueError for half a surrogate pair."""
        return self._tokenizer.encode(check_text(text)).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of these ids, reserved tokens included. Raises ValueError for an id out of the vocabulary."""
        return self._tokenizer.decode(_check_ids(ids, self.vocab_size), skip_special_tokens=False)

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which AutoTokenizer opens too, and with what a reply ends."""
        ends = dict.fromkeys(("eos_token_id", "pad_token_id"), self.token_id(CHAT_TOKENS[-1]))
        settings = {CONFIG_FILE: CONFIG, GENERATION_FILE: ends}
        written = {name: json.dumps(setting, indent=2) + "\n" for name, setting in settings.items()}
        _write(directory, {BPE_FILE: self._tokenizer.to_str(pretty=True)} | written)

    @classmethod
    def load(cls, directory: str | Path) -> BPETokenizer:
        """Read what `save` has written. Raises ValueError for a missing or damaged file."""
        return cls(_read(expand(directory) / BPE_FILE, _byte_level))


def load_tokenizer(directory: str | Path) -> CharTokenizer | BPETokenizer:
    """Return the tokenizer of ours in a directory. Raises ValueError if there is none, or a damaged one."""
    for name, kind in ((CHARACTERS_FILE, CharTokenizer), (BPE_FILE, BPETokenizer)):
        if os.path.isfile(expand(directory) / name):  # pathlib raises for a name too long
            return kind.load(directory)
    raise ValueError(f"{directory} holds no {CHARACTERS_FILE} and no {BPE_FILE}: save a tokenizer there first.")


# ---- Our tokenizers and those of transformers alike


def save_tokenizer(tokenizer, directory: str | Path) -> None:
    """Write the files of a tokenizer, ours or one of transformers, in the place of those of any other."""
    if hasattr(tokenizer, "save_pretrained"):
        write_files(expand(directory), tokenizer.save_pretrained, TOKENIZER_FILES)
    else:
        tokenizer.save(directory)


def encode_text(tokenizer, text: str, start: bool = True) -> list[int]:
    """Return the ids of a text, or (start=False) of the continuation of one; typed special tokens stay plain text.

    What a tokenizer of transformers puts before a text, such as <s>, stands at its start alone; what it puts behind it,
    such as </s>, nowhere.
    """
    if not hasattr(tokenizer, "all_special_ids"):
        return tokenizer.encode(text)
    ids = tokenizer.encode(check_text(text), add_special_tokens=False, split_special_tokens=True)
    with_special = tokenizer.encode(text, split_special_tokens=True)
    while len(with_special) > len(ids) and with_special[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        with_special.pop()
    return with_special if start else ids


def token_bytes(tokenizer) -> list[bytes]:
    """Return the bytes that each token writes (special tokens none), for ours and byte-level ones of transformers.

    Raises ValueError for a tokenizer that is not made of bytes.
    """
    if isinstance(tokenizer, CharTokenizer):
        return [character.encode() for character in tokenizer.characters]
    if isinstance(tokenizer, BPETokenizer):
        bpe = tokenizer._tokenizer
        names, added = [bpe.id_to_token(i) for i in range(tokenizer.vocab_size)], bpe.get_added_tokens_decoder()
    else:
        names, added = tokenizer.convert_ids_to_tokens(range(len(tokenizer))), tokenizer.added_tokens_decoder
    signs = sorted(ByteLevel.alphabet())  # printable bytes stand for themselves, the others for 256, 257, …
    hidden = sorted({*range(256)} - {ord(sign) for sign in signs})
    table = {sign: ord(sign) if ord(sign) < 256 else hidden[ord(sign) - 256] for sign in signs}
    written = {i: b"" if token.special else token.content.encode() for i, token in added.items()}
    try:
        return [written[i] if i in written else bytes(table[s] for s in name or "") for i, name in enumerate(names)]
    except KeyError as error:
        raise ValueError(f"This tokenizer is not made of bytes (it writes {error}): use a byte-level one.") from None


def _write(directory, contents):
    """Write the files of a tokenizer in the place of those of another, which would be read instead."""

    def write(folder: Path) -> None:
        for name, content in contents.items():
            (folder / name).write_text(content, encoding="utf-8")

    write_files(expand(directory), write, TOKENIZER_FILES)


def _read(path, parse):
    try:
        return parse(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises Exception itself
        raise ValueError(f"{path} is missing or damaged ({error}): save the tokenizer again.") from error


def _alphabet(characters):
    if characters != "".join(sorted(set(characters))):
        raise ValueError("its characters are not in order, each once")
    return characters


def _byte_level(text):
    """Return the library's tokenizer that `train` has made. The library itself leaves out what it does not know."""
    tokenizer = tokenizers.Tokenizer.from_str(text)
    found, least = (json.loads(t.to_str()) for t in (tokenizer, BPETokenizer.train("a", SMALLEST_BPE)._tokenizer))
    (ids, merges), (first, _) = ([state["model"].pop(part) for part in ("vocab", "merges")] for state in (found, least))
    made = list(dict.fromkeys(ids[left + right] for left, right in merges))
    if found != least or not first.items() <= ids.items() or made != list(range(len(first), len(ids))):
        raise ValueError("it is not as BPETokenizer.save writes it")
    return tokenizer


def _check_size(vocab_size):
    if not isinstance(vocab_size, Integral) or vocab_size < SMALLEST_BPE:
        alone = f"the bytes and reserved tokens alone take {SMALLEST_BPE}"
        raise ValueError(f"vocab_size is {vocab_size!r}, but it must be a whole number, and {alone}.")


def check_text(text: str) -> str:
    """Return the text. Raises ValueError for what is none, and for half a surrogate pair, which no byte stands for."""
    try:
        TEXT("text", text)
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ValueError(f"Position {error.start} holds half of a character ({half!r}): remove it.") from None
    return text


def _check_ids(ids, vocab_size):
    """Return the ids as ints. Lists would take negative ids, and the library drops unknown ones silently."""
    try:
        ids = [operator.index(i) for i in ids]
    except TypeError as error:  # int() would cut 1.9 to 1
        raise ValueError(f"Token ids must be a sequence of whole numbers ({error}).") from error
    if wrong := [i for i in ids if not 0 <= i < vocab_size]:
        raise ValueError(f"There is no token {wrong[0]}: ids go from 0 to {vocab_size - 1}.")
    return ids
