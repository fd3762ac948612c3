"""Our models and data for lm-evaluation-harness, the yardstick of many papers: its number beside ours.

    pip install "gptcourse[lm-eval]"

The library (https://github.com/EleutherAI/lm-evaluation-harness) is imported only where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import nn

from gptcourse.checks import TEXTS, check_lengths
from gptcourse.evaluation import log_likelihoods
from gptcourse.tokenizers import encode_text


def harness_model(model: nn.Module, tokenizer):
    """Return a model for `lm_eval.simple_evaluate` that scores choices by `log_likelihoods`, of ours or transformers.

    It answers multiple-choice tasks. A task that makes it write, or asks for a perplexity, gets a NotImplementedError.
    """
    from lm_eval.api.model import LM

    class CourseModel(LM):
        def loglikelihood(self, requests):
            """Return (log-probability in nats, False) of each request's continuation after its context."""
            pairs = [request.args for request in requests]
            ids = [(encode_text(tokenizer, a), encode_text(tokenizer, b, start=False)) for a, b in pairs]
            return [(row.sum().item(), False) for row in log_likelihoods(model, ids)]

        def loglikelihood_rolling(self, requests):
            """Refuse: `gptcourse.evaluation.perplexity` says how a text is read."""
            raise NotImplementedError(
                "Only multiple choice is answered here: for a perplexity use evaluation.perplexity."
            )

        def generate_until(self, requests):
            """Refuse: `gptcourse.generation.generate` has the settings."""
            raise NotImplementedError("Only multiple choice is answered here: to write, use generation.generate.")

    return CourseModel()


def choice_task(name: str, prompts: Sequence[str], answers: Sequence[str], labels: Sequence[str]):
    """Return a task of lm-evaluation-harness out of our own data: choose the label that is likeliest after a prompt.

    Nothing is downloaded. Raises ValueError for lists that do not fit, and an answer that is no label.
    """
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from lm_eval.api.task import ConfigurableTask

    TEXTS("prompts", prompts)
    check_lengths(prompts=prompts, answers=answers)
    if unknown := set(answers) - set(labels):
        raise ValueError(f"{sorted(unknown)} are answers, but not among the labels.")
    places = [list(labels).index(answer) for answer in answers]
    table = InMemoryTable.from_pydict({"prompt": list(prompts), "answer": places})
    test = Dataset(table, fingerprint=name)  # a name of its own: else all of it is pickled for one
    config = {
        "task": name,
        "custom_dataset": lambda **_: {"test": test},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": list(labels),
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }
    return ConfigurableTask(config=config)


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of a mean as the harness prints it, with n - 1, for independent examples."""
    check_lengths(values=values)
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))
