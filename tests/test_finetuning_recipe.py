"""The recipe of notebook 08's evidence on tiny settings: what each way trains, the ladder, the judges, each part."""

import itertools
import json
import math
import re
from importlib.resources import files

import finetuning_experiments as recipe
import judging
import pytest
import real_finetuning
import runner
import shop_baselines
import torch
from runner import Work

from gptcourse.corpora import support
from gptcourse.evaluation import reply_report
from gptcourse.pretrained import load_pretrained
from gptcourse.support import parse_message

TRIAL = {"rate", "seed", "steps", "trained", "validation_loss"}


@pytest.fixture
def small(monkeypatch, plays):
    """Few dialogues, few messages, and a table of tokens instead of the plays."""
    monkeypatch.setattr(recipe, "plays_tokens", lambda: torch.arange(1500))
    monkeypatch.setattr(recipe, "N_TRAIN", 12)
    monkeypatch.setattr(recipe, "N_VALIDATION", 2)
    monkeypatch.setattr(recipe, "N_PLAYS", 1_000)
    for module in (recipe, shop_baselines):
        monkeypatch.setattr(module, "N_JUDGED", {"test": 6, "validation": 6})
    recipe.dialogue_examples.cache_clear()
    yield
    recipe.dialogue_examples.cache_clear()


# ---- Ways


def learned(way):
    """Return the names of the weights that a way trains, the model, and what it was made of."""
    base, _ = load_pretrained("shakespeare-5m")
    model = recipe.prepared(way, base, [5, 9])
    return {name for name, weight in model.named_parameters() if weight.requires_grad}, model, base


@pytest.mark.parametrize("way", [way for way in recipe.WAYS if way != recipe.LONG])
def test_each_way_trains_what_its_name_says(way):
    names, model, base = learned(way)
    blocks = {name.split(".")[1] for name in names if name.startswith("h.")}
    no_blocks = way in ("the embeddings", "the new embeddings")
    assert blocks == ({"4", "5"} if "last 2" in way else set() if no_blocks else set("012345"))
    assert ("wte.weight" in names) == (way.endswith("embeddings") or not re.match("LoRA|the last", way))
    inside = {name for name in names if name.startswith("h.")}
    assert all("lora_" in name for name in inside) == (way.startswith("LoRA") or no_blocks)
    ids = torch.arange(20)[None]
    assert torch.equal(model.train()(ids).logits, model.eval()(ids).logits)  # no dropout
    kept = torch.equal(model.wte.weight[10:], base.wte.weight[10:])
    assert kept != (way == "from scratch") and not torch.equal(model.wte.weight[5], base.wte.weight[5])


@pytest.mark.parametrize(("way", "n"), [("LoRA, rank 8, all linear", 196_608), ("LoRA, rank 2, attention", 12_288)])
def test_a_way_counts_ranks_times_inputs_and_outputs(way, n):
    assert recipe.n_trained(way, learned(way)[1], [5, 9]) == n  # 6 blocks of width 256: c_attn has 256 + 768, and so on


def test_only_the_new_embeddings_change_and_only_they_are_counted(small):
    way = "LoRA, rank 8, all linear, and new embeddings"
    row, model, _ = recipe.tuned(way, 1e-2, 0, 3)
    base, new = load_pretrained("shakespeare-5m")[0], list(range(1500, 2048))
    began = recipe.prepared(way, base, new).wte.weight
    assert torch.equal(model.wte.weight[:1500], base.wte.weight[:1500])
    assert (model.wte.weight[1500:] != began[1500:]).any(1).all()  # in the softmax each of them has a gradient
    assert row["trained"] == 196_608 + 548 * 256


def test_replay_adds_half_as_many_pieces_of_the_plays(small):
    plain, mixed = recipe.examples_of("all weights"), recipe.examples_of("all weights, with replay")
    assert mixed[:12] == plain and len(mixed) == 18 and all(-100 not in targets for _, targets in mixed[12:])


def test_the_rate_ends_at_zero_and_no_weight_decays():
    config = recipe.config_of(1e-3, 0, 800)
    assert (config.min_lr_ratio, config.weight_decay, config.eval_steps, config.warmup_steps) == (0, 0, 200, 40)
    assert recipe.config_of(1e-3, 0, 4).warmup_steps == 2


