"""Record the experiments of notebook 07 on rules of decoding: python recipes/decoding_experiments.py [PART …]

PART is one or more of PARTS below (default: all). One that is complete becomes a JSON file in
gptcourse/assets/decoding, with a card. All texts are written by shakespeare-5m, from the same contexts out of the
held-out plays and, where they are drawn, with the same noise.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from statistics import fmean

import torch
from runner import Work, constants, fill, rounded, rounded_rows, run

from gptcourse.corpora import shakespeare
from gptcourse.evaluation import bootstrap_interval, distinct_n, unique_n
from gptcourse.generation import Sampling, generate
from gptcourse.pretrained import load_pretrained
from gptcourse.strictness import ENDS, as_strict_as, invented_shares, mean_entropy, words_of

N_TEXTS, N_CONTEXT, N_NEW = 512, 32, 32  # texts, and tokens
N_PLACES = 12  # in each of the first 64 passages, where the entropy is measured
TEMPERATURE, HOT = 0.8, 1.5
PENALTIES, N_GREEDY, N_LONG = (1.0, 1.1, 1.3, 2.0), 128, 96
SEED, BATCH = 0, 64


@cache
def read_all() -> tuple:
    """Return the model, its tokenizer, the tokens of the held-out plays, and the words of the training plays."""
    model, tokenizer = load_pretrained("shakespeare-5m")
    plays = shakespeare()
    return model, tokenizer, tokenizer.encode(plays.validation), words_of(plays.train)


def passages(n: int, length: int) -> torch.Tensor:
    """Return n pieces of the held-out plays (n, length), at equal distances."""
    _, _, tokens, _ = read_all()
    step = (len(tokens) - length) // n
    return torch.tensor([tokens[i * step : i * step + length] for i in range(n)])


@cache
def some_logits() -> torch.Tensor:
    """Return the model's logits at places in the held-out plays, (N, V)."""
    with torch.inference_mode():
        return read_all()[0](passages(64, 4 * N_PLACES)).logits[:, 3::4].flatten(0, 1)


def written(sampling: Sampling, n: int, new: int) -> list[str]:
    """Return what the model writes after the first N_CONTEXT tokens of n passages; each batch has noise of its own."""
    model, tokenizer, _, _ = read_all()
    rows = []
    for i, contexts in enumerate(passages(n, N_CONTEXT + new)[:, :N_CONTEXT].split(BATCH)):
        rows += generate(model, contexts, new, replace(sampling, seed=SEED + i))[:, N_CONTEXT:].tolist()
    return list(map(tokenizer.decode, rows))


def shakespeares(n: int, new: int) -> list[str]:
    """Return what Shakespeare wrote after the same contexts."""
    return [read_all()[1].decode(row) for row in passages(n, N_CONTEXT + new)[:, N_CONTEXT:].tolist()]


def measured(texts: list[str]) -> dict:
    """Return for each text the share of words that the training plays lack, and of its pairs that stand only once."""
    return {"invented": rounded(invented_shares(texts, read_all()[3])), "once": rounded(unique_n(texts, 2))}


def row_of(name: str, settings: dict) -> dict:
    """Return what is measured on the texts that are drawn with some settings; without settings: Shakespeare's."""
    if not settings:
        return {"name": name} | measured(shakespeares(N_TEXTS, N_NEW))
    sampling = Sampling(**settings)
    entropy = round(mean_entropy(some_logits(), sampling), 3)
    return {"name": name, "settings": rounded_rows([settings])[0], "bits": entropy} | measured(
        written(sampling, N_TEXTS, N_NEW)
    )


def equally_strict(entropy: float, rules: list[str], **others) -> dict[str, dict]:
    """Return for each rule the settings that are as strict as `entropy`, in bits."""
    found = {rule: as_strict_as(entropy, some_logits(), rule, **others) for rule in rules}
    return {rule: {rule: getattr(sampling, rule)} | others for rule, sampling in found.items()}


def rules(work: Work) -> dict:
    """Write with all rules, each as strict as one temperature."""
    target = mean_entropy(some_logits(), Sampling(temperature=TEMPERATURE))
    named = {"nothing cut": {"temperature": 1.0}} | equally_strict(target, list(ENDS)) | {"Shakespeare": {}}
    return {"control": "temperature", "rows": work.pieces((row_of, *one) for one in named.items())}


def hot(work: Work) -> dict:
    """Write at a high temperature with each cut, as strict as temperature 1 alone."""
    target = mean_entropy(some_logits(), Sampling())
    cuts = [rule for rule in ENDS if rule != "temperature"]
    named = {"temperature 1": {"temperature": 1.0}, f"temperature {HOT}": {"temperature": HOT}}
    cut = equally_strict(target, cuts, temperature=HOT).items()
    named |= {f"{HOT} and {rule}": settings for rule, settings in cut}
    return {"control": "temperature 1", "rows": work.pieces((row_of, *one) for one in named.items())}


def penalty_row(penalty: float | None) -> dict:
    """Return what is measured on greedy texts with a repetition penalty; None: on Shakespeare's."""
    sampling = Sampling(temperature=0, repetition_penalty=penalty or 1.0)
    texts = written(sampling, N_GREEDY, N_LONG) if penalty else shakespeares(N_GREEDY, N_LONG)
    words, runs = " ".join(texts).lower().split(), [distinct_n([text], 4) for text in texts]
    row = {"penalty": penalty, "runs": fmean(runs), "interval": bootstrap_interval(runs)}
    row |= {"the": words.count("the") / len(words), "invented": fmean(invented_shares(texts, read_all()[3]))}
    return {name: rounded(value) for name, value in row.items()}


def penalty(work: Work) -> dict:
    """Write greedily, with several repetition penalties."""
    return {"rows": work.pieces((penalty_row, one) for one in (None, *PENALTIES))}


PARTS = {"rules": rules, "hot": hot, "penalty": penalty}


def compared(data: dict) -> list[dict]:
    """Return for each row of a part its two means, and the differences to the control, text by text, with intervals."""
    (control,) = (row for row in data["rows"] if row["name"] == data["control"])
    found = []
    for row in data["rows"]:
        differences = {
            name: bootstrap_interval([a - b for a, b in zip(row[name], control[name], strict=True)])
            for name in ("invented", "once")
        }
        means = {name: fmean(row[name]) for name in differences}
        found.append({"name": row["name"], "settings": row.get("settings"), "means": means, "differences": differences})
    return found


def card(data: dict[str, dict]) -> str:
    """Return the card of the recorded experiments."""
    return fill("decoding", tuple(PARTS), compared=compared, **constants(globals()), **data)


if __name__ == "__main__":
    run("decoding", PARTS, card)
