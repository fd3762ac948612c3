"""The loop against independent arithmetic: batches, loss, gradients, AdamW, refusals, divergence."""

import copy
import gc
import itertools
import math
import random
import signal
import threading
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gptcourse.data import batch_size_at, example_batches, text_batches
from gptcourse.finetuning import LoRALinear
from gptcourse.model import GPT, GPTConfig, GPTOutput
from gptcourse.optimizers import build_optimizer, learning_rate_at
from gptcourse.training import (
    DivergedError,
    Trainer,
    TrainingConfig,
    choose_device,
    evaluate,
    get_batch,
    objective,
    train,
)
from gptcourse.views import eval_view

VOCAB, LENGTH = 17, 8
TOKENS = torch.from_numpy(np.random.default_rng(1).integers(0, VOCAB, 300))


def new_model(kind=GPT, **settings):
    torch.manual_seed(3)
    return kind(GPTConfig(VOCAB, LENGTH, 16, 2, 2, **settings))


def run(model, steps=6, batch_size=4, learning_rate=1e-2, tokens=TOKENS, **settings):
    names = ("validation_tokens", "checkpoint_dir", "resume", "callback", "device", "progress")
    options = {"progress": False, "device": "cpu"} | {n: settings.pop(n) for n in names if n in settings}
    return train(model, tokens, TrainingConfig(steps, batch_size, learning_rate, **settings), **options)


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


# Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bf16", 1),
        ("steps", 0),
        ("steps", 2.5),
        ("steps", math.inf),
        ("seed", math.inf),
        ("steps", "10"),
        ("batch_size", -1),
        ("batch_size", True),
        ("gradient_accumulation_steps", 0),
        ("sequence_length", 0),
        ("decay_steps", 0),
        ("decay_steps", 11),
        ("batch_ramp_steps", 10),
        ("batch_ramp_steps", -1),
        ("seed", -1),
        ("warmup_steps", 10),
        ("eval_steps", -1),
        ("save_steps", None),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("learning_rate", None),
        ("adam_epsilon", 0),
        ("adam_beta1", 1.0),
        ("adam_beta2", -0.1),
        ("min_lr_ratio", 1.1),
        ("weight_decay", -0.1),
        ("max_grad_norm", 0),
        ("label_smoothing", 1.0),
        ("label_smoothing", -0.1),
        ("z_loss", -1e-4),
        ("z_loss", math.inf),
        ("lr_scheduler_type", "polynomial"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"{name}.*\.$"):
        TrainingConfig(**{"steps": 10, "batch_size": 2, "learning_rate": 1e-3, name: value})


def test_numbers_from_numpy_and_whole_floats_become_plain_numbers():
    config = TrainingConfig(np.int64(10), 2.0, np.float32(0.5), max_grad_norm=math.inf)
    assert (type(config.steps), type(config.batch_size), type(config.learning_rate)) == (int, int, float)
    assert config == TrainingConfig(10, 2, 0.5, max_grad_norm=math.inf)


# Batches


def test_the_batch_climbs_in_whole_sequences_and_is_full_after_the_ramp():
    def sizes(steps, **settings):
        return [batch_size_at(step, TrainingConfig(steps, learning_rate=1e-3, **settings)) for step in range(steps)]

    assert sizes(4, batch_size=5) == [5, 5, 5, 5]
    assert sizes(6, batch_size=8, batch_ramp_steps=3) == [2, 4, 6, 8, 8, 8]
    assert sizes(6, batch_size=2, batch_ramp_steps=5) == [1, 1, 1, 2, 2, 2]
    for batch, ramp in itertools.product((1, 3, 49, 293), (0, 1, 6, 49)):  # none too many by a rounded quotient
        exact = [math.ceil(Fraction(batch * (step + 1), ramp + 1)) for step in range(ramp + 1)]
        assert sizes(ramp + 1, batch_size=batch, batch_ramp_steps=ramp) == exact


def test_a_ramp_reaches_every_micro_batch_of_text_and_of_examples():
    config = TrainingConfig(5, 4, 1e-3, gradient_accumulation_steps=2, batch_ramp_steps=3)
    for batches in text_batches(TOKENS, config, LENGTH, 3), example_batches([([1, 2], [2, 3])], config, 3):
        assert [[len(ids) for ids, _ in batches(step)] for step in (0, 2, 4)] == [[1] * 6, [3] * 6, [4] * 6]


