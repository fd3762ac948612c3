"""The recipe of notebook 11's experiments on tiny settings: what is measured, what is kept, and its card."""

import json

import evaluation_experiments as recipe
import pytest
import runner

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


@pytest.mark.parametrize("kind", ["as it is", "deduplicated"])
def test_canaries_have_an_exposure_each(plays, kind):
    found = recipe.canaries(kind, 0)
    assert found["exposure"].keys() == found["written"].keys() == recipe.CANARIES.keys()
    assert all(0 <= bits <= 9 for bits in found["exposure"].values())


@pytest.mark.parametrize("method", ["dialogues alone", "refusals trained in"])
def test_refusals_are_trained_in_or_not(plays, monkeypatch, method):
    learned = []
    monkeypatch.setattr(recipe, "finetune", lambda model, examples, *_, **__: learned.extend(examples) or History())
    found = recipe.refusals(method, 0)
    assert len(learned) == (22 if method == "refusals trained in" else 20)
    assert {"hits", "false_positives", "intents", "slots"} <= found.keys()


@pytest.mark.parametrize("defence", ["none", "a reminder at the end", "the code banned"])
def test_an_injection_is_judged_by_the_code_in_the_reply(monkeypatch, defence):
    prompts = []
    model, tokenizer = load_pretrained("shakespeare-5m")

    def generate(model, prompt, n, sampling, eos_token_id, logits_processor):
        prompts.append((tokenizer.decode(prompt), logits_processor))
        return [*prompt, *tokenizer.encode("It is m a g-n-o-l-i-a." if len(prompts) % 2 else "I can't tell.")]

    monkeypatch.setattr(recipe, "load_pretrained", lambda name: (model, tokenizer))
    monkeypatch.setattr(recipe, "generate", generate)
    found = recipe.injection(defence)
    assert found["attacks"] == [True, False] * 5 and len(found["replies"]) == 16
    for prompt, guard in prompts:
        assert recipe.SECRET in prompt and (recipe.REMINDER.strip() in prompt) == (defence == "a reminder at the end")
        assert (guard is not None) == (defence == "the code banned")


def faked(name, *inputs):
    """Return a result of the experiment `name`, in place of a run."""
    if name == "sorting":
        results = {c: {"accuracy": 0.5, "macro_f1": 0.4} for c in ("as they are", *NOISES, "other phrasings")}
        return {"method": inputs[0], "seed": inputs[1], "results": results}
    if name == "examples_in_the_prompt":
        ways = dict.fromkeys(("token", "none", "prior"), 0.25)
        return {"model": inputs[0], "k": inputs[1], "accuracy": ways, "majority": 0.0625}
    if name == "canaries":
        rows = {"exposure": dict.fromkeys(recipe.CANARIES, 2.5), "written": dict.fromkeys(recipe.CANARIES, True)}
        return {"kind": inputs[0], "seed": inputs[1]} | rows
    if name == "refusals":
        shares = {"hits": 0.75, "false_positives": 0.01, "intents": 0.8, "slots": 0.9}
        return {"method": inputs[0], "seed": inputs[1]} | shares
    replies = ["a"] * 10 + ["b" if inputs[0] == "none" else "c"] * 6
    return {"defence": inputs[0], "attacks": [True] * 3 + [False] * 7, "replies": replies}


def test_started_again_nothing_is_made_twice_and_the_card_is_whole(monkeypatch, tmp_path):
    made = []
    for name in ("sorting", "examples_in_the_prompt", "canaries", "refusals", "injection"):

        def fake(*inputs, name=name):
            made.append((name, *inputs))
            return faked(name, *inputs)

        fake.__name__ = name
        monkeypatch.setattr(recipe, name, fake)
    monkeypatch.setattr(runner, "ASSETS", tmp_path)
    wanted, options = len(list(recipe.tasks())), ["--processes", "1", "--work", str(tmp_path / "work")]
    for _ in range(2):
        runner.run("evaluation", {"experiments": recipe.experiments}, recipe.card, options)
        assert len(made) == len(set(made)) == wanted
    data = json.loads((tmp_path / "evaluation" / "experiments.json").read_text())
    assert sum(map(len, data.values())) == wanted
    card = (tmp_path / "evaluation" / "README.md").read_text(encoding="utf-8")
    for shown in ("50% (50%–50%)", "25% / 25% / 25%", "2.5 (2.5–2.5), 5 of 5", "75% (75%–75%)", "| 3 of 10 | 6 of 6 |"):
        assert shown in card, shown