@pytest.mark.parametrize("way", ["all weights", "from scratch"])
def test_a_run_measures_what_it_says(way, small):
    run = recipe.run_once(way, 1e-3, 1, 8)
    assert [step for step, *_ in run["path"]] == [2, 4, 6, 8]
    assert run["validation_loss"] == min(loss for _, loss, _ in run["path"])
    assert run["plays_after"] in [plays for _, _, plays in run["path"]]
    assert (run["plays_after"] > 6) == (way == "from scratch")
    for split in ("test", "validation"):
        assert 0 < run[split]["floor"] < run[split]["loss"] < 9 and run[split]["n"] == 2
    assert 2.5 < recipe.untuned()["plays_before"] < run["plays_after"]


def test_each_seed_answers_messages_of_its_own(small, monkeypatch):
    asked = []
    monkeypatch.setattr(
        recipe, "generate_replies", lambda model, tokenizer, messages, **_: asked.append(messages) or messages
    )
    base, tokenizer = load_pretrained("shakespeare-5m")
    for seed in recipe.SEEDS:
        recipe.judged_on("test", seed, base, tokenizer)
    assert [message for messages in asked for message in messages] == [d.message for d in support(6, split="test")]


def test_a_trial_does_not_look_at_the_test_phrasings(small, monkeypatch):
    asked = []
    monkeypatch.setattr(recipe, "support", lambda n, split="train": asked.append(split) or support(n, split=split))
    row = recipe.trial("all weights", 1e-3, 0, 2)
    assert set(asked) == {"train", "validation"} and set(row) == {*TRIAL, "way"}


def test_a_run_that_diverges_has_no_loss(small):
    assert recipe.trial("from scratch", 1e30, 0, 4)["validation_loss"] is None


# ---- The ladder


@pytest.mark.parametrize("best", [0.125, 0.5, 1.0, 4.0, 16.0])
def test_the_ladder_grows_until_the_best_rate_has_a_worse_one_on_either_side(best):
    asked = []

    def attempt(rate):
        asked.append(rate)
        return {"rate": rate, "validation_loss": abs(math.log2(rate / best))}

    rows = judging.bracketed(attempt, 1.0)
    place = rows.index(judging.best(rows))
    assert rows[place]["rate"] == best and 0 < place < len(rows) - 1
    assert [row["rate"] for row in rows] == [rows[0]["rate"] * 2**i for i in range(len(rows))]
    assert max(asked) <= max(2.0, 2 * best) and min(asked) >= min(0.5, best / 2)


def test_a_rate_that_diverges_is_never_the_best():
    losses = {0.5: 3.0, 1.0: 2.0, 2.0: None}
    rows = judging.bracketed(lambda rate: {"rate": rate, "validation_loss": losses[rate]}, 1.0)
    assert judging.best(rows)["rate"] == 1.0


# ---- The judges


@pytest.mark.parametrize("split", ["test", "validation"])
def test_each_message_has_one_phrasing_of_its_split_and_of_its_intent(split):
    phrasings = judging.phrasings_of(split)
    assert len(set(phrasings)) == len(phrasings) == 64
    for dialogue in support(60, split=split):
        found = judging.phrasing(dialogue, split)
        assert found in phrasings and found.format_map(dialogue.slots) in dialogue.message
        assert "{name}" not in found and parse_message(found.format_map(dialogue.slots))[0] == dialogue.intent


def test_judged_counts_what_reply_report_gives_as_shares():
    dialogues = support(30, split="test")
    replies = [d.reply if i % 3 else "No." for i, d in enumerate(dialogues)]
    row, report = judging.judged(dialogues, replies, "test"), reply_report(dialogues, replies)
    assert row["intents"] / 30 == pytest.approx(report.intents) and row["intents"] == 20
    assert row["slots"][0] / row["slots"][1] == pytest.approx(report.slots)
    right, n = map(sum, zip(*row["phrasings"], strict=True))
    assert (right, n, row["n"], row["loss"]) == (20, 30, 30, None)


def test_points_are_for_values_numbers_loops_and_the_end():
    dialogue = next(d for d in support(50, split="test") if set(d.slots) == {"order", "name"})
    values = " ".join(dialogue.slots.values())
    assert judging.points(dialogue, f"Hello, {values}.") == (1, 1, 1, 1)
    assert judging.points(dialogue, f"Hello, {dialogue.slots['order']}.") == (0.5, 1, 1, 1)
    assert judging.points(dialogue, f"Hello, {values}, 99999.") == (1, 0, 1, 1)
    assert judging.points(dialogue, f"Hello, {values}") == (1, 1, 1, 0)
    assert judging.points(dialogue, f"{values}. a b c d a b c d e.") == (1, 1, 0, 1)