def test_a_run_with_a_ramp_counts_its_tokens_and_goes_on_bit_for_bit(tmp_path):
    settings = {"batch_ramp_steps": 4, "gradient_accumulation_steps": 2, "checkpoint_dir": tmp_path}
    history = run(whole := new_model(), **settings | {"checkpoint_dir": None})
    assert np.diff(history.tokens, prepend=0).tolist() == [2 * LENGTH * size for size in (1, 2, 3, 4, 4, 4)]
    run(new_model(), **settings, callback=lambda history: history.step[-1] == 2)
    assert run(resumed := new_model(), **settings, resume=True) == history
    assert same(weights(whole), weights(resumed))


@pytest.mark.parametrize("decay", [None, 0.5])
def test_torch_averages_the_weights_of_a_run_in_its_callback(decay):
    model, seen = new_model(), []
    average = AveragedModel(model, multi_avg_fn=decay and get_ema_multi_avg_fn(decay))

    def after_step(history):
        if history.step[-1] > 3:
            average.update_parameters(model)
            seen.append(weights(model))

    run(model, lr_scheduler_type="constant", callback=after_step)
    shares = [1 / 3, 1 / 3, 1 / 3] if decay is None else [0.25, 0.25, 0.5]
    for averaged, *parts in zip(average.module.parameters(), *seen, strict=True):
        torch.testing.assert_close(averaged.data, sum(share * part for share, part in zip(shares, parts, strict=True)))
    assert len({evaluate(m, TOKENS, batch_size=4) for m in (average.module, model)}) == 2


def test_targets_are_the_tokens_that_follow():
    ids, targets = get_batch(torch.arange(100), 5, 7, seed=0, step=3)
    assert ids.shape == targets.shape == (5, 7)
    assert torch.equal(targets, ids + 1)
    assert torch.equal(ids, ids[:, :1] + torch.arange(7))


def test_a_batch_depends_on_seed_and_step_alone():
    first = get_batch(TOKENS, 4, LENGTH, seed=5, step=9)
    torch.manual_seed(99)
    np.random.seed(99)
    get_batch(TOKENS, 4, LENGTH, seed=5, step=10)
    assert same(first, get_batch(TOKENS, 4, LENGTH, seed=5, step=9))
    assert not same(first, get_batch(TOKENS, 4, LENGTH, seed=5, step=10))
    assert not same(first, get_batch(TOKENS, 4, LENGTH, seed=6, step=9))


def test_steps_that_follow_each_other_share_no_random_numbers():
    starts = [get_batch(torch.arange(10**6), 64, 1, 0, step)[0].flatten().tolist() for step in range(20)]
    assert len({start for row in starts for start in row}) > 20 * 64 - 10  # by chance 0.8 are drawn twice


def test_every_place_is_drawn_equally_often():
    ids, targets = get_batch(torch.arange(10), 30_000, 4, seed=0, step=0)
    counts = torch.bincount(ids[:, 0], minlength=6)
    assert counts.tolist() == pytest.approx([5000] * 6, abs=5 * math.sqrt(5000))  # starts 0 … 5
    assert targets.max() == 9


# Evaluation


def loss_by_hand(model, tokens, length):
    total = 0.0
    for begin in range(0, len(tokens) - 1, length):
        ids, targets = tokens[begin : begin + length], tokens[begin + 1 : begin + length + 1]
        chances = model(ids[None, : len(targets)]).logits[0].detach().double().softmax(-1)
        total -= sum(math.log(chances[place, target]) for place, target in enumerate(targets))
    return total / (len(tokens) - 1)


@pytest.mark.parametrize("n_tokens", [2, 8, 9, 10, 25, 61])
@pytest.mark.parametrize(("length", "batch_size"), [(None, 1), (None, 3), (5, 2), (5, 100)])
def test_evaluate_predicts_every_token_but_the_first_once(n_tokens, length, batch_size):
    model, tokens = new_model(initializer_range=0.5).eval(), TOKENS[:n_tokens]
    expected = loss_by_hand(model, tokens, length or LENGTH)
    assert evaluate(model, tokens, sequence_length=length, batch_size=batch_size) == pytest.approx(expected, rel=1e-5)


def test_evaluate_switches_dropout_off_and_leaves_the_mode_alone():
    model = new_model(dropout=0.5)
    expected = loss_by_hand(copy.deepcopy(model).eval(), TOKENS, LENGTH)
    model.train()
    model.h[0].eval()
    before = [module.training for module in model.modules()]
    assert evaluate(model, TOKENS) == pytest.approx(expected, rel=1e-5)
    assert [module.training for module in model.modules()] == before
    assert all(parameter.grad is None for parameter in model.parameters())


