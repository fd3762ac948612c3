"""The recipe of notebook 09 on tiny settings: what it trains and measures, started again, and its card."""

import json
import math
from dataclasses import replace

import preference_experiments as recipe
import pytest
import runner
import torch

from gptcourse.config import GPTConfig, TrainingConfig
from gptcourse.corpora import support
from gptcourse.data import IGNORED, pad
from gptcourse.finetuning import encode_dialogues, eos_id
from gptcourse.model import GPT
from gptcourse.pretrained import load_pretrained
from gptcourse.reasoning import END, EQUALS, PLACES, puzzles
from gptcourse.shop import shop_reward
from gptcourse.tokenizers import BPETokenizer

SMALL = {
    "SEEDS": (0, 1),
    "SHOP": GPTConfig(vocab_size=400, n_positions=200, n_embd=8, n_layer=1, n_head=2),
    "DRILLS": TrainingConfig(1, 2, 1e-3),
    "SHOP_TRAINING": TrainingConfig(2, 2, 1e-3, eval_steps=1),
    "N_DRILLS": 4,
    "N_DIALOGUES": 300,
    "N_VALIDATION": 2,
    "N_TEST": 3,
    "N_TRAIN": 3,
    "N_DRAWN": 2,
    "N_HELD_OUT": 2,
    "N_POOL": 8,
    "N_JUDGED": 2,
    "N_PAIRS_ASKED": 3,
    "MAX_REPLY": 6,
    "PAIRS": (2, 3),
    "REWARD_STEPS": 1,
    "DPO_STEPS": 10,
    "DPO_BATCH": 1,
    "DPO_BETAS": (0.1, 0.2, 0.3),
    "GRPO_STEPS": 2,
    "N_PROMPTS": 1,
    "GROUP_SIZE": 2,
    "THINKER": GPTConfig(15, 24, n_embd=8, n_layer=1, n_head=2, tie_word_embeddings=False),
    "N_PUZZLES": 50,
    "N_ASKED": 5,
    "PUZZLE_BATCH": 2,
    "PUZZLE_TOKENS": 60,
    "MORE_STEPS": 2,
    "MORE_PROMPTS": 1,
    "MORE_GROUP": 2,
    "SOLVED": 3,
    "N_VOTES": 2,
    "HALF_LOSS": 9.0,
    "ROUGH_LOSS": 9.0,
    "N_CHAINS": 2,
    "STAGES": (4, PLACES),
    "STAGE_STEPS": 1,
    "RATES": [("dpo", 0.1, 1e-4), ("grpo", 0.0, 1e-4)],
}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Shrink the recipe, give it a folder, and a shop whose replies are worth something by their length alone."""
    for name, value in SMALL.items():
        assert hasattr(recipe, name)
        monkeypatch.setattr(recipe, name, value)
    for module in (recipe, runner):
        monkeypatch.setattr(module, "ASSETS", tmp_path)
    recipe.recorded_draws.cache_clear()
    monkeypatch.setattr(recipe, "load_shop", lambda: load_pretrained(tmp_path / "preferences" / "shop"))
    yield tmp_path / "preferences"
    recipe.recorded_draws.cache_clear()


def by_length(_dialogue, reply):
    return len(reply) / 1000


def test_it_records_every_part_is_started_again_and_fills_its_card(small, monkeypatch):
    monkeypatch.setattr("gptcourse.shop.shop_reward", by_length)
    monkeypatch.setattr(recipe, "shop_reward", by_length)  # so small a model writes nothing that is right
    monkeypatch.setitem(recipe.REWARDS, "shop", by_length)
    monkeypatch.setattr(recipe, "preference_pairs", lambda *given: PAIRS_OF(*given, by_length))
    argv = ["--processes", "1", "--work", str(small / "work")]
    runner.run("preferences", recipe.PARTS, recipe.card, argv)
    found = runner.recorded(small)
    assert set(found) == set(recipe.PARTS)
    assert {name: len(data["runs"]) for name, data in found.items() if "runs" in data} == {
        "reward_model": 8,
        "dpo": 8,
        "grpo": 2 * len(recipe.GRPO_RUNS),
        "thinking": 2 * len(recipe.STYLES) + 2,
        "verifiable": 6,
        "rates": 4,
        "learned_reward": 2,
        "zero": 4,
    }
    for run in found["zero"]["runs"]:
        assert len(run["right"]) == 3 and {len(values) for values in run["measured"].values()} == {2}
    assert {len(run["measured"]["reward"]) for run in found["grpo"]["runs"]} == {2}
    assert all(run["margins"]["step"] == [0, 10] for run in found["dpo"]["runs"])
    budgets = [run.get("budgets", []) for run in found["thinking"]["runs"]]
    assert sorted(map(len, budgets)) == [0] * 12 + [11, 11]
    assert all(sum(row) == 2 for run in found["verifiable"]["runs"] for row in run["after"]["votes"])
    card = (small / "README.md").read_text()
    assert "Not recorded" not in card and "| largest | think | 1 × |" in card
    lines = (small / "work" / "pieces.jsonl").read_text()
    runner.run("preferences", recipe.PARTS, recipe.card, argv)
    assert (small / "work" / "pieces.jsonl").read_text() == lines and runner.recorded(small) == found


PAIRS_OF = recipe.preference_pairs


def test_a_drill_asks_for_what_came_before(monkeypatch):
    monkeypatch.setattr(recipe, "SHOP", SMALL["SHOP"])
    monkeypatch.setattr(recipe, "N_DRILLS", 30)
    tokenizer = BPETokenizer.train([f"{d.message} {d.reply}" for d in support(300)], 400)
    for ids, targets in recipe.copy_drills(tokenizer):
        asked = [i for i, target in enumerate(targets) if target != IGNORED]
        again = ids[asked[0] :] + targets[-1:]
        assert ids[asked[0] + 1 :] == targets[asked[0] : -1]
        row = ids[:16]
        assert any(row[i:] == again for i in range(16)) and len(again) >= 8


def test_the_divergence_of_texts_is_summed_over_their_replies():
    torch.manual_seed(0)
    policy, reference = (GPT(replace(SMALL["THINKER"], initializer_range=0.5)) for _ in range(2))
    ids, targets = pad([([1, 2, 3], [IGNORED, 3, 4]), ([5, 6], [6, 7])])
    found = recipe.divergences(policy, reference, ids, targets != IGNORED)
    for row, places in ((0, (1, 2)), (1, (0, 1))):
        total = 0.0
        for t in places:
            p, q = (m(ids[row : row + 1]).logits[0, t].softmax(-1) for m in (policy, reference))
            total += (p * (p / q).log()).sum().item()
        assert found[row].item() == pytest.approx(total, rel=1e-4)
    assert (recipe.divergences(policy, policy, ids, targets != IGNORED) == 0).all()


def test_the_best_of_n_by_the_true_reward_is_the_best_and_of_one_the_mean(monkeypatch):
    dialogues = support(2, split="test")
    replies = [[d.reply, "Hello!", "Please", "No."] for d in dialogues]
    monkeypatch.setattr(recipe, "N_POOL", 4)
    monkeypatch.setattr(recipe, "held_out", lambda: dialogues)
    monkeypatch.setattr(recipe, "recorded_draws", lambda which: replies)
    true = [shop_reward(d, reply) for d, own in zip(dialogues, replies, strict=True) for reply in own]
    by_truth = recipe.best_by(true, 0)
    assert [row["n"] for row in by_truth] == [1, 2, 4] and all(row["proxy"] == row["true"] for row in by_truth)
    assert by_truth[-1]["true"] == pytest.approx((true[0] + true[4]) / 2, abs=1e-4)
    assert recipe.best_by([-value for value in true], 0)[-1]["true"] == 0


def test_pairs_to_rank_are_ordered_by_the_true_reward_and_shuffled_ones_are_not(monkeypatch):
    dialogues = support(3, 1)
    monkeypatch.setattr(recipe, "train_dialogues", lambda: dialogues)
    monkeypatch.setattr(recipe, "recorded_draws", lambda which: [[d.reply, "Hello!", "Thanks."] for d in dialogues])
    for dialogue, better, worse in recipe.ranked_pairs("train", 10, 0):
        assert shop_reward(dialogue, better) > shop_reward(dialogue, worse)
    assert (
        recipe.ranked_pairs("train", 4, 0) == recipe.ranked_pairs("train", 4, 0) != recipe.ranked_pairs("train", 4, 1)
    )


def test_what_a_policy_is_worth(monkeypatch):
    monkeypatch.setattr(recipe, "N_JUDGED", 2)
    dialogues = support(2, split="test")
    found = recipe.worth(dialogues, [dialogues[0].reply, "Please", dialogues[1].reply, dialogues[1].reply])
    rewards = [shop_reward(d, d.reply) for d in dialogues]
    assert found["by_message"] == pytest.approx([rewards[0] / 2, rewards[1]], abs=1e-4)
    assert found["right"] == 0.75 and found["reward"] == pytest.approx((rewards[0] / 2 + rewards[1]) / 2, abs=1e-4)


def test_no_constant_baseline_leaves_less_noise_than_the_best():
    torch.manual_seed(0)
    rewards, gradients = torch.rand(6), torch.randn(6, 3) * torch.arange(1.0, 7)[:, None]
    found = recipe.baselines(rewards, gradients.square().sum(-1))

    def noise(weights):
        return (weights[:, None] * gradients).square().sum().item()

    assert all(noise(found["best constant"]) <= noise(rewards - b) for b in torch.linspace(-1, 2, 31))
    assert found["mean of the others"][0].item() == pytest.approx((rewards[0] - rewards[1:].mean()).item(), abs=1e-6)


def test_the_gradient_of_a_reply_is_that_of_its_log_probability():
    torch.manual_seed(0)
    model = GPT(SMALL["THINKER"])
    (ids,), (targets,) = pad([([1, 2, 3], [IGNORED, 3, 4])])
    found = recipe.score_gradient(model, ids, targets)
    (-2 * model(ids[None], targets[None]).loss).backward()
    wanted = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    torch.testing.assert_close(found, wanted)


def test_half_training_ends_when_the_loss_is_low_enough(monkeypatch):
    monkeypatch.setattr(recipe, "THINKER", SMALL["THINKER"])
    histories = []
    monkeypatch.setattr(recipe, "completed", histories.append)
    examples = recipe.puzzle_examples(recipe.puzzles(50), "think")
    for until in (0.0, math.inf):
        recipe.trained_solver(examples, 4, 0, until)
    assert [len(history.step) for history in histories] == [4, 1]


def test_a_chain_is_right_if_every_token_is():
    (puzzle,) = puzzles(1, seed=3)
    reply = [*puzzle.thoughts, EQUALS, puzzle.answer, END]
    reward = recipe.right_chain([puzzle])
    assert reward(0, reply) == 1.0
    for i in range(len(reply)):
        assert reward(0, [*reply[:i], (reply[i] + 1) % 10, *reply[i + 1 :]]) == 0.0
    assert reward(0, reply[:-1]) == 0.0


def test_a_learned_reward_is_the_score_of_the_reward_model(monkeypatch):
    (dialogue,) = support(1)
    monkeypatch.setattr(recipe, "trained_judge", lambda seed, n_pairs: ("judge", None))
    monkeypatch.setattr(recipe, "scores", lambda judge, _, rows: [float(len(reply)) for _, reply in rows])
    _, tokenizer = load_pretrained(runner.ASSETS / "preferences" / "shop")
    ids = tokenizer.encode("Hello!")
    reward = recipe.paying("learned", 0, tokenizer, [dialogue])
    assert reward(0, [*ids, eos_id(tokenizer)]) == len("Hello!")


def test_what_was_recorded_is_what_the_recipe_says():
    folder = runner.ASSETS / "preferences"
    draws = json.loads((folder / "draws.json").read_text(encoding="utf-8"))
    assert [len(draws["train"]), len(draws["test"])] == [recipe.N_TRAIN, recipe.N_HELD_OUT]
    model, tokenizer = load_pretrained(folder / "shop")
    assert model.config == recipe.SHOP
    ((_, targets),) = encode_dialogues(tokenizer, [("Order 12345", "12345")])
    assert sum(target != IGNORED for target in targets) == 6  # each digit is a token, and so is the end