def test_a_pair_is_won_by_the_higher_value_and_none_is_the_lowest():
    assert judging.compared([1, 2, None, None, -3.0], [2, 1, -5.0, None, -3.0]) == {"after": 2, "before": 1, "tie": 2}


def test_the_likelihood_of_a_reply_is_that_of_the_grammar_or_none():
    dialogue = support(1, split="test")[0]
    assert judging.log_prob(dialogue.message, dialogue.reply) == dialogue.log_prob
    assert judging.log_prob(dialogue.message, "Perhaps.") is None


def test_shares_of_several_reports_are_taken_together():
    one = {"phrasings": [[1, 2], [0, 0], [2, 2]], "slots": [3, 4]}
    other = {"phrasings": [[0, 1], [5, 5], [0, 0]], "slots": [1, 4]}
    assert judging.share([one, other]).startswith("80% (49–94; ")
    assert judging.copied([one, other]) == "50% (22–78)"
    rows = [{"read": 1, "judged": {"n": 4}}, {"read": 3, "judged": {"n": 4}}]
    assert judging.part(rows, "read") == "50% (22–78)"


def test_naive_bayes_reads_the_intent_of_true_replies_and_not_of_those_to_other_messages():
    dialogues = support(60, split="test")
    replies = [d.reply for d in dialogues]
    others = sum(a.intent == b.intent for a, b in zip(dialogues, dialogues[1:] + dialogues[:1], strict=True))
    assert judging.n_read(dialogues, replies) >= 58
    assert judging.n_read(dialogues, replies[1:] + replies[:1]) <= others + 2


def test_an_echo_can_be_about_the_right_thing_but_says_nothing_beyond_the_message():
    dialogues = support(60, split="test")
    messages, replies = [d.message for d in dialogues], [d.reply for d in dialogues]
    most = max(sum(d.intent == intent for d in dialogues) for intent in {d.intent for d in dialogues})
    assert judging.n_read(dialogues, messages) > 30  # naive Bayes reads a message as well as a reply
    assert judging.n_read_beyond(dialogues, messages) <= most  # all get one and the same intent
    assert judging.n_read_beyond(dialogues, replies) >= 54
    assert judging.beyond("Where's my bowl?", "Your bowl, Where's it?") == "your it"


# ---- Baselines


def test_slots_are_found_by_the_values_of_training_with_other_digits():
    slots = shop_baselines.Slots(support(400))
    assert slots.find("Hi, this is Emma. Where is order 98765?") == {"name": "Emma", "order": "98765"}
    assert slots.find("Do you sell it in dark blue?")["colour"] == "dark blue"
    assert slots.find("My number is 123456.") == {}


def test_a_reply_is_lent_with_the_customers_values():
    dialogue = next(d for d in support(200) if d.slots.keys() == {"order", "name"} and d.slots["name"] in d.reply)
    reply = shop_baselines.adapted(dialogue, {"order": "55555", "name": "Zed"})
    assert not set(dialogue.slots.values()) & set(re.findall(r"\w+", reply))
    assert reply.replace("55555", dialogue.slots["order"]).replace("Zed", dialogue.slots["name"]) == dialogue.reply


def test_similarity_is_the_share_of_common_words_without_numbers():
    found = shop_baselines.similarities(["where is order 11111", "thank you"], ["Where is my order 22222?"])
    assert found.tolist() == [[pytest.approx(3 / 4), 0.0]]


def test_a_message_of_training_gets_its_own_reply_from_the_nearest_and_naive_bayes():
    train = support(60)
    messages = [d.message for d in train]
    replies = shop_baselines.nearest(train, messages)
    assert sum(reply == d.reply for reply, d in zip(replies, train, strict=True)) >= 55  # the same words are said twice
    right = judging.judged(train, shop_baselines.naive_bayes_and_nearest(train, messages), "train")["intents"]
    assert right >= 50
    frequent = shop_baselines.most_frequent(train, messages[:2])
    assert frequent[0] == frequent[1] == max((d.reply for d in train), key=[d.reply for d in train].count)


def test_few_shot_fills_the_window_of_the_bundled_model(small):
    _, n = shop_baselines.few_shot([d.message for d in support(2, split="test")])
    assert 1 <= n <= 3


# ---- The parts


