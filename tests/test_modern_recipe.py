"""The recipe of notebook 12 on tiny settings: each change once, and the card."""

from dataclasses import replace

import modern_experiments as recipe
import plays
import pytest
import runner
import torch

from gptcourse.modern import gpt3_like
from gptcourse.training import evaluate, train


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of an asset, made in seconds with tiny settings; the text is made of numbers."""
    ids = (torch.rand(3_000, generator=torch.Generator().manual_seed(0)) ** 4 * 76).long()
    folder = tmp_path_factory.mktemp("modern")
    model = replace(plays.MODEL, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    settings = {"MODEL": model, "START": gpt3_like(76, 8, 8, 1, 2), "TOKENS": 256, "PLAYS": plays.Plays(400, 400)}
    settings |= {"CONFIG": replace(recipe.CONFIG, batch_size=8, steps=4, warmup_steps=1)}
    names = ("GPT-3's block", "RMSNorm", "SwiGLU", "4 experts, 2 a token")
    changes = {name: recipe.CHANGES[name] for name in names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "ASSETS", folder)
        patch.setattr(plays, "MODEL", model)
        patch.setattr(plays, "read_plays", lambda: (None, ids, ids.flip(0)))
        for name, value in (settings | {"CHANGES": changes}).items():
            patch.setattr(recipe, name, value)
        make(folder)
        yield folder


def make(folder):
    arguments = ["--processes", "1", "--work", str(folder / "work")]
    runner.run("modern", {"ladder": recipe.ladder}, recipe.card, arguments)


def test_started_again_it_trains_nothing_and_writes_the_same(tiny, monkeypatch):
    before = {path.name: path.read_bytes() for path in (tiny / "modern").iterdir()}
    monkeypatch.setattr(recipe, "train", lambda *_, **__: pytest.fail("a run was made again"))
    make(tiny)
    assert before == {path.name: path.read_bytes() for path in (tiny / "modern").iterdir()}


def test_each_model_has_all_changes_up_to_its_own(tiny):
    configs = recipe.configs()
    assert configs["GPT-3's block"] == recipe.START
    assert configs["SwiGLU"] == replace(recipe.START, norm="rmsnorm", hidden_act="silu", intermediate_size=344)


def test_all_have_one_rate_and_it_is_bracketed_at_both_ends_with_another_seed(tiny):
    data = runner.recorded(tiny / "modern")["ladder"]
    assert {row["rate"] for row in data["runs"]} == {recipe.CONFIG.learning_rate}
    assert [(row["change"], row["seed"]) for row in data["runs"]] == [
        (c, s) for c in recipe.CHANGES for s in recipe.SEEDS
    ]
    trials = runner.grouped(data["trials"], "change")
    assert list(trials) == ["GPT-3's block", "4 experts, 2 a token"] and recipe.TRIAL_SEED not in recipe.SEEDS
    for rows in trials.values():
        losses = [runner.finite(row["choose"]) for row in rows]
        assert 0 < losses.index(min(losses)) < len(losses) - 1


def test_a_run_is_that_of_its_config(tiny):
    row = runner.recorded(tiny / "modern")["ladder"]["runs"][3]
    torch.manual_seed(row["seed"])
    model = recipe.ModernGPT(recipe.configs()[row["change"]])
    train(
        model, recipe.PLAYS.train, replace(recipe.CONFIG, learning_rate=row["rate"], seed=row["seed"]), progress=False
    )
    assert row["compare"] == pytest.approx(evaluate(model, recipe.PLAYS.compare), abs=1e-4)


def test_sizes_count_what_a_token_costs():
    start = gpt3_like(50, 16, 32, 2, 4)
    found = recipe.sizes(start)
    matrices = 2 * 12 * 32**2 + 50 * 32  # attention and MLP, and the LM head
    assert found["flops"] >= 2 * matrices and found["flops"] <= 2 * matrices + 2 * 4 * 16 * 32
    assert found["parameters"] == found["active"]
    assert found["cache_bytes"] == 2 * 2 * 32 * 16 * 2
