"""Record the experiments of notebook 09: python recipes/preference_experiments.py [PART …]

A small GPT learns the shop's dialogues. From it start a reward model, DPO and GRPO, each with a control, each judged on
the same messages, in phrasings that nothing was trained on. A smaller GPT learns puzzles, with and without thoughts,
and half-trained ones learn on from a verifiable reward, or from one that stays at zero. The result is
gptcourse/assets/preferences.
"""

from __future__ import annotations

import json
import random
import re
import statistics
from functools import cache, partial

import torch
from runner import ASSETS, Work, completed, constants, fill, rounded, run
from torch import Tensor

from gptcourse.config import GPTConfig, TrainingConfig
from gptcourse.corpora import support
from gptcourse.data import IGNORED, Example, counted_rng, pad
from gptcourse.finetuning import count_targets, encode_dialogues, eos_id, finetune, generate_replies, reply_loss
from gptcourse.generation import Sampling, generate
from gptcourse.model import GPT
from gptcourse.preferences import (
    GRPOConfig,
    PolicyHistory,
    Reward,
    dpo,
    grpo,
    reward_model,
    rewards_of,
    roll_out,
    token_log_probs,
    train_reward_model,
)
from gptcourse.reasoning import CHARACTERS, END, N_POSITIONS, PLACES, puzzle_examples, puzzles, right_answer, solve
from gptcourse.reasoning import MAX_REPLY as LONGEST_THOUGHT
from gptcourse.shop import (
    MAX_REPLY,
    POLITE,
    draw_replies,
    hole_reward,
    level_masses,
    load_shop,
    marks,
    preference_pairs,
    reward_on_ids,
    right_replies,
    shop_prompts,
    shop_reward,
)
from gptcourse.support import Dialogue
from gptcourse.tokenizers import BPETokenizer
from gptcourse.training import History

SEEDS = (0, 1, 2)
QUIET = {"progress": False, "device": "cpu"}
MODERN = {"position_embedding": "rotary", "norm": "rmsnorm", "activation_function": "relu2", "qk_norm": True}
SHOP = GPTConfig(vocab_size=1024, n_positions=128, n_embd=96, n_layer=3, n_head=4, **MODERN)
MUON = {"warmup_steps": 20, "lr_scheduler_type": "linear", "optim": "muon"}
DRILLS = TrainingConfig(250, 64, 1e-2, min_lr_ratio=0.5, **MUON)
SHOP_TRAINING = TrainingConfig(400, 32, 1e-2, min_lr_ratio=0.0, eval_steps=50, **MUON)
N_DRILLS, N_DIALOGUES, N_VALIDATION, N_TEST = 20_000, 20_000, 64, 400
N_TRAIN, N_DRAWN, TRAIN_SEED = 200, 4, 1  # messages whose replies are ranked, and the replies to each
N_HELD_OUT, N_POOL, N_JUDGED, N_PAIRS_ASKED = (
    24,
    32,
    8,
    300,
)  # held-out messages; replies to each to take the best of, and to judge by
PAIRS = (40, 400)
REWARD_STEPS, REWARD_RATE, LONGER = 30, 1e-3, 4  # times as many steps, to see what a longer run gives
DPO_STEPS, DPO_BATCH, DPO_RATE, DPO_BETAS = 50, 16, 2e-4, (0.05, 0.2, 1.0, 5.0)
GRPO_STEPS, N_PROMPTS, GROUP_SIZE, GRPO_RATE = 40, 6, 8, 3e-4
GRPO_RUNS = [("shop", 0.0), ("shop", 0.03), ("shop", 0.1), ("hole", 0.0), ("hole", 0.1), ("random", 0.0)]
REWARDS = {"shop": shop_reward, "hole": hole_reward}
RATES = [("dpo", 0.2, 5e-5), ("dpo", 20.0, 2e-4), ("dpo", 1.0, 5e-5), ("dpo", 1.0, 4e-4)]
RATES += [("grpo", 0.0, 6e-4), ("grpo", 0.0, 1.5e-4)]


