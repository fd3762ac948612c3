"""The recipe of notebook 07's experiments on tiny settings: every part, started again, and its card."""

import decoding_experiments as recipe
import pytest
import runner
import torch

from gptcourse.generation import Sampling
from gptcourse.strictness import mean_entropy

SETTINGS = {"N_TEXTS": 4, "N_NEW": 6, "N_PLACES": 1, "PENALTIES": (1.0, 1.3), "N_GREEDY": 2, "N_LONG": 8}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, plays):
    """The folder of an asset, made in seconds with tiny settings."""
    folder = tmp_path_factory.mktemp("decoding")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "ASSETS", folder)
        for name, value in SETTINGS.items():
            patch.setattr(recipe, name, value)
        recipe.some_logits.cache_clear()
        make(folder)
        yield folder
    recipe.some_logits.cache_clear()


def make(folder):
    runner.run("decoding", recipe.PARTS, recipe.card, ["--processes", "1", "--work", str(folder / "work")])


def test_started_again_the_recipe_writes_no_text_twice_and_the_same_card(tiny, monkeypatch):
    before = {path.name: path.read_bytes() for path in (tiny / "decoding").iterdir()}
    monkeypatch.setattr(recipe, "generate", lambda *_, **__: pytest.fail("a text was written again"))
    make(tiny)
    assert before == {path.name: path.read_bytes() for path in (tiny / "decoding").iterdir()}


def test_all_rules_are_as_strict_as_the_temperature_and_shakespeare_has_none(tiny):
    data = runner.recorded(tiny / "decoding")
    rules, hot = ({row["name"]: row for row in data[part]["rows"]} for part in ("rules", "hot"))
    target = mean_entropy(recipe.some_logits(), Sampling(temperature=recipe.TEMPERATURE))
    assert {*recipe.ENDS, "nothing cut", "Shakespeare"} == set(rules) and "settings" not in rules["Shakespeare"]
    assert all(rules[rule]["bits"] == pytest.approx(target, abs=0.1) for rule in recipe.ENDS)
    loose = mean_entropy(recipe.some_logits(), Sampling())
    assert all(row["bits"] == pytest.approx(loose, abs=0.1) for name, row in hot.items() if " and " in name)
    assert hot["temperature 1"] == rules["nothing cut"] | {"name": "temperature 1"}


def test_a_row_is_measured_on_the_texts_that_its_settings_write(tiny):
    row = runner.recorded(tiny / "decoding")["rules"]["rows"][3]
    texts = recipe.written(Sampling(top_p=row["settings"]["top_p"]), 4, 6)
    assert len(texts) == 4 and row["invented"] == recipe.measured(texts)["invented"]


def test_each_batch_of_contexts_has_noise_of_its_own(plays, monkeypatch):
    monkeypatch.setattr(recipe, "BATCH", 2)
    monkeypatch.setattr(recipe, "passages", lambda n, length: torch.full((n, length), 65))
    texts = recipe.written(Sampling(temperature=1.5), 4, 12)
    assert len(set(texts)) == 4  # the contexts are equal: what differs is the noise


def test_differences_are_those_of_the_same_contexts_and_the_control_has_none(tiny):
    for part in ("rules", "hot"):
        data = runner.recorded(tiny / "decoding")[part]
        (control,) = (row for row in recipe.compared(data) if row["name"] == data["control"])
        assert control["differences"] == {"invented": (0, 0), "once": (0, 0)}