# What is refused before anything starts


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (TOKENS[:LENGTH], "8, but at least 9"),
        ([], "0, but at least 9"),
        (TOKENS.float(), "whole numbers, not float32"),
        (TOKENS.view(2, -1), r"one row.*\(2, 150\)"),
        ("To be, or not to be", "one row"),
        (TOKENS + 1, r"1 to 17.*0 to 16"),
        (TOKENS - 1, r"-1 to 15.*0 to 16"),
        (TOKENS > 3, "whole numbers, not bool"),
    ],
)
def test_tokens_that_do_not_fit_are_refused_in_one_sentence(tokens, words):
    model = new_model()
    before = weights(model)
    for name, options in (("training", {"tokens": tokens}), ("validation", {"validation_tokens": tokens})):
        if name == "validation" and len(tokens) == LENGTH:
            continue  # enough to evaluate
        expected = words.replace("at least 9", "at least 2") if name == "validation" else words
        with pytest.raises(ValueError, match=rf"(?s)The {name} tokens.*{expected}[^.]*\.$"):
            run(model, **options)
    assert same(before, weights(model))


def test_a_sequence_longer_than_the_model_is_refused():
    for call in (lambda: run(new_model(), sequence_length=9), lambda: evaluate(new_model(), TOKENS, sequence_length=9)):
        with pytest.raises(ValueError, match=r"sequence_length is 9.* from 1 to 8"):
            call()


@pytest.mark.parametrize(
    "kind", [torch.Tensor.tolist, torch.Tensor.numpy, lambda t: t.numpy().astype(np.uint16), torch.Tensor.int]
)
def test_ids_may_come_as_list_array_or_tensor(kind):
    assert run(new_model(), tokens=kind(TOKENS)).loss == run(new_model()).loss


def test_a_sequence_length_is_a_whole_number():
    with pytest.raises(ValueError, match=r"^sequence_length is 2\.5, but it must be a whole number"):
        evaluate(new_model(), TOKENS, sequence_length=2.5)


def test_a_warm_up_ends_before_the_decay_begins():
    settings = {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 91}
    TrainingConfig(100, 1, 1.0, **settings | {"warmup_steps": 90})
    for more in ({}, {"decay_steps": 10}):
        with pytest.raises(ValueError, match="do not fit into the 100 steps"):
            TrainingConfig(100, 1, 1.0, **settings, **more)


def test_an_unknown_device_is_refused_and_a_known_one_taken():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device().type in ("cuda", "mps", "cpu")
    with pytest.raises(ValueError, match=r"no device 'abacus' here"):
        choose_device("abacus")


def test_a_process_touches_no_device_but_its_own(monkeypatch):
    """What torch.empty is asked for: "cuda" alone would take memory on the first GPU in every process."""
    asked = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch, "empty", lambda *_, device: asked.append(device))
    assert choose_device("cuda") == torch.device("cuda", 3) and choose_device("cuda:1") == torch.device("cuda", 1)
    assert asked == [torch.device("cuda", 3), torch.device("cuda", 1)]


# The steps


def written_out(model, config, tokens):
    """AdamW with clipping, from its formulas (Loshchilov and Hutter 2019, algorithm 2)."""
    parameters = list(model.parameters())
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    losses, norms = [], []
    for t in range(1, config.steps + 1):
        ids, targets = get_batch(tokens, config.batch_size, LENGTH, config.seed, t - 1)
        loss = torch.nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten())
        gradients = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))
        for p, g, (m, v) in zip(parameters, gradients, moments, strict=True):
            g = g * min(1.0, config.max_grad_norm / norm)
            m.mul_(config.adam_beta1).add_((1 - config.adam_beta1) * g)
            v.mul_(config.adam_beta2).add_((1 - config.adam_beta2) * g * g)
            step = m / (1 - config.adam_beta1**t) / ((v / (1 - config.adam_beta2**t)).sqrt() + config.adam_epsilon)
            decay = config.weight_decay if p.dim() > 1 else 0.0
            p.data -= learning_rate_at(t - 1, config) * (step + decay * p.data)
        losses.append(loss.item())
        norms.append(norm)
    return losses, norms


def test_the_weights_follow_adamw_written_out():
    settings = {"steps": 5, "batch_size": 4, "learning_rate": 3e-3, "lr_scheduler_type": "constant"}
    settings |= {"weight_decay": 0.5, "max_grad_norm": 0.3, "seed": 7}
    ours, theirs = new_model(), new_model()
    history = run(ours, **settings)
    losses, norms = written_out(theirs, TrainingConfig(**settings), TOKENS)
    assert min(norms) > 0.3  # so that clipping is at work in every step
    assert history.loss == pytest.approx(losses, rel=1e-5)
    assert history.grad_norm == pytest.approx(norms, rel=1e-4)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


