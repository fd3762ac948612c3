"""From text to token ids and back: one token per character, or byte-level byte-pair encoding (BPE).

Sources: Sennrich, Haddow and Birch (2016), section 3.2 (BPE on words); Radford et al. (2019), GPT-2, section 2.2 (BPE
on bytes, which leaves no text out). The BPE is trained and run by the `tokenizers` library, so AutoTokenizer opens what
it saves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers

CHAT_TOKENS = ("<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (  # the same format for transformers' apply_chat_template
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if message.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHARACTERS_FILE = "characters.json"
BPE_FILE = "tokenizer.json"
SMALLEST_BPE = 256 + len(CHAT_TOKENS)  # every byte, and no merge


class CharTokenizer:
    """One token per character: the alphabet is what the given text is made of, in sorted order."""

    def __init__(self, text: str):
        if not text:
            raise ValueError("A CharTokenizer takes its alphabet from a text, and this text is empty.")
        self.characters = sorted(set(text))
        self._ids = {character: i for i, character in enumerate(self.characters)}

    @property
    def vocab_size(self) -> int:
        """How many different characters there are."""
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
        return "".join(self.characters[i] for i in _checked(ids, self.vocab_size))

    def save(self, directory: str | Path) -> None:
        """Write characters.json into the directory."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        text = json.dumps("".join(self.characters))
        (Path(directory) / CHARACTERS_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> CharTokenizer:
        """Read what `save` has written."""
        return cls(json.loads((Path(directory) / CHARACTERS_FILE).read_text(encoding="utf-8")))


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
        """Learn a vocabulary of `vocab_size` tokens: the 3 reserved ones, the 256 bytes, then merges.

        Raises ValueError if vocab_size is less than 259, or if the texts hold too few different pairs to reach it.
        """
        _at_least_the_bytes(vocab_size)
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(CHAT_TOKENS),
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator([texts] if isinstance(texts, str) else texts, trainer)
        if tokenizer.get_vocab_size() < vocab_size:
            raise ValueError(
                f"These texts give only {tokenizer.get_vocab_size()} tokens, not {vocab_size}: "
                "use more text or a smaller vocab_size."
            )
        return cls(tokenizer)

    @property
    def vocab_size(self) -> int:
        """How many different tokens there are, the reserved ones included."""
        return self._tokenizer.get_vocab_size()

    def shortened(self, vocab_size: int) -> BPETokenizer:
        """Return the tokenizer that training on the same texts with this smaller `vocab_size` gives.

        Merges are learned one after another, so a smaller vocabulary is a larger one without its last merges. Raises
        ValueError if vocab_size is less than 259, or more than this tokenizer has.
        """
        _at_least_the_bytes(vocab_size)
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
        """Return the ids of a text. Raises ValueError for half a surrogate pair, which is no text."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"Position {error.start} holds half of a character ({text[error.start]!r}): remove it."
            ) from None
        return self._tokenizer.encode(text).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of these ids, reserved tokens included. Raises ValueError for an id out of the vocabulary."""
        return self._tokenizer.decode(_checked(ids, self.vocab_size), skip_special_tokens=False)

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which AutoTokenizer opens too."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(directory / BPE_FILE))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "additional_special_tokens": list(CHAT_TOKENS),
            "eos_token": "<|end|>",
            "pad_token": "<|end|>",
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        }
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> BPETokenizer:
        """Read what `save` has written."""
        return cls(tokenizers.Tokenizer.from_file(str(Path(directory) / BPE_FILE)))


def load_tokenizer(directory: str | Path) -> CharTokenizer | BPETokenizer:
    """Return the tokenizer that was saved in a directory. Raises ValueError if there is none."""
    if (Path(directory) / CHARACTERS_FILE).is_file():
        return CharTokenizer.load(directory)
    if (Path(directory) / BPE_FILE).is_file():
        return BPETokenizer.load(directory)
    raise ValueError(f"{directory} holds no {CHARACTERS_FILE} and no {BPE_FILE}: save a tokenizer there first.")


def _at_least_the_bytes(vocab_size: int) -> None:
    if vocab_size < SMALLEST_BPE:
        raise ValueError(f"vocab_size is {vocab_size}, but the bytes and reserved tokens alone take {SMALLEST_BPE}.")


def _checked(ids: Iterable[int], vocab_size: int) -> list[int]:
    """Return the ids as a list. Lists would take negative ids, and the library drops unknown ones silently."""
    ids = [int(i) for i in ids]
    for i in ids:
        if not 0 <= i < vocab_size:
            raise ValueError(f"There is no token {i}: ids go from 0 to {vocab_size - 1}.")
    return ids
