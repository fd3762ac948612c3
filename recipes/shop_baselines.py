"""The part "baselines" of finetuning_experiments.py: what simple things answer to the shop's messages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from judging import N_JUDGED, judged
from runner import Work

from gptcourse.corpora import support
from gptcourse.evaluation import WORD, naive_bayes
from gptcourse.finetuning import GREEDY, generate_replies
from gptcourse.generation import generate, only_tokens_of
from gptcourse.pretrained import load_pretrained
from gptcourse.support import Dialogue

N_TRAIN = (3_200, 12_000)  # as many dialogues as a run of 800 steps of 4 reads, and all that there are
LONGEST_REPLY = 80  # tokens


# ---- Slots by regular expressions


class Slots:
    """Regular expressions for the customer's values, made of those that the training dialogues have."""

    def __init__(self, train: Sequence[Dialogue]):
        seen: dict[str, set] = {}
        for d in train:
            for name, value in d.slots.items():
                seen.setdefault(name, set()).add(re.sub("[0-9]", "#", value))
        self.patterns = {
            name: re.compile(rf"(?<!\w)(?:{'|'.join(_longest_first(values))})(?!\w)".replace("\\#", "[0-9]"))
            for name, values in seen.items()
        }

    def find(self, message: str) -> dict[str, str]:
        """Return the first value of each kind that stands in a message."""
        found = {name: pattern.search(message) for name, pattern in self.patterns.items()}
        return {name: match[0] for name, match in found.items() if match}


def _longest_first(values: Iterable[str]) -> list[str]:
    return sorted(map(re.escape, values), key=len, reverse=True)


def adapted(dialogue: Dialogue, slots: dict[str, str]) -> str:
    """Return the reply of a dialogue with its customer's values replaced by another's."""
    reply = dialogue.reply
    for name, value in dialogue.slots.items():
        reply = reply.replace(value, slots.get(name, value))
    return reply


# ---- Answers without a language model


def most_frequent(train: Sequence[Dialogue], messages: Sequence[str]) -> list[str]:
    """Answer every message with the reply that is most frequent in training."""
    ((reply, _),) = Counter(d.reply for d in train).most_common(1)
    return [reply] * len(messages)


def nearest(train: Sequence[Dialogue], messages: Sequence[str]) -> list[str]:
    """Answer as the message with the largest share of common words was answered, with the customer's values."""
    slots = Slots(train)
    near = similarities([d.message for d in train], messages)
    return [adapted(train[i], slots.find(m)) for i, m in zip(near.argmax(1), messages, strict=True)]


def naive_bayes_and_nearest(train: Sequence[Dialogue], messages: Sequence[str]) -> list[str]:
    """Answer as `nearest`, among the messages of the intent that naive Bayes finds with the same kinds of values."""
    slots = Slots(train)
    intents = naive_bayes([(d.message, d.intent) for d in train], messages)
    near = similarities([d.message for d in train], messages)
    kinds = np.array([f"{d.intent}: {sorted(d.slots)}" for d in train])
    same = np.array([d.intent for d in train])
    replies = []
    for i, (message, intent) in enumerate(zip(messages, intents, strict=True)):
        found = slots.find(message)
        allowed = kinds == f"{intent}: {sorted(found)}"
        if not allowed.any():
            allowed = same == intent
        replies.append(adapted(train[np.where(allowed, near[i], -1).argmax()], found))
    return replies


def similarities(texts: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """Return the share of common words (Jaccard) of each of `others` with each text, (others, texts); no numbers."""
    words = [{word for word in WORD.findall(text.lower()) if not word.isdigit()} for text in (*texts, *others)]
    place = {word: i for i, word in enumerate(sorted(set().union(*words)))}
    table = np.zeros((len(words), len(place)), dtype=np.float32)
    for row, known in zip(table, words, strict=True):
        row[[place[word] for word in known]] = 1
    a, b = table[: len(texts)], table[len(texts) :]
    both = b @ a.T
    return both / (a.sum(1) + b.sum(1)[:, None] - both)


# ---- The bundled model as it is


def untuned(messages: Sequence[str]) -> tuple[list[str], int]:
    """Return the replies of the bundled model, which has never seen a dialogue, and the examples that it saw."""
    return generate_replies(*load_pretrained("shakespeare-5m"), messages, max_new_tokens=LONGEST_REPLY), 0


def few_shot(messages: Sequence[str]) -> tuple[list[str], float]:
    """Return its replies after as many examples, as plain text, as fit its window, and the mean number of them."""
    model, tokenizer = load_pretrained("shakespeare-5m")
    train, prompts, counts = support(1000), [], []
    room = model.config.n_positions - LONGEST_REPLY
    for i, message in enumerate(messages):
        text = tokenizer.encode(f"Customer: {message}\nShop:")
        chosen = np.random.default_rng((0, i)).permutation(len(train))
        n = 0
        while len(longer := tokenizer.encode(shown(train[chosen[n]])) + text) <= room:
            text, n = longer, n + 1
        prompts.append(text)
        counts.append(n)
    rows = generate(model, prompts, LONGEST_REPLY, GREEDY, logits_processor=only_tokens_of(tokenizer))
    texts = [tokenizer.decode(row[len(prompt) :]) for row, prompt in zip(rows, prompts, strict=True)]
    return [text.partition("\n")[0].strip() for text in texts], round(float(np.mean(counts)), 1)


def shown(dialogue: Dialogue) -> str:
    """Return a dialogue as plain text."""
    return f"Customer: {dialogue.message}\nShop: {dialogue.reply}\n\n"


# ---- The part


WITHOUT_MODEL: dict[str, Callable] = {
    "the most frequent reply": most_frequent,
    "nearest message by words": nearest,
    "naive Bayes and nearest reply": naive_bayes_and_nearest,
}
BUNDLED: dict[str, Callable] = {"the bundled model, untuned": untuned, "the bundled model, few-shot": few_shot}


def without_model(name: str, n_train: int, split: str) -> dict:
    """Return the row of a baseline that looks things up in n_train dialogues."""
    dialogues = support(N_JUDGED[split], split=split)
    replies = WITHOUT_MODEL[name](support(n_train), [d.message for d in dialogues])
    return {"baseline": name, "n_train": n_train, "split": split, "judged": judged(dialogues, replies, split)}


def bundled(name: str, split: str) -> dict:
    """Return the row of the bundled model, untuned."""
    dialogues = support(N_JUDGED[split], split=split)
    replies, n_examples = BUNDLED[name]([d.message for d in dialogues])
    return {"baseline": name, "n_train": n_examples, "split": split, "judged": judged(dialogues, replies, split)}


def baselines(work: Work) -> dict:
    """Judge the baselines on both splits."""
    tasks = [(without_model, name, n, split) for name in WITHOUT_MODEL for n in N_TRAIN for split in N_JUDGED]
    tasks += [(bundled, name, split) for name in BUNDLED for split in N_JUDGED]
    return {"n_train": N_TRAIN, "rows": work.pieces(tasks)}