def test_started_again_no_run_is_made_twice_and_the_rate_was_chosen_by_another_seed(monkeypatch, tmp_path):
    made = []

    def trial(way, rate, seed, steps):
        made.append(("trial", way, rate, seed, steps))
        loss = abs(math.log2(rate / (2e-3 if way == "all weights" else 4e-3)))
        return {"way": way, "rate": rate, "seed": seed, "steps": steps, "trained": 7, "validation_loss": loss}

    def run_once(way, rate, seed, steps):
        made.append(("run", way, rate, seed, steps))
        report = {"n": 2, "slots": [1, 2], "phrasings": [[0, 1], [1, 1]], "loss": 0.25 + seed, "floor": 0.125}
        row = {"way": way, "rate": rate, "seed": seed, "steps": steps, "trained": 7, "plays_after": 4.0}
        return row | dict.fromkeys(("test", "validation"), report)

    for name, fake in {
        "trial": trial,
        "run_once": run_once,
        "untuned": lambda: {"plays_before": 3.5, "n_new_tokens": 5},
    }.items():
        monkeypatch.setattr(recipe, name, fake)
    monkeypatch.setattr(runner, "ASSETS", tmp_path)
    monkeypatch.setattr(recipe, "WAYS", {"all weights": 1e-3, recipe.LONG: "", "the embeddings": 1e-3})

    def make():
        runner.run(
            "finetuning", {"ways": recipe.ways}, recipe.card, ["--processes", "1", "--work", str(tmp_path / "work")]
        )
        asset = tmp_path / "finetuning"
        return (asset / "ways.json").read_text(), (asset / "README.md").read_text(encoding="utf-8")

    first, n_made = make(), len(made)
    assert make() == first and len(made) == n_made == 4 + 5 + 3 * 3
    assert {task[3] for task in made if task[0] == "trial"} == {recipe.TRIAL_SEED}
    runs = json.loads(first[0])["runs"]
    assert {(run["way"], run["rate"], run["steps"]) for run in runs} == {
        ("all weights", 2e-3, recipe.STEPS),
        (recipe.LONG, 2e-3, recipe.LONG_STEPS),
        ("the embeddings", 4e-3, recipe.STEPS),
    }
    assert {run["seed"] for run in runs} == set(recipe.SEEDS)
    assert (
        "| all weights | 800 | 7 | 0.002 | 1.250 (0.250–2.250) | 50% (19–81; 0–100) | 50% (19–81) | 4.00 (4.00–4.00) |"
        in first[1]
    )


def test_the_part_of_the_baselines_judges_each_on_both_splits(small, monkeypatch, tmp_path):
    monkeypatch.setattr(shop_baselines, "N_TRAIN", (20, 40))
    monkeypatch.setattr(shop_baselines, "LONGEST_REPLY", 3)
    rows = shop_baselines.baselines(Work(tmp_path, tmp_path, 1))["rows"]
    assert len(rows) == (3 * 2 + 2) * 2 and {row["judged"]["n"] for row in rows} == {6}
    assert all(row["judged"]["loss"] is None for row in rows)


@pytest.mark.full
def test_the_part_of_the_real_model_with_a_small_model_and_its_tokenizer(plays, monkeypatch, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_pretrained("smollm2-135m")[1]

    def opened(name):
        torch.manual_seed(5)
        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes)), tokenizer

    tiny = {
        "load_pretrained": opened,
        "file": lambda: {"bytes": 1},
        "LONG": {"steps": 4, "batch_size": 2, "warmup_steps": 2},
        "SHORT": {"steps": 2, "batch_size": 1, "warmup_steps": 1},
        "N_TRAIN": 8,
        "N_VALIDATION": 2,
        "N_LOSS": 2,
        "N_JUDGED": 2,
        "N_PLAYS": 300,
        "LONGEST_REPLY": 3,
        "LONGEST_ANSWER": 3,
        "QUESTIONS": ["What is rain?", "Who are you?"],
    }
    for name, value in tiny.items():
        monkeypatch.setattr(real_finetuning, name, value)
    real_finetuning.own_answers.cache_clear()
    data = real_finetuning.real(Work(tmp_path, tmp_path, 1))
    real_finetuning.own_answers.cache_clear()
    assert [row["seed"] for row in data["runs"]] == [row["seed"] for row in data["before"]] == [0, 1, 2]
    assert [row["message"] for row in data["replies"]] == [d.message for d in support(6, split="test")]
    assert all(row["rate"] == judging.best(data["trials"])["rate"] for row in data["runs"])
    assert [row["steps"] for row in data["runs"] + data["short"]["runs"]] == 3 * [4] + 3 * [2]
    assert data["runs"][0]["trained"] == 8 * 2 * (4 * 64 + 3 * 64)
    opened_as, *rounded = data["storage"]
    assert abs(opened_as["kl"]) < 1e-6 < min(row["kl"] for row in data["runs"])
    assert rounded[0]["kl"] < rounded[2]["kl"]  # 8 bits are nearer than 4 bits for whole rows
    for row in data["runs"]:
        assert (
            sum(row["pairs"]["rules"].values())
            == 2
            == sum(row["pairs"]["grammar"].values()) - row["pairs"]["grammar"]["neither"]
        )