OFF = {"lr_scheduler_type": "constant", "max_grad_norm": math.inf, "weight_decay": 0, "adam_beta2": 0.999}
OFF |= {"warmup_steps": 0}
GPT3 = {"warmup_steps": 3, "max_grad_norm": 0.3}  # a limit that gradients of this size reach


def test_with_gpt3s_choices_switched_off_training_is_plain_adam():
    ours, theirs = new_model(), new_model()
    run(ours, **OFF)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-2)
    for step in range(6):
        optimizer.zero_grad()
        theirs(*get_batch(TOKENS, 4, LENGTH, 0, step)).loss.backward()
        optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OFF)
def test_each_of_gpt3s_choices_can_be_switched_off_alone(name):
    settings = {"steps": 8, "batch_size": 4, "learning_rate": 1e-2} | GPT3 | {name: OFF[name]}
    ours, theirs, gpt3 = new_model(), new_model(), new_model()
    history = run(ours, **settings)
    losses, norms = written_out(theirs, TrainingConfig(**settings), TOKENS)
    assert min(norms) > 0.3  # so that clipping is at work in every step
    assert history.loss == pytest.approx(losses, rel=1e-4)
    run(gpt3, **{"steps": 8, "batch_size": 4, "learning_rate": 1e-2} | GPT3)
    assert not same(weights(ours), weights(gpt3))


def test_the_defaults_are_gpt3s():
    config = TrainingConfig(10, 2, 1e-3)
    assert (config.adam_beta1, config.adam_beta2, config.adam_epsilon) == (0.9, 0.95, 1e-8)
    assert (config.weight_decay, config.max_grad_norm, config.min_lr_ratio) == (0.1, 1.0, 0.1)
    assert config.lr_scheduler_type == "cosine"


# The objective


def written_out_objective(logits, targets, smoothing, z_loss):
    """Cross-entropy with a smoothed target by torch, and PaLM's penalty with Z summed by hand."""
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=smoothing)
    return loss + z_loss * logits[targets >= 0].exp().sum(-1).log().pow(2).mean()


DIALS = [(0.1, 0.0), (0.0, 1e-2), (0.3, 0.5)]


@pytest.mark.parametrize("left_out", [0, 5])
@pytest.mark.parametrize(("smoothing", "z_loss"), DIALS)
def test_the_objective_is_torchs_label_smoothing_and_palms_penalty(smoothing, z_loss, left_out):
    model, (ids, targets) = new_model(initializer_range=0.5), get_batch(TOKENS, 4, LENGTH, 0, 0)
    targets[0, :left_out] = -100
    output = model(ids, targets)
    expected = written_out_objective(output.logits, targets, smoothing, z_loss)
    assert abs(expected.item() - output.loss.item()) > 0.01
    torch.testing.assert_close(objective(output, targets, smoothing, z_loss), expected)


def test_without_dials_the_objective_is_the_models_own_loss():
    own = SimpleNamespace(loss=torch.ones(()))  # a model that gives no logits can be trained
    assert objective(own, torch.zeros(1, 1)) is own.loss


def test_with_the_dials_at_zero_training_is_the_plain_loop_bit_for_bit():
    ours, theirs = new_model(), new_model()
    run(ours, label_smoothing=0, z_loss=0, lr_scheduler_type="constant")
    groups = [
        {"params": [p for p in theirs.parameters() if (p.ndim > 1) == m], "weight_decay": 0.1 * m} for m in (1, 0)
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for step in range(6):
        optimizer.zero_grad()
        theirs(*get_batch(TOKENS, 4, LENGTH, 0, step)).loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
    assert same(weights(ours), weights(theirs))


@pytest.mark.parametrize(("smoothing", "z_loss"), DIALS)
def test_the_outputs_follow_the_objective_and_the_history_keeps_the_plain_loss(smoothing, z_loss):
    settings = {"learning_rate": 3e-3, "weight_decay": 0, "max_grad_norm": math.inf, "lr_scheduler_type": "constant"}
    ours, theirs, plain = (new_model(initializer_range=0.5) for _ in range(3))
    dials = {"label_smoothing": smoothing, "z_loss": z_loss}
    history = run(ours, 5, **settings, **dials, validation_tokens=TOKENS[:40])
    optimizer, losses = torch.optim.Adam(theirs.parameters(), lr=3e-3, betas=(0.9, 0.95)), []
    for step in range(5):
        ids, targets = get_batch(TOKENS, 4, LENGTH, 0, step)
        output = theirs(ids, targets)
        losses.append(output.loss.item())
        optimizer.zero_grad()
        written_out_objective(output.logits, targets, smoothing, z_loss).backward()
        optimizer.step()
    assert history.loss == pytest.approx(losses, rel=1e-4)
    assert history.eval_loss == [evaluate(ours, TOKENS[:40])]
    # Not the weights: the bias of the keys changes no output, and Adam makes steps out of its rounding errors.
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-3, atol=1e-3)
    without = run(plain, 5, **settings)
    assert without.loss[0] == history.loss[0] and without.loss[4] != pytest.approx(history.loss[4], rel=1e-4)


