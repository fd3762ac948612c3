"""The recipe of notebook 11's experiments on tiny settings: what is measured, what is kept, and its card."""

import json

import evaluation_experiments as recipe
import pytest
import runner
import torch

from gptcourse.corpora import support
from gptcourse.evaluation import naive_bayes
from gptcourse.pretrained import load_pretrained
from gptcourse.safety import NOISES
from gptcourse.training import History


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    tiny = {
        "SORT_STEPS": 2,
        "N_SORT_TRAIN": 40,
        "N_SORT_TEST": 6,
        "N_FEW_SHOT": 4,
        "CANARY_STEPS": 2,
        "CANARY_TEXT": 5_000,
        "REFUSAL_STEPS": 2,
        "N_DIALOGUES": 20,
        "N_RISKY_TEST": 3,
        "N_TEST": 3,
    }
    for name, value in tiny.items():
        monkeypatch.setattr(recipe, name, value)


def test_noise_is_put_into_half_of_the_messages_and_the_labels_stay():
    pairs = [(dialogue.message, dialogue.intent) for dialogue in support(400)]
    changed = recipe.augmented(pairs, 0)
    assert [label for _, label in changed] == [label for _, label in pairs]
    assert 0.4 < sum(a != b for a, b in zip(pairs, changed, strict=True)) / len(pairs) < 0.55
    assert changed == recipe.augmented(pairs, 0) != recipe.augmented(pairs, 1)


def test_every_condition_asks_about_the_same_labels_and_other_phrasings_are_those_of_validation():
    conditions = recipe.conditions()
    assert list(conditions) == ["as they are", *NOISES, "other phrasings"]
    truth = [label for _, label in conditions["as they are"]]
    assert all([label for _, label in conditions[noise]] == truth for noise in NOISES)
    validation = [dialogue.message for dialogue in support(recipe.N_SORT_TEST, split="validation")]
    assert [text for text, _ in conditions["other phrasings"]] == validation


@pytest.mark.parametrize("method", ["bag of words", "bag of words with noise", "fine-tuned", "fine-tuned with noise"])
def test_sorting_measures_each_condition(plays, method):
    found = recipe.sorting(method, 1)
    assert list(found["results"]) == list(recipe.conditions())
    assert all(0 <= number <= 1 for result in found["results"].values() for number in result.values())
    if method == "bag of words":
        pairs = recipe.pairs_of(40, seed=1)
        texts, truth = zip(*recipe.conditions()["as they are"], strict=True)
        right = [a == b for a, b in zip(naive_bayes(pairs, texts), truth, strict=True)]
        assert found["results"]["as they are"]["accuracy"] == sum(right) / len(right)


def test_examples_in_the_prompt_are_compared_in_three_ways():
    found = recipe.examples_in_the_prompt("shakespeare-5m", 1)
    assert set(found["accuracy"]) == {"token", "none", "prior"} and 0 <= found["majority"] <= 1


def test_one_canary_stands_in_a_text_as_often_as_asked_and_near_copies_are_no_copies(plays):
    alone, code = recipe.planted_lines("alone", 3, 0)
    assert sum(code in line for line in alone) == 3 and not any(c.isdigit() for c in "".join(alone).replace(code, ""))
    among, same = recipe.planted_lines("among others", 3, 0)
    assert same == code and sum(line.startswith("ARDEN: My number is ") for line in among) == 3
    assert len({line for line in among if "My number is" in line}) == 1 + 48
    none, code = recipe.planted_lines("among others", 0, 0)
    assert code == same and not any(line.startswith("ARDEN:") for line in none)
    once, _ = recipe.planted_lines("deduplicated", 20, 0)
    assert sum(code in line for line in once) == 1
    typed, _ = recipe.planted_lines("near copies", 20, 0)
    assert 5 < sum(line.endswith(f" {code}.") and line.startswith("ARDEN:") for line in typed) <= 20


def test_a_canary_is_asked_for_under_names_that_were_never_planted(plays):
    found = recipe.canaries("among others", 2, 0)
    assert found["stands"] >= 2 and len(found["never_planted"]) == len(recipe.NEVER_PLANTED)
    assert all(0 <= bits <= 10 for bits in (found["planted"], *found["never_planted"]))


@pytest.mark.parametrize("method", ["dialogues alone", "refusals trained in"])
def test_refusals_are_trained_in_or_not(plays, monkeypatch, method):
    learned = []
    monkeypatch.setattr(recipe, "finetune", lambda model, examples, *_, **__: learned.extend(examples) or History())
    found = recipe.refusals(method, 0)
    assert len(learned) == (22 if method == "refusals trained in" else 20)
    assert {"hits", "false_positives", "intents", "slots"} <= found.keys()