def test_q4_1_has_sixteen_levels_from_the_lowest_to_the_highest_of_32_weights_and_is_its_own_rounding():
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 3)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    real_finetuning.put_into_q4_1(layer)
    rounded = layer.weight.detach().clone()
    groups = weight.unflatten(1, (2, 32))
    step = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15
    error = (rounded.unflatten(1, (2, 32)) - groups).abs()
    assert error.max() > 0 and (error <= 0.52 * step + 1e-3).all() and torch.equal(layer.bias, bias)
    assert all(len(group.unique()) <= 16 for group in rounded.unflatten(1, (2, 32)).flatten(0, 1))
    real_finetuning.put_into_q4_1(layer)
    torch.testing.assert_close(layer.weight.detach(), rounded, rtol=0, atol=1e-3)


def test_the_controls_judge_the_recorded_replies_again(tmp_path, monkeypatch):
    monkeypatch.setattr(real_finetuning, "N_JUDGED", 3)
    replies = [{"seed": seed, "before": "No", "after": "Yes."} for seed in (0, 1) for _ in range(3)]
    (tmp_path / "real.json").write_text(json.dumps({"replies": replies}))
    data = real_finetuning.controls(Work(tmp_path, tmp_path, 1))
    rows = runner.grouped(data["rows"], "name", "seed")
    assert len(rows) == 2 * 7 == len(data["rows"]) and data["n_train"] == 640
    for seed in (0, 1):
        (true,), (echo,), (untuned,) = (
            rows[name, seed] for name in ("the true replies", "the message itself", "untuned")
        )
        assert true["judged"]["intents"] == true["read"] == true["ended"] == 3
        assert echo["judged"]["slots"][0] == echo["judged"]["slots"][1] and echo["judged"]["intents"] == 0
        assert untuned["judged"]["slots"][0] == untuned["ended"] == 0
    won = {(pair["before"], pair["seed"]): pair["pairs"] for pair in data["pairs"]}
    assert won["untuned", 0] == {"after": 0, "before": 0, "tie": 3}  # the end is not counted here
    assert sum(won["the message itself", 1].values()) == 3 and won["the message itself", 1]["after"] == 0


@pytest.mark.full
def test_the_file_of_the_real_model_is_one_of_few_bits():
    found = real_finetuning.file()
    assert 134e6 < found["weights"] < 136e6 and 4 < found["bits_per_weight"] < 9
    assert sum(row["weights"] for row in found["types"]) == found["weights"]
    assert 0 < found["float16_error"] < 2**-10


# ---- What was recorded


ASSET = files("gptcourse").joinpath("assets", "finetuning")


def recorded(part):
    return json.loads(ASSET.joinpath(f"{part}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("part", ["ways", "real", "short"])
def test_no_recorded_winner_lies_at_the_edge_of_its_ladder(part):
    trials = (recorded("real")["short"] if part == "short" else recorded(part))["trials"]
    for rows in runner.grouped(trials, "way").values() if part == "ways" else [trials]:
        assert 0 < rows.index(judging.best(rows)) < len(rows) - 1
        assert [b["rate"] / a["rate"] for a, b in itertools.pairwise(rows)] == [2] * (len(rows) - 1)


def test_the_recorded_runs_are_those_of_three_seeds_above_the_floor():
    runs = recorded("ways")["runs"]
    for rows in runner.grouped(runs, "way").values():
        assert [row["seed"] for row in rows] == list(recipe.SEEDS)
        assert all(row[split]["floor"] < row[split]["loss"] for row in rows for split in ("test", "validation"))
    assert {row["judged"]["n"] for row in recorded("baselines")["rows"]} == set(judging.N_JUDGED.values())