def test_label_smoothing_keeps_a_sure_model_from_being_surer_and_z_loss_keeps_z_near_one():
    tokens, ids = torch.arange(200) % 5, torch.arange(LENGTH)[None] % 5
    plain, smooth, held = (new_model(initializer_range=0.1) for _ in range(3))
    for model, dials in ((plain, {}), (smooth, {"label_smoothing": 0.2}), (held, {"z_loss": 0.1})):
        run(model, 80, 8, tokens=tokens, **dials)
    surest = [model(ids).logits.softmax(-1).max(-1).values.mean().item() for model in (plain, smooth)]
    assert surest[0] > 0.95
    assert surest[1] == pytest.approx(0.8 + 0.2 / VOCAB, abs=0.03)  # the probability that the smoothed target has
    sizes = [model(ids).logits.logsumexp(-1).abs().mean().item() for model in (plain, held)]
    assert sizes[1] < 0.2 * sizes[0]


class Own(torch.nn.Module):
    """The reader's own model: bigrams, with no more than `train` asks for."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=VOCAB, n_positions=LENGTH)
        self.table = torch.nn.Parameter(torch.zeros(VOCAB, VOCAB))

    def forward(self, ids, targets):
        logits = self.table[ids]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return SimpleNamespace(logits=logits, loss=loss)


def test_the_dials_work_on_a_model_of_ones_own():
    tables = []
    for dials in ({}, {"label_smoothing": 0.2}, {"z_loss": 0.1}):
        model = Own()
        run(model, 30, **dials)
        tables.append(model.table.detach())
    assert tables[1].std() < tables[0].std()  # less sure
    sizes = [table.logsumexp(-1).abs().mean() for table in tables]
    assert sizes[2] < sizes[0]


# Parts of a batch


@pytest.mark.parametrize("dials", [{}, {"label_smoothing": 0.2, "z_loss": 0.1}], ids=str)
@pytest.mark.parametrize("n_parts", [2, 4])
def test_accumulated_gradients_are_those_of_the_big_batch(n_parts, dials):
    model, reference = new_model(), new_model()
    found = []

    def take(history):
        found.extend(parameter.grad.clone() for parameter in model.parameters())

    size = 8 // n_parts
    run(model, 1, size, gradient_accumulation_steps=n_parts, max_grad_norm=math.inf, callback=take, **dials)
    ids, targets = get_batch(TOKENS, 8, LENGTH, seed=0, step=0)
    objective(reference(ids, targets), targets, **dials).backward()
    for gradient, parameter in zip(found, reference.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-7)


def test_accumulation_ends_at_the_weights_of_the_big_batch():
    whole, parts = new_model(), new_model()
    big = run(whole, 10, 8, learning_rate=1e-3)
    small = run(parts, 10, 2, learning_rate=1e-3, gradient_accumulation_steps=4)
    assert small.loss == pytest.approx(big.loss, rel=1e-5)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_repeating_text_is_learned_and_the_history_says_so():
    model, tokens = new_model(), torch.arange(200) % 5
    history = run(model, 60, 8, 1e-2, tokens=tokens, warmup_steps=5, eval_steps=20, validation_tokens=tokens[:50])
    assert history.step == list(range(1, 61))
    assert history.loss[0] == pytest.approx(math.log(VOCAB), rel=0.05)
    assert history.loss[-1] < 0.2
    assert history.eval_step == [20, 40, 60]
    assert history.eval_loss[-1] == evaluate(model, tokens[:50], batch_size=8)
    assert len(history.learning_rate) == len(history.grad_norm) == 60
    assert history.stopped is None


def test_validation_waits_for_the_end_unless_asked():
    assert run(new_model(), 5, validation_tokens=TOKENS[:30]).eval_step == [5]
    assert run(new_model(), 5, validation_tokens=TOKENS[:30], eval_steps=2).eval_step == [2, 4, 5]
    assert run(new_model(), 5, eval_steps=2).eval_step == []


def test_frozen_weights_stay():
    model = new_model()
    model.wte.requires_grad_(False)
    before = weights(model.wte)
    run(model)
    assert same(before, weights(model.wte))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_each_part_is_left_in_its_own_mode():
    model = new_model().eval()
    model.h[1].train()
    before = [module.training for module in model.modules()]
    modes = []
    run(model, callback=lambda history: modes.append({module.training for module in model.modules()}))
    assert modes == [{True}] * 6
    assert [module.training for module in model.modules()] == before


# Randomness


def test_dropout_depends_on_the_seed_and_not_on_the_callers_random_numbers():
    models = [new_model(dropout=0.3) for _ in range(3)]
    losses = []
    for model, seed in zip(models, (4, 4, 5), strict=True):
        torch.manual_seed(len(losses))
        losses.append(run(model, seed=seed, gradient_accumulation_steps=2).loss)
    assert losses[0] == losses[1] != losses[2]
    assert same(weights(models[0]), weights(models[1]))


def test_dropout_is_on_and_differs_between_steps_and_parts():
    tokens = torch.zeros(LENGTH + 1, dtype=torch.int64)  # every sequence is the same: only dropout can differ
    still = {"tokens": tokens, "learning_rate": 1e-30, "weight_decay": 0, "batch_size": 1}
    assert len(set(run(new_model(), **still).loss)) == 1
    single = run(new_model(dropout=0.3), **still).loss
    assert len(set(single)) == 6
    double = run(new_model(dropout=0.3), **still, gradient_accumulation_steps=2).loss
    assert all(a != b for a, b in zip(single, double, strict=True))


def test_the_callers_random_numbers_are_left_alone(tmp_path):
    run(new_model(dropout=0.3), 4, checkpoint_dir=tmp_path)
    model = new_model(dropout=0.3)
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    seen = []
    run(
        model,
        lr_scheduler_type="cosine",
        steps=4,
        checkpoint_dir=tmp_path,
        resume=True,
        validation_tokens=None,
        callback=lambda history: seen.append(torch.get_rng_state()),
    )
    run(model, callback=lambda history: seen.append(torch.get_rng_state()))
    assert all(torch.equal(state, before[0]) for state in [*seen, torch.get_rng_state()])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


# Stopping


def test_a_callback_stops_the_run_after_its_step():
    model, three = new_model(), new_model()
    history = run(model, callback=lambda history: history.step[-1] == 3)
    assert (history.step, history.stopped) == ([1, 2, 3], "callback")
    run(three, callback=lambda history: len(history.loss) == 3)
    assert same(weights(model), weights(three))


class Counted(torch.nn.Module):
    """A model of one's own, without a config: a table behind batch norm, whose statistics are buffers."""

    def __init__(self):
        super().__init__()
        self.norm, self.table = torch.nn.BatchNorm1d(VOCAB), torch.nn.Linear(VOCAB, VOCAB)

    def forward(self, ids, targets):
        one_hot = torch.nn.functional.one_hot(ids, VOCAB).float().flatten(0, 1)  # (B T, V)
        logits = self.table(self.norm(one_hot))
        return GPTOutput(logits, torch.nn.functional.cross_entropy(logits, targets.flatten()))


