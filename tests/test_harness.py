"""lm-evaluation-harness beside ours: the same accuracy and the same standard error, on a task of our own data.

The library and what it needs take 480 MB, so the test extra leaves it out: pip install "gptcourse[lm-eval]".
"""

import numpy as np
import pytest
import torch

from gptcourse.evaluation import classify
from gptcourse.harness import choice_task, harness_model, standard_error
from gptcourse.pretrained import load_pretrained
from gptcourse.support import support

LABELS = ["late parcel", "refund status", "invoice copy", "opening hours"]


def test_the_standard_error_is_that_of_a_mean():
    assert standard_error([1, 1, 0, 0]) == pytest.approx(np.sqrt(1 / 3 / 4))
    with pytest.raises(ValueError, match="give one for each"):
        standard_error([])


def test_the_harness_gives_our_number_and_our_standard_error(monkeypatch):
    lm_eval = pytest.importorskip("lm_eval", reason="it is not in the test extra: pip install lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, tokenizer = load_pretrained("shakespeare-5m")
    dialogues = [d for d in support(200) if d.intent.replace("_", " ") in LABELS][:24]
    prompts = [f"{d.message}\nIntent: " for d in dialogues]
    answers = [d.intent.replace("_", " ") for d in dialogues]
    task = choice_task("shop_intents", prompts, answers, LABELS)
    ours = classify(model, tokenizer, prompts, LABELS, "none")
    right = [a == b for a, b in zip(ours.labels, answers, strict=True)]
    before = torch.get_rng_state()
    found = lm_eval.simple_evaluate(harness_model(model, tokenizer), tasks=[task])
    torch.set_rng_state(before)  # it sets all seeds
    result = found["results"]["shop_intents"]
    assert 0 < sum(right) < len(right)
    assert result["acc,none"] == pytest.approx(np.mean(right))
    scores = [[resp[0][0] for resp in sample["resps"]] for sample in found["samples"]["shop_intents"]]
    torch.testing.assert_close(torch.tensor(scores), ours.scores, atol=1e-4, rtol=1e-4)
    assert result["acc_stderr,none"] == pytest.approx(standard_error(right))
    with pytest.raises(NotImplementedError, match="Only multiple choice"):
        harness_model(model, tokenizer).generate_until([])


def test_an_answer_that_is_no_label_is_refused():
    pytest.importorskip("lm_eval", reason="it is not in the test extra: pip install lm_eval")
    with pytest.raises(ValueError, match=r"^\['z'\] are answers, but not among the labels"):
        choice_task("t", ["a"], ["z"], ["x", "y"])