def falling(steps: int, batch_size: int, rate: float, seed: int) -> TrainingConfig:
    """Return the settings of a run without weight decay whose rate falls to a tenth after a short warm-up."""
    return TrainingConfig(
        steps,
        batch_size,
        rate,
        seed,
        warmup_steps=min(5, steps // 2),
        lr_scheduler_type="linear",
        min_lr_ratio=0.1,
        weight_decay=0.0,
    )


# ---- The shop model, and what it writes


def shop(work: Work) -> dict:
    """Train the shop model, and measure what it writes to the test phrasings."""
    return work.piece(train_shop, str(work.asset / "shop"))


def train_shop(folder: str) -> dict:
    """Train the shop model on dialogues and write it to a folder. Its tokenizer never joins two digits."""
    dialogues = support(N_DIALOGUES)
    texts = (re.sub(r"\d", "", f"{d.message}\n{d.reply}") for d in dialogues[:8000])
    tokenizer = BPETokenizer.train(texts, SHOP.vocab_size)
    torch.manual_seed(0)
    model = GPT(SHOP)
    completed(finetune(model, copy_drills(tokenizer), DRILLS, **QUIET))
    validation = encode_dialogues(tokenizer, support(N_VALIDATION, split="validation"))
    examples = encode_dialogues(tokenizer, dialogues)
    history = completed(finetune(model, examples, SHOP_TRAINING, validation=validation, **QUIET))
    model.half().float().save(folder, tokenizer)
    test = support(N_TEST, split="test")
    examples = encode_dialogues(tokenizer, test)
    floor = -sum(dialogue.log_prob for dialogue in test) / count_targets(examples)
    greedy = generate_replies(model, tokenizer, [dialogue.message for dialogue in test], max_new_tokens=MAX_REPLY)
    return {
        "steps": SHOP_TRAINING.steps,
        "curve": rounded(list(zip(history.eval_step, history.eval_loss, strict=True))),
        "loss": reply_loss(model, examples),
        "floor": floor,
        "greedy_right": mean(marks(dialogue, reply).right for dialogue, reply in zip(test, greedy, strict=True)),
        "n": len(test),
    }


def copy_drills(tokenizer: BPETokenizer) -> list[Example]:
    """Return rows of random tokens, five random digits among them, part of which comes again and is to be learned.

    So the model learns to copy in a minute; from dialogues alone it takes many times as long to copy an order number.
    """
    rng, drills = counted_rng(0, 0), []
    digits = [tokenizer.encode(str(digit))[0] for digit in range(10)]
    for _ in range(N_DRILLS):
        row, place = rng.integers(SHOP.vocab_size, size=16).tolist(), int(rng.integers(8))
        row[place : place + 5] = [digits[i] for i in rng.integers(10, size=5)]
        first = row + rng.integers(SHOP.vocab_size, size=rng.integers(8)).tolist()
        again = row[max(0, place - 3) :]
        drills.append(((first + again)[:-1], [IGNORED] * len(first) + again[1:]))
    return drills


def train_dialogues() -> list[Dialogue]:
    """Return the dialogues whose messages are learned from."""
    return support(N_TRAIN, TRAIN_SEED)


def held_out() -> list[Dialogue]:
    """Return the dialogues whose messages every policy is judged by."""
    return support(N_HELD_OUT, split="test")


def draws(work: Work) -> dict:
    """Draw the shop model's replies: to learn from, and to take the best of."""
    return {"train": work.piece(drawn, "train", N_DRAWN), "test": work.piece(drawn, "test", N_POOL)}


def drawn(which: str, n: int) -> list[list[str]]:
    """Return n replies of the shop model to each message."""
    return draw_replies(*load_shop(), train_dialogues() if which == "train" else held_out(), n)


@cache
def recorded_draws(which: str) -> list[list[str]]:
    """Return the replies that were drawn."""
    return json.loads((ASSETS / "preferences" / "draws.json").read_text(encoding="utf-8"))[which]


def judged(model: GPT, seed: int) -> dict:
    """Return what a policy is worth on the held-out messages, by draws of its own, and how far it has gone."""
    (reference, tokenizer), dialogues = load_shop(), held_out()
    rules, texts, kl, entropy = GRPOConfig(N_JUDGED, MAX_REPLY), [], [], []
    for i in range(0, len(dialogues), 8):
        prompts = shop_prompts(tokenizer, dialogues[i : i + 8])
        made = roll_out(model, prompts, lambda *_: 0.0, rules, eos_id(tokenizer), seed * N_HELD_OUT + i)
        kl += divergences(model, reference, made.ids, made.mask).tolist()
        entropy.append(-(made.log_probs.sum() / made.mask.sum()).item())
        texts += [tokenizer.decode(row[mask]) for row, mask in zip(made.targets, made.mask, strict=True)]
    texts = [text.removesuffix("<|end|>") for text in texts]
    return {"kl": round(mean(kl), 4), "entropy": round(mean(entropy), 4)} | worth(dialogues, texts)


def worth(dialogues: list[Dialogue], texts: list[str]) -> dict:
    """Return the means of the marks of N_JUDGED replies to each message."""
    pairs = [(dialogues[i // N_JUDGED], text) for i, text in enumerate(texts)]
    found = [marks(*pair) for pair in pairs]
    rewards = [shop_reward(*pair) for pair in pairs]
    by_message = [mean(rewards[i : i + N_JUDGED]) for i in range(0, len(rewards), N_JUDGED)]
    return {
        "reward": mean(rewards),
        **{name: mean(getattr(mark, name) for mark in found) for name in ("right", "polite", "short")},
        "words": mean(len(text.split()) for text in texts),
        "by_message": by_message,
        "examples": [(dialogue.message, text) for dialogue, text in pairs[:: 5 * N_JUDGED]],
    }


@torch.inference_mode()
def divergences(policy: GPT, reference: GPT, ids: Tensor, mask: Tensor) -> Tensor:
    """Return, for each text (B, T), the sum over its reply of KL(policy ‖ reference) of the next token, in nats (B,).

    On the policy's own draws its mean is the KL of whole replies, by the chain rule, with less noise than ln(π/π_ref).
    """
    p, q = (model(ids).logits.log_softmax(-1) for model in (policy, reference))
    return ((p.exp() * (p - q)).sum(-1) * mask).sum(-1)


def mean(values) -> float:
    """Return the mean, rounded."""
    return round(statistics.fmean(values), 4)


# ---- A reward model


def rewards(work: Work) -> dict:
    """Train reward models on few and on many pairs, and on pairs shuffled; take the best of n by each."""
    tasks = [(reward_run, seed, n, "program") for n in PAIRS for seed in SEEDS]
    tasks += [(reward_run, seed, PAIRS[-1], "shuffled") for seed in SEEDS]
    runs = work.pieces([*tasks, *((reward_run, seed, PAIRS[-1], "program", LONGER) for seed in SEEDS)])
    asked = [held_out().index(dialogue) for dialogue, _, _ in ranked_pairs("test", N_PAIRS_ASKED, 99)]
    return {"runs": runs, "baselines": work.piece(simple_judges), "pair_message": asked}


def ranked_pairs(which: str, n: int, seed: int) -> list[tuple[Dialogue, str, str]]:
    """Return n pairs (dialogue, better, worse) of drawn replies to one message, of different true rewards."""
    rng, dialogues = random.Random(seed), train_dialogues() if which == "train" else held_out()
    pairs = []
    while len(pairs) < n:
        i = rng.randrange(len(dialogues))
        first, second = rng.sample(recorded_draws(which)[i], 2)
        gap = shop_reward(dialogues[i], first) - shop_reward(dialogues[i], second)
        if gap:
            pairs.append((dialogues[i], *((first, second) if gap > 0 else (second, first))))
    return pairs


def reward_run(seed: int, n_pairs: int, labels: str, times: int = 1) -> dict:
    """Train a reward model for `times` as many steps; return its order of held-out pairs, and the best of n by it."""
    model, history = trained_judge(seed, n_pairs, labels, times)
    score = partial(scores, model, load_shop()[1])
    test = ranked_pairs("test", N_PAIRS_ASKED, 99)
    better, worse = (score([(pair[0].message, pair[i]) for pair in test]) for i in (1, 2))
    pool = [(d.message, reply) for d, drawn in zip(held_out(), recorded_draws("test"), strict=True) for reply in drawn]
    return {
        "seed": seed,
        "n_pairs": n_pairs,
        "labels": labels,
        "times": times,
        "loss": rounded(history.loss),
        "right": [int(a > b) for a, b in zip(better, worse, strict=True)],
        "accuracy": mean(a > b for a, b in zip(better, worse, strict=True)),
        "best_of_n": best_by(score(pool), seed),
    }


def trained_judge(seed: int, n_pairs: int, labels: str = "program", times: int = 1) -> tuple[GPT, History]:
    """Return a reward model of drawn pairs, and the history of its training."""
    base, tokenizer = load_shop()
    rng, pairs = random.Random(seed), ranked_pairs("train", n_pairs, seed)
    if labels == "shuffled":
        pairs = [(dialogue, *rng.sample([better, worse], 2)) for dialogue, better, worse in pairs]
    model = reward_model(base)
    encode = partial(encode_dialogues, tokenizer)
    examples = [tuple(encode([(d.message, reply) for reply in replies])) for d, *replies in pairs]
    config = falling(times * REWARD_STEPS, 16, REWARD_RATE, seed)
    return model, completed(train_reward_model(model, examples, config, **QUIET))


@torch.inference_mode()
def scores(model, tokenizer, pairs: list[tuple[str, str]]) -> list[float]:
    """Return a reward model's rewards of pairs (message, reply)."""
    examples = encode_dialogues(tokenizer, pairs)
    return [r for i in range(0, len(pairs), 64) for r in rewards_of(model, *pad(examples[i : i + 64])).tolist()]


def best_by(proxy: list[float], seed: int) -> list[dict]:
    """Return the mean score, and the mean true reward, of the best of n replies by a score of all drawn replies."""
    rng, chosen = random.Random(seed), {n: [] for n in (1, 2, 4, 8, 16, 32, 64) if n <= N_POOL}
    for i, dialogue in enumerate(held_out()):
        own, replies = proxy[i * N_POOL : (i + 1) * N_POOL], recorded_draws("test")[i]
        true = [shop_reward(dialogue, reply) for reply in replies]
        for n, found in chosen.items():
            for _ in range(20):
                best = max(rng.sample(range(N_POOL), n), key=own.__getitem__)
                found.append((own[best], true[best]))
    return [
        {"n": n, "proxy": mean(p for p, _ in found), "true": mean(t for _, t in found)} for n, found in chosen.items()
    ]


def simple_judges() -> dict:
    """Return how often simple rules order the held-out pairs as the program does; a tie counts one half."""
    model, tokenizer = load_shop()

    def log_prob(dialogue: Dialogue, reply: str) -> float:
        return -reply_loss(model, e := encode_dialogues(tokenizer, [(dialogue.message, reply)])) * count_targets(e)

    rules = {
        "shorter": lambda _, reply: -len(reply.split()),
        "more polite words": lambda _, reply: sum(w in POLITE for w in re.findall("[a-z]+", reply.lower())),
        "all values of the message": lambda d, reply: sum(value in reply for value in d.slots.values()),
        "likelier under the shop model": log_prob,
    }
    pairs = ranked_pairs("test", N_PAIRS_ASKED, 99)
    return {
        name: mean((1 + (a > b) - (a < b)) / 2 for a, b in ((rule(d, x), rule(d, y)) for d, x, y in pairs))
        for name, rule in rules.items()
    }


# ---- DPO


def dpo_runs(work: Work) -> dict:
    """Run DPO at each strength, and at two of them on pairs with random labels."""
    tasks = [(dpo_run, seed, beta, "program") for beta in DPO_BETAS for seed in SEEDS]
    tasks += [(dpo_run, seed, beta, "shuffled") for beta in DPO_BETAS[1::2] for seed in SEEDS]
    return {"before": work.piece(judged_before), "runs": work.pieces(tasks)}


def judged_before() -> dict:
    """Return what the shop model is worth, as the policies are judged."""
    return judged(load_shop()[0], 9)


def dpo_run(seed: int, beta: float, labels: str) -> dict:
    """Run DPO once; return its loss, what becomes of held-out pairs, and what the policy is worth."""
    model, tokenizer = load_shop()
    watched = preference_pairs(tokenizer, held_out(), [replies[:8] for replies in recorded_draws("test")])
    before, margins = watched_log_probs(model, watched), []

    def watch(history) -> None:
        if len(history.step) % 10 == 0:
            now = watched_log_probs(model, watched)
            margins.append([len(history.step), *((now - before).view(-1, 2).mean(0).tolist())])

    history = prefer(model, tokenizer, seed, beta, labels, callback=watch)
    steps, chosen, rejected = zip([0, 0.0, 0.0], *rounded(margins), strict=True)
    return {
        "seed": seed,
        "beta": beta,
        "labels": labels,
        "loss": rounded(history.loss),
        "margins": {"step": steps, "chosen": chosen, "rejected": rejected},
        "after": judged(model, seed),
    }


def prefer(model: GPT, tokenizer, seed: int, beta: float, labels="program", rate=None, callback=None) -> History:
    """Train the shop model by DPO on the pairs of what was drawn, in place."""
    pairs = preference_pairs(tokenizer, train_dialogues(), recorded_draws("train"))
    if labels == "shuffled":
        rng = random.Random(seed)
        pairs = [tuple(rng.sample(pair, 2)) for pair in pairs]
    config = falling(DPO_STEPS, DPO_BATCH, rate or DPO_RATE, seed)
    return completed(dpo(model, pairs, config, beta=beta, callback=callback, **QUIET))


@torch.inference_mode()
def watched_log_probs(model: GPT, pairs: list) -> Tensor:
    """Return ln p of the replies of pairs, chosen, rejected, chosen, and so on."""
    return token_log_probs(model, *pad([example for pair in pairs for example in pair])).sum(-1)


# ---- Policy gradients


def grpo_runs(work: Work) -> dict:
    """Run GRPO for the shop's reward, for the one with a hole, and for random rewards."""
    runs = work.pieces((grpo_run, seed, name, beta) for seed in SEEDS for name, beta in GRPO_RUNS)
    return {"before": work.piece(judged_before), "runs": runs, "variance": work.piece(gradient_variance)}


def grpo_run(seed: int, name: str, beta: float) -> dict:
    """Run GRPO once, the penalty in the reward; the true reward of what it draws is noted beside the one it learns."""
    (model, tokenizer), dialogues, noted = load_shop(), train_dialogues(), []
    true, paid = reward_on_ids(tokenizer, dialogues, shop_reward), paying(name, seed, tokenizer, dialogues)

    def reward(i: int, ids: list[int]) -> float:
        noted.append(true(i, ids))
        return paid(i, ids)

    measured = climb(model, tokenizer, seed, reward, beta)
    size = N_PROMPTS * GROUP_SIZE
    return {
        "seed": seed,
        "reward": name,
        "beta": beta,
        "measured": noted_of(measured),
        "true": [mean(noted[i : i + size]) for i in range(0, len(noted), size)],
        "after": judged(model, seed),
    }


def noted_of(measured: PolicyHistory) -> dict:
    """Return what is kept of a history: with one step for each rollout nothing is clipped."""
    return {key: rounded(getattr(measured, key)) for key in ("reward", "length", "kl", "entropy", "idle")}


def paying(name: str, seed: int, tokenizer, dialogues: list[Dialogue]) -> Reward:
    """Return what a run learns from: a reward of REWARDS, the "learned" one of a reward model, or a random one."""
    if name == "learned":
        judge, _ = trained_judge(seed, PAIRS[-1])
        return reward_on_ids(tokenizer, dialogues, lambda d, reply: scores(judge, tokenizer, [(d.message, reply)])[0])
    rng = random.Random(seed)
    return reward_on_ids(tokenizer, dialogues, REWARDS[name]) if name in REWARDS else lambda *_: rng.random()


def climb(model: GPT, tokenizer, seed: int, reward: Reward, beta: float, rate=None) -> PolicyHistory:
    """Train the shop model by GRPO on the messages to learn from, in place."""
    rules = GRPOConfig(GROUP_SIZE, MAX_REPLY, beta=beta, penalty="reward")
    config, end = falling(GRPO_STEPS, N_PROMPTS, rate or GRPO_RATE, seed), eos_id(tokenizer)
    prompts = shop_prompts(tokenizer, train_dialogues())
    return grpo(model, prompts, reward, config, rules, eos_token_id=end, **QUIET)


def learned_reward(work: Work) -> dict:
    """Run GRPO for the reward of a reward model, the one that the best of n was taken by."""
    return {"runs": work.pieces((grpo_run, seed, "learned", 0.0) for seed in SEEDS)}


def rates(work: Work) -> dict:
    """Run DPO and GRPO at rates and strengths beside those of the other parts."""
    return {"runs": work.pieces((rate_run, seed, *setting) for setting in RATES for seed in SEEDS)}


def rate_run(seed: int, method: str, beta: float, rate: float) -> dict:
    """Run DPO, or GRPO for the shop's reward, once."""
    model, tokenizer = load_shop()
    if method == "dpo":
        prefer(model, tokenizer, seed, beta, rate=rate)
    else:
        climb(model, tokenizer, seed, paying("shop", seed, tokenizer, train_dialogues()), beta, rate)
    return {"seed": seed, "method": method, "beta": beta, "rate": rate, "after": judged(model, seed)}


def gradient_variance(n_prompts: int = 8, n_replies: int = 32) -> dict:
    """Return the noise of the policy gradient of one reply, [variance, squared mean] for each prompt, by baseline."""
    (model, tokenizer), dialogues = load_shop(), train_dialogues()
    rules, end, found = GRPOConfig(n_replies, MAX_REPLY), eos_id(tokenizer), {}
    reward = reward_on_ids(tokenizer, dialogues, shop_reward)
    for i, prompt in enumerate(shop_prompts(tokenizer, dialogues[:n_prompts])):
        made = roll_out(model, [prompt], lambda _, ids, i=i: reward(i, ids), rules, end, i)
        gradients = torch.stack([score_gradient(model, made.ids[j], made.targets[j]) for j in range(n_replies)])
        for name, weights in baselines(made.rewards[0], gradients.square().sum(-1)).items():
            weighted = weights[:, None] * gradients
            found.setdefault(name, []).append([weighted.var(0).sum().item(), weighted.mean(0).square().sum().item()])
    return {"n_replies": n_replies, "variance_and_squared_mean": found}


def baselines(rewards: Tensor, squares: Tensor) -> dict[str, Tensor]:
    """Return what each gradient is multiplied by: rewards (G,) less a baseline; squares (G,) of the gradients' norms.

    Of constants the best weighs each reward by its gradient's squared norm (Greensmith et al. 2004).
    """
    return {
        "none": rewards,
        "none, each reward one higher": rewards + 1,
        "mean of the others": rewards - (rewards.sum() - rewards) / (len(rewards) - 1),
        "best constant": rewards - (rewards * squares).sum() / squares.sum(),
    }


def score_gradient(model: GPT, ids: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient of ln p of one reply, all weights in a row."""
    total = token_log_probs(model, ids[None], targets[None]).sum()
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(total, list(model.parameters()))])


# ---- The limit


def frontier(work: Work) -> dict:
    """Compute how the shop model, and the grammar, spread over the levels of the reward, for each held-out message."""
    return {"messages": work.piece(levels)}


def levels() -> list[dict]:
    """Return the levels of the true reward and their probabilities, of the shop model and of the grammar."""
    model, tokenizer = load_shop()
    found = []
    for dialogue in held_out():
        rewards, masses = level_masses(model, tokenizer, dialogue, reward=shop_reward)
        own = dict.fromkeys(rewards.tolist(), 0.0)
        for reply, p in right_replies(dialogue).items():
            own[shop_reward(dialogue, reply)] += p
        found.append(
            {
                "message": dialogue.message,
                "rewards": rewards.tolist(),
                "masses": masses.tolist(),
                "grammar": list(own.values()),
            }
        )
    return found


# ---- Puzzles

THINKER = GPTConfig(
    len(CHARACTERS), N_POSITIONS, n_embd=64, n_layer=2, n_head=4, tie_word_embeddings=False, initializer_range=0.1
)
PUZZLE_RATE, PUZZLE_BATCH, N_PUZZLES, N_ASKED = 2e-2, 64, 20_000, 1000
PUZZLE_TOKENS = 320_000  # of each run, thoughts and fillers included, padding not
STYLES = [("sum", style) for style in ("answer", "think", "filler", "some")] + [
    ("largest", style) for style in ("answer", "think")
]
HALF_LOSS, MORE_STEPS, SOLVED, N_VOTES = 0.6, 80, 150, 64  # nats per target at which half-training ends
MORE_PROMPTS, MORE_GROUP, MORE_RATE = 16, 16, 1e-3
ROUGH_LOSS, N_CHAINS = 0.8, 16  # a loss at which hardly a long chain is right; draws for each puzzle
STAGES, STAGE_STEPS = (4, 7, PLACES), 30  # the most digits of each stage's puzzles


def thinking(work: Work) -> dict:
    """Train puzzle solvers on equally many tokens, with and without thoughts, fillers for a control."""
    tasks = [(thinking_run, seed, task, style) for task, style in STYLES for seed in SEEDS]
    runs = work.pieces([*tasks, *((thinking_run, seed, "sum", "answer", LONGER) for seed in SEEDS)])
    return {"runs": runs, "n": N_ASKED}


def thinking_run(seed: int, task: str, style: str, times: int = 1) -> dict:
    """Train a solver, on `times` as many tokens; return how often its best answer to a fresh puzzle is right."""
    examples = puzzle_examples(puzzles(N_PUZZLES, seed, task), style, seed)
    n_tokens = statistics.fmean(len(ids) for ids, _ in examples)
    steps = round(times * PUZZLE_TOKENS / PUZZLE_BATCH / n_tokens)
    model = trained_solver(examples, steps, seed)
    asked = puzzles(N_ASKED, 1000 + seed, task)
    record = {"seed": seed, "task": task, "style": style, "times": times, "steps": steps}
    if style == "some":
        budgets = [{"thoughts": k} | accuracies(asked, solve(model, asked, thoughts=k)) for k in range(11)]
        record["budgets"] = budgets
    return record | accuracies(asked, solve(model, asked))


def trained_solver(examples: list, steps: int, seed: int, until: float = 0.0) -> GPT:
    """Train a solver on examples, to the end, or until the mean loss of five steps is below a value."""
    torch.manual_seed(seed)
    model = GPT(THINKER)
    schedule = {
        "warmup_steps": min(10, steps // 2),
        "lr_scheduler_type": "warmup_stable_decay",
        "min_lr_ratio": 0.0,
        "optim": "muon",
    }
    config = TrainingConfig(steps, PUZZLE_BATCH, PUZZLE_RATE, seed, decay_steps=max(1, steps // 2), **schedule)
    low = {"callback": lambda history: statistics.fmean(history.loss[-5:]) < until}
    completed(finetune(model, examples, config, **low, **QUIET))
    return model


def accuracies(asked: list, answers: list) -> dict:
    """Return the share of right answers, of all puzzles and of those of each length."""
    right = [answer == puzzle.answer for puzzle, answer in zip(asked, answers, strict=True)]
    lengths = [len(puzzle.digits) for puzzle in asked]
    by_length = {n: mean(r for r, length in zip(right, lengths, strict=True) if length == n) for n in set(lengths)}
    return {"accuracy": mean(right), "by_length": {str(n): by_length[n] for n in sorted(by_length)}}


def verifiable(work: Work) -> dict:
    """Train half-trained solvers on from a verifiable reward, from random ones, and from further examples."""
    return {"runs": work.pieces((verifiable_run, s, kind) for kind in ("grpo", "random", "longer") for s in SEEDS)}


def verifiable_run(seed: int, kind: str) -> dict:
    """Half-train a solver and train it on; return what it solves before and after."""
    model = trained_solver(puzzle_examples(puzzles(N_PUZZLES, seed), "think"), 400, seed, until=HALF_LOSS)
    before, asked, measured = solved(model, seed), puzzles(2000, 500 + seed), {}
    if kind == "longer":  # on as many rows as the others draw
        steps = MORE_STEPS * MORE_PROMPTS * MORE_GROUP // PUZZLE_BATCH
        examples = puzzle_examples(puzzles(N_PUZZLES, 700 + seed), "think")
        finetune(model, examples, falling(steps, PUZZLE_BATCH, MORE_RATE, seed), **QUIET)
    else:
        rng = counted_rng(seed, 3)
        reward = right_answer(asked) if kind == "grpo" else lambda *_: float(rng.random() < 0.5)
        rules, config = GRPOConfig(MORE_GROUP, LONGEST_THOUGHT), falling(MORE_STEPS, MORE_PROMPTS, MORE_RATE, seed)
        prompts = [puzzle.prompt for puzzle in asked]
        measured = noted_of(grpo(model, prompts, reward, config, rules, eos_token_id=END, **QUIET))
    return {"seed": seed, "kind": kind, "before": before, "after": solved(model, seed), "measured": measured}


def solved(model: GPT, seed: int) -> dict:
    """Return how the draws of a solver fall on the answers to fresh puzzles, and how good its best answer is."""
    asked = puzzles(SOLVED, 2000 + seed)
    votes = [[0] * 11 for _ in asked]
    for draw in range(N_VOTES):
        for i, answer in enumerate(solve(model, asked, Sampling(seed=seed * N_VOTES + draw))):
            votes[i][10 if answer is None else answer] += 1
    right = [row[puzzle.answer] for row, puzzle in zip(votes, asked, strict=True)]
    return {
        "accuracy": mean(n / N_VOTES for n in right),
        "greedy": mean(answer == puzzle.answer for puzzle, answer in zip(asked, solve(model, asked), strict=True)),
        "right": right,
        "votes": votes,
        "truth": [puzzle.answer for puzzle in asked],
        "length": [len(puzzle.digits) for puzzle in asked],
        "draws": N_VOTES,
    }


def zero(work: Work) -> dict:
    """Train rough solvers on, paid for right chains of thought alone: on long puzzles, or on short ones first."""
    return {"runs": work.pieces((zero_run, s, kind) for kind in ("long", "short first") for s in SEEDS)}


def zero_run(seed: int, kind: str) -> dict:
    """Train a rough solver on in stages; return how many chains of the longest puzzles are right after each."""
    model = trained_solver(puzzle_examples(puzzles(N_PUZZLES, seed), "think"), 400, seed, until=ROUGH_LOSS)
    after, measured = [right_chains(model, seed)], {"reward": [], "idle": []}
    for stage, longest in enumerate(STAGES if kind == "short first" else [PLACES] * len(STAGES)):
        drawn = puzzles(N_PUZZLES // 10, 600 + 10 * seed + stage, shortest=PLACES if longest == PLACES else 2)
        asked = [puzzle for puzzle in drawn if len(puzzle.digits) <= longest]
        rules = GRPOConfig(MORE_GROUP, LONGEST_THOUGHT)
        config = falling(STAGE_STEPS, MORE_PROMPTS, MORE_RATE, len(STAGES) * seed + stage)
        prompts = [puzzle.prompt for puzzle in asked]
        found = grpo(model, prompts, right_chain(asked), config, rules, eos_token_id=END, **QUIET)
        measured = {name: values + rounded(getattr(found, name)) for name, values in measured.items()}
        after.append(right_chains(model, seed))
    return {"seed": seed, "kind": kind, "right": after, "measured": measured}


def right_chain(asked: list) -> Reward:
    """Return the reward that is 1 for a reply whose every token is right, thoughts and answer, and else 0."""
    wanted = [[i for i in targets if i != IGNORED] for _, targets in puzzle_examples(asked, "think")]
    return lambda i, reply: float(list(reply) == wanted[i])


def right_chains(model: GPT, seed: int) -> dict:
    """Return the share of right chains of fresh puzzles of the most digits, drawn, and most likely token by token."""
    asked = puzzles(SOLVED, 3000 + seed, shortest=PLACES)
    reward, found = right_chain(asked), {}
    for name, n, sampling in (("drawn", N_CHAINS, Sampling(seed=seed)), ("greedy", 1, Sampling(temperature=0))):
        prompts = [puzzle.prompt for puzzle in asked for _ in range(n)]
        rows = generate(model, prompts, LONGEST_THOUGHT, sampling, END)
        found[name] = mean(reward(i // n, row[PLACES + 1 :]) for i, row in enumerate(rows))
    return found


def card(data: dict[str, dict]) -> str:
    """Return the card: what was trained on what, and what came of it."""
    return fill("preferences", tuple(PARTS), **data, **constants(globals()))


PARTS = {
    "shop": shop,
    "draws": draws,
    "reward_model": rewards,
    "dpo": dpo_runs,
    "grpo": grpo_runs,
    "frontier": frontier,
    "thinking": thinking,
    "verifiable": verifiable,
    "rates": rates,
    "learned_reward": learned_reward,
    "zero": zero,
}

if __name__ == "__main__":
    run("preferences", PARTS, card)