def own_run(steps=6, stop_at=None, trainer=None, **options):
    def validate(model):
        ids, targets = get_batch(TOKENS, 8, LENGTH, 1, 0)
        return eval_view(model)(ids, targets).loss.item()

    torch.manual_seed(3)
    config = TrainingConfig(steps, 4, 1.0, lr_scheduler_type="constant", eval_steps=1)
    batches = text_batches(TOKENS, config, LENGTH, 1)
    trainer = trainer or Trainer(Counted(), batches, config, validate=validate, keep_best=True, device="cpu")
    trainer.run(lambda history: history.step[-1] == stop_at, progress=False, **options)
    return trainer


def test_a_model_of_ones_own_with_buffers_and_no_config_is_resumed_bit_for_bit(tmp_path):
    whole, stopped = own_run(), own_run(stop_at=4, checkpoint_dir=tmp_path)
    assert (stopped.history.stopped, len(stopped.history.step)) == ("callback", 4)
    resumed = own_run(checkpoint_dir=tmp_path, resume=True)
    assert resumed.history == whole.history
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])
    resumed.restore_best()
    assert resumed.validate(resumed.model) == min(whole.history.eval_loss)


@pytest.mark.parametrize("parts", [[], [(TOKENS[None, :4], torch.full((1, 4), -100))]])
def test_a_step_with_nothing_to_learn_is_refused_in_one_sentence(parts):
    trainer = Trainer(Counted(), lambda step: parts, TrainingConfig(1, 1, 1.0), device="cpu")
    with pytest.raises(ValueError, match=r"^batches\(0\) must give micro-batches with targets, .*\.$"):
        trainer.run(progress=False)