@pytest.mark.parametrize("defence", recipe.DEFENCES)
def test_all_prompts_are_judged_by_what_stands_in_the_reply(monkeypatch, defence):
    model, tokenizer = load_pretrained("shakespeare-5m")
    said = ["It is m a g-n-o-l-i-a.", "I can't tell: MAGNOLINA.", "We close at 18, lamps are bright.", "It is MAG"]

    def generate(model, prompts, n, sampling, eos_token_id, logits_processor):
        assert (logits_processor is not None) == (defence == "the code banned")
        for prompt in map(tokenizer.decode, prompts):
            assert (recipe.SECRET in prompt) == (defence != "the code not in the prompt")
            assert (recipe.REMINDER.strip() in prompt) == (defence == "a reminder at the end")
        return [[*prompt, *tokenizer.encode(said[i % 4])] for i, prompt in enumerate(prompts)]

    monkeypatch.setattr(recipe, "load_pretrained", lambda name: (model, tokenizer))
    monkeypatch.setattr(recipe, "generate", generate)
    found = recipe.guarding(defence)
    n = len(found["kinds"])
    assert found["replies"] == (said * n)[:n]
    assert found["leaked"][:4] == [True, False, False, False] and found["nearly"][:4] == [False, True, False, True]
    assert found["refused"][:4] == [False, True, False, False]
    assert found["answered"][:10] == [None] * 10 and found["answered"][10] is True and found["answered"][11] is False
    assert sum("attack" in kind for kind in found["kinds"]) == 16 and n == 36


def test_a_judge_sees_each_pair_in_both_orders(monkeypatch):
    model, tokenizer = load_pretrained("shakespeare-5m")
    monkeypatch.setattr(recipe, "load_pretrained", lambda name: (model, tokenizer))
    asked = []

    def likelihoods(model, pairs):
        asked.append(tokenizer.decode(pairs[0][0]))
        return [torch.tensor([-1.0]), torch.tensor([-2.5])]

    monkeypatch.setattr(recipe, "log_likelihoods", likelihoods)
    pairs = recipe.judge(2)["pairs"]
    assert [pair["kind"] for pair in pairs] == ["wrong", "longer"] * 2
    assert all(pair["first"] == [1.5, 1.5] for pair in pairs)  # says A, whatever stands there
    for i, (first, second) in enumerate(zip(asked[::2], asked[1::2], strict=True)):
        own = support(2, split="test")[i // 2].reply
        assert f"Reply A: {own}\n" in first and f"Reply B: {own}\n" in second


def faked(name, *inputs):
    """Return a result of the experiment `name`, in place of a run."""
    if name == "sorting":
        results = {c: {"accuracy": 0.5, "macro_f1": 0.4} for c in ("as they are", *NOISES, "other phrasings")}
        return {"method": inputs[0], "seed": inputs[1], "results": results}
    if name == "examples_in_the_prompt":
        ways = dict.fromkeys(("token", "none", "prior"), 0.25)
        return {"model": inputs[0], "k": inputs[1], "accuracy": ways, "majority": 0.0625}
    if name == "canaries":
        rows = {"stands": inputs[1], "planted": 2.5, "never_planted": [1.5, 1.5], "written": [True, False, False]}
        return dict(zip(("kind", "n", "seed"), inputs, strict=True)) | rows
    if name == "judge":
        return {"pairs": [{"kind": kind, "phrasing": "a", "first": [1.5, 0.5]} for kind in ("wrong", "longer")]}
    if name == "refusals":
        shares = {"hits": 0.75, "false_positives": 0.01, "intents": 0.8, "slots": 0.9}
        return {"method": inputs[0], "seed": inputs[1]} | shares
    flags = {"leaked": [True, False, False], "nearly": [True, True, False], "refused": [False, False, True]}
    kinds = ["direct attack", "harmless question", "sounds risky"]
    return {"defence": inputs[0], "kinds": kinds, "answered": [None, True, False], "replies": ["a"] * 3} | flags


def test_started_again_nothing_is_made_twice_and_the_card_is_whole(monkeypatch, tmp_path):
    made = []
    for name in ("sorting", "examples_in_the_prompt", "canaries", "refusals", "guarding", "judge"):

        def fake(*inputs, name=name):
            made.append((name, *inputs))
            return faked(name, *inputs)

        fake.__name__ = name
        monkeypatch.setattr(recipe, name, fake)
    monkeypatch.setattr(runner, "ASSETS", tmp_path)
    n_canaries = len(recipe.CANARY_SEEDS) * sum(map(len, recipe.CANARIES.values()))
    wanted = len(list(recipe.tasks())) + n_canaries + len(recipe.DEFENCES) + 1
    options = ["--processes", "1", "--work", str(tmp_path / "work")]
    for _ in range(2):
        runner.run("evaluation", recipe.PARTS, recipe.card, options)
        assert len(made) == len(set(made)) == wanted
    data = json.loads((tmp_path / "evaluation" / "experiments.json").read_text())
    assert sum(map(len, data.values())) == len(list(recipe.tasks()))
    card = (tmp_path / "evaluation" / "README.md").read_text(encoding="utf-8")
    for shown in (
        "50% (50%–50%)",
        "25% / 25% / 25%",
        "2.5 (2.5–2.5) | 1.5 (1.5–1.5) | 3 of 3",
        "75% (75%–75%)",
        "| 1 of 3 | 2 of 3 | 1 of 2 | 1 of 3 |",
        "| wrong | 1 | 2 of 2 | 0 | 1 |",
    ):
        assert shown in card, shown