def test_an_interrupted_trainer_goes_on_when_it_is_run_again():
    whole, trainer = own_run(), own_run(stop_at=2)
    own_run(trainer=trainer)
    assert trainer.history == whole.history


def test_ctrl_c_stops_after_the_step_and_the_old_handler_comes_back():
    def mine(number, frame):
        raise AssertionError("the handler of the caller was called")

    previous = signal.signal(signal.SIGINT, mine)
    try:
        history = run(new_model(), callback=lambda h: signal.raise_signal(signal.SIGINT) if len(h.step) == 2 else None)
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, previous)
    assert (history.step, history.stopped) == ([1, 2], "interrupted")


def test_a_second_ctrl_c_stops_at_once_and_the_mode_comes_back():
    def press_twice(history):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    model, previous = new_model().eval(), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(model, callback=press_twice)
    assert signal.getsignal(signal.SIGINT) is previous
    assert not model.training


def test_training_works_in_another_thread():
    histories = []
    thread = threading.Thread(target=lambda: histories.append(run(new_model())))
    thread.start()
    thread.join()
    assert histories[0].loss == run(new_model()).loss


def test_a_thread_that_builds_models_leaves_dropout_as_it_was():
    alone, stop, linear = run(new_model(dropout=0.3), 40).loss, threading.Event(), torch.nn.Linear(8, 8)

    def build():
        while not stop.is_set():
            GPT(GPTConfig(VOCAB, LENGTH, 16, 2, 2))
            LoRALinear(linear, 2, 1.0)

    thread, model = threading.Thread(target=build), new_model(dropout=0.3)
    thread.start()
    try:
        losses = run(model, 40).loss
    finally:
        stop.set()
        thread.join()
    assert losses == alone


# Divergence


class Breaking(GPT):
    """A GPT whose loss, or whose gradient, is `value` in one training step, counted from 1; 0: in evaluation."""

    step, value, in_gradient = 3, math.nan, False

    def forward(self, ids, targets=None, **options):
        output = super().forward(ids, targets, **options)
        self.n_calls = getattr(self, "n_calls", 0) + self.training
        if self.step == (self.n_calls if self.training else 0):
            if self.in_gradient:
                output.loss.register_hook(lambda gradient: gradient * self.value)
            else:
                output = output._replace(loss=output.loss * self.value)
        return output


def breaking(**settings):
    model = new_model(Breaking)
    vars(model).update(settings)
    return model


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.parametrize("in_gradient", [False, True])
def test_a_bad_loss_or_gradient_is_found_before_the_update(step, value, in_gradient, tmp_path):
    model, good = breaking(step=step, value=value, in_gradient=in_gradient), new_model()
    whole = run(good, callback=lambda h: len(h.step) == step - 1) if step > 1 else None
    what = "gradient norm" if in_gradient else "loss"
    with pytest.raises(DivergedError, match=rf"{what} of step {step} .*weights after step {step - 1}: .*rate") as error:
        run(model, checkpoint_dir=tmp_path, save_steps=2)
    assert error.value.history.loss == (whole.loss if whole else [])
    assert same(weights(model), weights(good))
    assert [path.name for path in tmp_path.glob("step-*")] == (["step-00000002"] if step > 2 else [])


def test_the_checkpoint_of_a_diverged_run_goes_on_as_if_nothing_had_happened(tmp_path):
    options = {"checkpoint_dir": tmp_path, "validation_tokens": TOKENS[:40], "eval_steps": 1, "save_steps": 1}
    with pytest.raises(DivergedError):
        run(breaking(step=4), **options)
    resumed, whole = new_model(), new_model()
    after = run(resumed, resume=True, **options)
    assert after == run(whole, validation_tokens=TOKENS[:40], eval_steps=1)
    assert same(weights(resumed), weights(whole))


def test_a_validation_loss_that_is_no_number_stops_the_run():
    with pytest.raises(DivergedError, match=r"validation loss after step 2 is nan.*weights after step 2: ") as error:
        run(breaking(step=0), validation_tokens=TOKENS[:30], eval_steps=2)
    assert error.value.history.step == [1, 2] and error.value.history.eval_loss == []


def test_a_rate_far_too_high_ends_with_the_finite_steps_and_the_mode_as_it_was():
    model = new_model().eval()
    with pytest.raises(DivergedError) as error:
        run(model, 50, learning_rate=1e30)
    assert error.value.history.loss and all(map(math.isfinite, error.value.history.loss))
    assert not model.training


@pytest.mark.parametrize("broken", ["before", "by the update"])
def test_weights_that_are_not_finite_are_never_saved(broken, tmp_path):
    model = new_model()
    if broken == "before":
        with torch.no_grad():
            model.wpe.weight[-1] = math.inf  # a position that shorter sequences never use, so the loss stays finite
    rate = 1e38 if broken == "by the update" else 1e-2
    with pytest.raises(DivergedError, match="largest weight after step 1 is inf"):
        run(model, 1, learning_rate=rate, lr_scheduler_type="constant", sequence_length=7, checkpoint_dir=tmp_path)
    assert not list(tmp_path.glob("step-*"))


def test_training_with_adamw_takes_16_bytes_a_parameter():
    """Weights, gradients and two moments in float32; nothing else of their size, the undo copies of old included."""
    config = GPTConfig(512, 32, 128, 2, 2)

    def bytes_of_large_tensors():
        gc.collect()
        tensors = [found for found in gc.get_objects() if isinstance(found, torch.Tensor) and found.numel() > 10_000]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    before, found = bytes_of_large_tensors(), []
    model = GPT(config)
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, 512, 300))
    run(model, 3, tokens=tokens, callback=lambda history: found.append(bytes_of_large_tensors() - before))
    large = sum(p.numel() for p in model.parameters() if p.numel() > 10_000)
    assert max(found) == pytest.approx(16 * large, rel=0.01)


# The progress bar


def test_the_bar_shows_loss_speed_and_time_left(capsys):
    history = run(new_model(), progress=True)
    shown = capsys.readouterr().err
    assert f"loss {history.loss[-1]:.3f}" in shown
    assert "tok/s" in shown
    assert "6/6" in shown
    assert "<00:00" in shown  # tqdm's elapsed<left


def test_the_bar_can_be_switched_off(capsys):
    run(new_model(), progress=False)
    assert capsys.readouterr() == ("", "")


# Lower precision, and compiled models


def test_in_bfloat16_weights_moments_and_evaluation_stay_in_float32(tmp_path):
    found, dtypes = {}, set()
    for bf16 in (False, True):
        model = new_model()
        model.h[0].mlp.c_fc.register_forward_hook(
            lambda _, __, output: dtypes.add((output.dtype, torch.is_grad_enabled()))
        )
        history = run(model, steps=30, validation_tokens=TOKENS, bf16=bf16, checkpoint_dir=tmp_path / str(bf16))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        found[bf16] = history
    moments = load_file(max((tmp_path / "True").glob("step-*")) / "optimizer.safetensors")
    assert {tensor.dtype for tensor in moments.values()} == {torch.float32}
    assert dtypes == {(torch.float32, True), (torch.float32, False), (torch.bfloat16, True)}
    assert found[True].loss != found[False].loss
    assert found[True].loss == pytest.approx(found[False].loss, abs=0.02)
    assert found[True].eval_loss == pytest.approx(found[False].eval_loss, abs=0.02)


def test_each_step_in_bfloat16_uses_the_weights_of_the_step_before_and_no_stale_copies():
    model, by_hand = new_model(), new_model()
    run(model, steps=3, bf16=True)
    config = TrainingConfig(3, 4, 1e-2)
    optimizer = build_optimizer(by_hand, config)
    for step in range(3):
        ids, targets = get_batch(TOKENS, 4, LENGTH, 0, step)
        by_hand.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = by_hand(ids, targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config)
        optimizer.step()
    assert same(weights(model), weights(by_hand))


def test_a_compiled_model_trains_as_the_plain_one():
    plain, compiled = new_model(), new_model()
    history = run(plain, validation_tokens=TOKENS)
    assert run(torch.compile(compiled, backend="eager"), validation_tokens=TOKENS) == history
    assert same(weights(plain), weights(compiled))


def test_recomputing_ends_with_the_run_that_asked_for_it():
    model = GPT(GPTConfig(5, 4, 8, 1, 2))
    config = TrainingConfig(1, 1, 1e-3, gradient_checkpointing=True)
    train(model, torch.arange(20) % 5, config, device="cpu", progress=False)
    assert not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable()  # who has switched it on keeps it
    train(model, torch.arange(20) % 5, config, device="cpu", progress=False)
    assert model.is_gradient_checkpointing
