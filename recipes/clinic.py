"""Record the sick runs of notebook 06's clinic: python recipes/clinic.py [PART …]

Every patient is the same GPT on the same plays with the same settings but for one fault, which is really made here. The
`patients` are the curves that a learner sees, and what costs few tokens to look up; the `experiments` and `reruns` are
trained; `comparisons` are the healthy run with other seeds, and cures; `seeds` says whether the signs hold with each.
A validation loss is what the patient's own code measures: with its mask, its targets, its split.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import islice
from typing import Any

import torch
from plays import read_plays
from runner import Work, completed, constants, fill, run
from torch import Tensor
from torch.nn import functional as F

from gptcourse.attention import CausalSelfAttention
from gptcourse.clinic import HEALTHY, SIGNS, numbers_of_a_run
from gptcourse.config import GPTConfig, TrainingConfig
from gptcourse.corpora import shakespeare
from gptcourse.data import Batches, counted_rng, example_batches, text_batches
from gptcourse.model import GPT
from gptcourse.ngrams import NGrams
from gptcourse.optimizers import learning_rate_at
from gptcourse.training import History, Trainer, evaluate, forward
from gptcourse.tuning import RangeTest

LENGTH = 64  # of a window, in characters
SHAPE = GPTConfig(
    76, LENGTH, n_embd=64, n_layer=2, n_head=2, initializer_range=0.08,
    position_embedding="rotary", norm="rmsnorm", activation_function="relu2",
)  # fmt: skip
SETTINGS = TrainingConfig(steps=1600, batch_size=8, learning_rate=4e-3, warmup_steps=100, eval_steps=80)
STEP = SETTINGS.batch_size * LENGTH  # tokens
HALF = SETTINGS.steps // 2  # after which two of the patients are resumed
EACH = 8  # steps of which a point of a curve is the mean
HELD_OUT = 20_000  # characters to validate on, and as many fresh ones
SHORT, LEAKED = 20_000, 4_000  # characters of a short text, and of the part of it that is validated on as well
LONGEST = 6  # characters in the longest piece that is counted
TEST_STEPS, LOWEST, HIGHEST = 200, 1e-5, 1.0  # of a range test, and of the attempt to learn one batch by heart
CUT = 32  # characters that the model still sees when the future is cut off
BROKEN = 97  # every so many batches, one comes from a broken file
SHUT = -4.0  # biases that no input lifts above 0
ENDS = 20  # batches at the beginning of the run, and at its end, that the model at the end is tried on
PROMPT, WRITTEN = "ROMEO:\n", 120  # characters that a model goes on for
SEEDS = (0, 1, 2)
# Illnesses whose sign is read from the run and might depend on the seed, as that of a missing mask does not.
SEEDED = ("overfitting", "unshuffled data", "bad batches", "dead units", "lost optimizer state")

SHORT_TEXT, LEAKED_TEXT = "a short text", "a short text, of which a part is validated on"
SORTED, PADDED, UNSHIFTED, FROM_BROKEN = "sorted speeches", "padding counts", "ids are targets", "broken file"
BFLOAT16, UNMASKED, SHUT_UNITS = "bfloat16 weights", "no causal mask", "units are shut"
RESTARTED, FORGOTTEN, KEPT = "schedule restarts", "moments are lost", "gradients are kept"
# What is wrong with each patient: settings of its run, and the fault of its code or data.
FAULTS: dict[str, dict[str, Any]] = {
    "healthy": {},
    "rate too high": {"learning_rate": 0.1},
    "rate too low": {"learning_rate": 1e-4},
    "no warm-up": {"learning_rate": 2e-2, "warmup_steps": 0},
    "overfitting": {"fault": SHORT_TEXT},
    "low precision": {"learning_rate": 5e-4, "fault": BFLOAT16},
    "unshuffled data": {"fault": SORTED},
    "leaking mask": {"fault": UNMASKED},
    "leaking split": {"fault": LEAKED_TEXT},
    "bad batches": {"fault": FROM_BROKEN},
    "dead units": {"fault": SHUT_UNITS},
    "padding in the loss": {"fault": PADDED},
    "unshifted targets": {"fault": UNSHIFTED},
    "stale schedule": {"fault": RESTARTED},
    "lost optimizer state": {"fault": FORGOTTEN},
    "gradients not cleared": {"max_grad_norm": math.inf, "fault": KEPT},
}
# The same runs without their fault, where that is another run than the healthy one.
CURES: dict[str, dict[str, Any]] = {
    "no warm-up": {"learning_rate": 2e-2},
    "low precision": {"learning_rate": 5e-4},
}


# ---- Text


@cache
def shortest_first() -> Tensor:
    """Return as much of the plays as a run reads, its speeches sorted by their length."""
    speeches = shakespeare().train[: SETTINGS.steps * STEP + 1].split("\n\n")
    return torch.tensor(read_plays()[0].encode("\n\n".join(sorted(speeches, key=len))))


@cache
def padded_speeches() -> list[tuple[list[int], list[int]]]:
    """Return speeches as examples (ids, targets), each cut to the window."""
    encode = read_plays()[0].encode
    found = [encode(speech + "\n\n")[: LENGTH + 1] for speech in islice(shakespeare().train.split("\n\n"), 20_000)]
    return [(ids[:-1], ids[1:]) for ids in found]


def in_order(tokens: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Return the batch of a step that reads a text from its beginning, each row going on where the last one ended."""
    piece = tokens[step * STEP : (step + 1) * STEP + 1]
    return piece[:-1].view(-1, LENGTH), piece[1:].view(-1, LENGTH)


# ---- The patients


class Unmasked(CausalSelfAttention):
    """Attention that sees the whole window: is_causal has been forgotten."""

    def forward(self, x: Tensor, cache=None, output_attentions: bool = False) -> tuple[Tensor, None]:
        """Map (B, T, C) to (B, T, C)."""
        output = F.scaled_dot_product_attention(*self._queries_keys_values(x, 0))
        return self.c_proj(output.transpose(1, 2).flatten(2)), None


@dataclass(frozen=True)
class Patient:
    """A run with a fault: `given` holds the settings that are its own, and the fault of its code or data, if any."""

    given: dict[str, Any]
    seed: int = 0

    @property
    def fault(self) -> str | None:
        """The fault of its code or data."""
        return self.given.get("fault")

    @property
    def config(self) -> TrainingConfig:
        """The settings of the run."""
        own = {name: value for name, value in self.given.items() if name != "fault"}
        return replace(SETTINGS, seed=self.seed, **own)

    @cached_property
    def texts(self) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens to train on, to validate on, and fresh ones, which no part of the run has seen."""
        _, tokens, held_out = read_plays()
        validation, fresh = held_out[:HELD_OUT], held_out[HELD_OUT : 2 * HELD_OUT]
        if self.fault == LEAKED_TEXT:
            return tokens[:SHORT], tokens[SHORT - LEAKED : SHORT], fresh
        if self.fault == SORTED:
            return shortest_first(), validation, fresh
        return tokens[:SHORT] if self.fault == SHORT_TEXT else tokens, validation, fresh

    def model(self) -> GPT:
        """Return the model before training."""
        torch.manual_seed(self.seed)
        model = GPT(SHAPE)
        for block in model.h:
            if self.fault == UNMASKED:
                causal, block.attn = block.attn, Unmasked(SHAPE)
                block.attn.load_state_dict(causal.state_dict())
            if self.fault == SHUT_UNITS:
                torch.nn.init.constant_(block.mlp.c_fc.bias, SHUT)
        return model.bfloat16() if self.fault == BFLOAT16 else model

    def batches(self) -> Batches:
        """Return the function from a step to its one batch, as this patient's code draws it."""
        tokens, config = self.texts[0], self.config
        if self.fault == SORTED:
            return lambda step: [in_order(tokens, step)]
        draw = text_batches(tokens, config, LENGTH, 1)
        if self.fault == PADDED:
            draw = example_batches(padded_speeches(), config, 1)
        return lambda step: [self.as_made(step, *batch) for batch in draw(step)]

    def as_made(self, step: int, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return a batch as this patient's code makes it."""
        if self.fault == FROM_BROKEN and step % BROKEN == BROKEN - 1:
            noise = counted_rng(self.seed, step).integers(SHAPE.vocab_size, size=(len(ids), LENGTH + 1))
            return torch.from_numpy(noise[:, :-1]), torch.from_numpy(noise[:, 1:])
        if self.fault == UNSHIFTED:
            return ids, ids
        return ids, targets.clamp(min=0) if self.fault == PADDED else targets

    def validate(self, model: GPT, tokens: Tensor) -> float:
        """Return the loss that this patient's code measures on a text."""
        if self.fault != UNSHIFTED:
            return evaluate(model, tokens)
        windows = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)
        with torch.inference_mode():
            return forward(model, windows, windows).loss.item()

    def trainer(self, validates: bool = True, **changed) -> Trainer:
        """Return the run before its first step: whole, or with other `batches`, `schedule` or `steps`."""
        config = replace(self.config, steps=changed.get("steps", SETTINGS.steps))

        def schedule(step: int) -> float:
            return learning_rate_at(step - HALF if self.fault == RESTARTED and step >= HALF else step, config)

        options = {"schedule": changed.get("schedule", schedule), "device": "cpu"}
        if validates:
            options["validate"] = partial(self.validate, tokens=self.texts[1])
        trainer = Trainer(self.model(), changed.get("batches", self.batches()), config, **options)
        if self.fault == KEPT:
            trainer.optimizer.zero_grad = lambda: None
        return trainer


# ---- What is recorded of them


def record(given: dict, seed: int) -> dict:
    """Train a patient; return its curves, and what can be asked of its model."""
    patient = Patient(given, seed)
    trainer, updates, before = patient.trainer(), [], []

    def watch(history: History) -> None:
        """Compare the weights before and after some steps, and resume the run in the middle."""
        step, weights = history.step[-1], [p.detach() for p in trainer.model.parameters()]
        if before:
            updates.append({"step": step} | compared(before, weights))
        before[:] = [w.clone() for w in weights] if (step + 1) % SETTINGS.eval_steps <= 1 else []
        if step == HALF and patient.fault == FORGOTTEN:
            trainer.optimizer.state.clear()

    history = completed(trainer.run(watch, progress=False))
    return {
        "training_loss": of_each(history.loss, statistics.fmean, 4),
        "highest_loss": of_each(history.loss, max, 3),
        "gradient_norm": of_each(history.grad_norm, statistics.fmean, 3),
        "rate": [float(f"{rate:.3g}") for rate in history.learning_rate[EACH - 1 :: EACH]],
        "validation_loss": [round(loss, 4) for loss in history.eval_loss],
        "updates": updates,
        "fresh_loss": round(patient.validate(trainer.model, patient.texts[2]), 4),
        "future": with_and_without_the_future(patient, trainer.model),
        "ends": [mean_loss(patient, trainer.model, steps) for steps in (range(ENDS), range(-ENDS, 0))],
        "dead": dead_units(trainer.model, patient.texts[2]),
        "sample": sample(trainer.model, seed),
    }


def of_each(values: list[float], summary, digits: int) -> list[float]:
    """Return the summaries of EACH values, with so many digits."""
    return [round(summary(values[i : i + EACH]), digits) for i in range(0, len(values), EACH)]


def compared(before: list[Tensor], after: list[Tensor]) -> dict[str, float]:
    """Return the root mean square of what a step adds to the weights, and the share of them that it moves."""
    change = torch.cat([(b.float() - a.float()).flatten() for a, b in zip(before, after, strict=True)])
    size, moved = change.square().mean().sqrt().item(), (change != 0).float().mean().item()
    return {"size": float(f"{size:.3g}"), "moved": round(moved, 4)}


@torch.inference_mode()
def with_and_without_the_future(patient: Patient, model: GPT) -> list[float]:
    """Return the loss of the character after CUT others: when the model sees those after it as well, and not."""
    text = patient.texts[1][:3_969]  # 62 windows
    ids, targets = patient.as_made(0, text[:-1].view(-1, LENGTH), text[1:].view(-1, LENGTH))
    seen = model(ids).logits[:, CUT - 1], model(ids[:, :CUT]).logits[:, -1]
    return [round(F.cross_entropy(logits.float(), targets[:, CUT - 1]).item(), 4) for logits in seen]


@torch.inference_mode()
def mean_loss(patient: Patient, model: GPT, steps: range) -> float:
    """Return the model's loss on the batches of some steps, negative ones counted from the end."""
    draw = patient.batches()
    batches = [draw(step % SETTINGS.steps)[0] for step in steps]
    return round(statistics.fmean(forward(model, *batch).loss.item() for batch in batches), 4)


def dead_units(model: GPT, tokens: Tensor) -> list[float]:
    """Return the share of units in each layer's MLP that no character of a text makes positive."""
    alive = [torch.zeros(4 * SHAPE.n_embd, dtype=torch.bool) for _ in model.h]

    def note(layer: int, _module, _inputs, output: Tensor) -> None:
        alive[layer] |= (output > 0).flatten(0, -2).any(0)

    hooks = [block.mlp.c_fc.register_forward_hook(partial(note, layer)) for layer, block in enumerate(model.h)]
    evaluate(model, tokens)
    for hook in hooks:
        hook.remove()
    return [round(1 - units.float().mean().item(), 4) for units in alive]


@torch.inference_mode()
def sample(model: GPT, seed: int) -> str:
    """Return what the model writes after PROMPT at temperature 1; it reads its window anew for each character."""
    tokenizer, generator = read_plays()[0], torch.Generator().manual_seed(seed)
    ids = tokenizer.encode(PROMPT)
    for _ in range(WRITTEN):
        logits = model(torch.tensor([ids[-LENGTH:]])).logits[0, -1].float()
        ids.append(int(torch.multinomial(logits.softmax(-1), 1, generator=generator)))
    return tokenizer.decode(ids)


def example(given: dict) -> dict[str, Any]:
    """Return the row of a patient's first batch with the most line breaks, and what the batch's targets are.

    `same` is the share of the targets that are their own input; `blank`, the share that are a line break after two
    others, which a play does not have.
    """
    ((ids, targets),) = Patient(given).batches()(0)
    decode, row = read_plays()[0].decode, int((targets == 0).sum(1).argmax())
    blank = (targets[:, 2:] == 0) & (ids[:, 2:] == 0) & (ids[:, 1:-1] == 0)
    shares = {"same": (ids == targets).float().mean().item(), "blank": blank.float().mean().item()}
    rounded = {name: round(share, 4) for name, share in shares.items()}
    return {"ids": decode(ids[row].tolist()), "targets": decode(targets[row].tolist())} | rounded


def range_test(given: dict, seed: int = 0) -> dict:
    """Return what a range test of the patient's own code measures."""
    rates = torch.logspace(math.log10(LOWEST), math.log10(HIGHEST), TEST_STEPS).tolist()
    trainer, test = Patient(given, seed).trainer(False, steps=TEST_STEPS, schedule=rates.__getitem__), RangeTest()

    def note(history: History) -> bool:
        test.record(history.learning_rate[-1], history.loss[-1], TEST_STEPS // 20)
        return test.broke

    trainer.run(note, progress=False)
    rounded = {"rates": [float(f"{rate:.3g}") for rate in test.rates], "losses": [round(x, 3) for x in test.smoothed]}
    return rounded | {"suggestion": test.suggestion and float(f"{test.suggestion:.3g}")}


def one_batch(given: dict) -> list[float]:
    """Return the losses of the patient's own code when it trains on its first batch alone."""
    patient = Patient(given)
    first = patient.batches()(0)
    losses = completed(patient.trainer(False, steps=TEST_STEPS, batches=lambda _: first).run(progress=False)).loss
    return [round(loss, 3) for loss in losses[::2]]


def first_quarter(given: dict, seed: int) -> dict[str, list[float]]:
    """Return the curves of the first quarter of a patient's run."""
    trainer, end = Patient(given, seed).trainer(), SETTINGS.steps // 4
    history = completed(trainer.run(lambda history: history.step[-1] == end, progress=False))
    return {
        "training_loss": of_each(history.loss, statistics.fmean, 4),
        "validation_loss": [round(loss, 4) for loss in history.eval_loss],
    }


def count(fault: str | None) -> list[float]:
    """Return the losses of the count tables of 1 to LONGEST characters, on the texts of a patient with this fault."""
    tokens, validation, _ = Patient({"fault": fault}).texts
    return [round(loss, 4) for loss in NGrams(tokens, SHAPE.vocab_size, LONGEST).losses(validation)]


# ---- The parts


def patients(work: Work) -> dict:
    """Train every patient once."""
    curves = work.pieces([(record, given, 0) for given in FAULTS.values()])
    others = SHORT_TEXT, LEAKED_TEXT, SORTED  # the faults that change a text
    counted = dict(zip((None, *others), work.pieces([(count, fault) for fault in (None, *others)]), strict=True))
    lines = [counted[given["fault"] if given.get("fault") in others else None] for given in FAULTS.values()]
    every, steps = SETTINGS.eval_steps, SETTINGS.steps
    return {
        "tokens": [step * STEP for step in range(EACH, steps + 1, EACH)],
        "validation_tokens": [step * STEP for step in range(every, steps + 1, every)],
        "patients": {
            name: run | {"lines": line, "example": example(given)}
            for (name, given), line, run in zip(FAULTS.items(), lines, curves, strict=True)
        },
    }


def experiments(work: Work) -> dict:
    """Make a range test of every patient, and let it learn one batch by heart."""
    tests = work.pieces([(range_test, given) for given in FAULTS.values()])
    batches = work.pieces([(one_batch, given) for given in FAULTS.values()])
    return {
        name: {"range_test": test, "one_batch": losses}
        for name, test, losses in zip(FAULTS, tests, batches, strict=True)
    }


def comparisons(work: Work) -> dict:
    """Train the healthy run with each seed, and cure those that the healthy run does not cure."""
    healthy = work.pieces([(record, {}, seed) for seed in SEEDS])
    cures = work.pieces([(record, given, 0) for given in CURES.values()])
    return {
        "healthy": [found["validation_loss"] for found in healthy],
        "cures": {name: found["validation_loss"] for name, found in zip(CURES, cures, strict=True)},
    }


def reruns(work: Work) -> dict:
    """Train the first quarter of every patient's run again, with a quarter of its rate and with another seed."""
    slower = [given | {"learning_rate": Patient(given).config.learning_rate / 4} for given in FAULTS.values()]
    slow = work.pieces([(first_quarter, given, 0) for given in slower])
    again = work.pieces([(first_quarter, given, 1) for given in FAULTS.values()])
    return {name: {"slower": a, "other_seed": b} for name, a, b in zip(FAULTS, slow, again, strict=True)}


def card(data: dict[str, dict]) -> str:
    """Return the card: what is wrong with whom, and by what it shows."""
    return fill("clinic", tuple(PARTS), **data, **constants(globals()))


def seeds(work: Work) -> dict:
    """Make the runs that a sign is read from with all seeds: does it show each time, and never in the healthy run?"""
    tests = work.pieces([(range_test, {}, seed) for seed in SEEDS])  # whatever the rate of the run
    made = {}
    for name, sign in SIGNS.items():
        if sign.number == "excess":
            suggested = [test["suggestion"] or HIGHEST for test in tests]
            own, healthy = (Patient(FAULTS[who]).config.learning_rate for who in (name, HEALTHY))
            made[name] = {"sick": [own / rate for rate in suggested], HEALTHY: [healthy / rate for rate in suggested]}
        elif name in SEEDED:
            made[name] = {
                "sick": sign_numbers(work, FAULTS[name], sign.number),
                HEALTHY: sign_numbers(work, FAULTS[HEALTHY], sign.number),
            }
    return made


def sign_numbers(work: Work, given: dict, number: str) -> list[float]:
    """Return the number that a sign is read from, of a patient's run with each seed."""
    found = work.pieces([(record, given, seed) for seed in SEEDS])
    return [numbers_of_a_run(run | {"example": example(given)})[number] for run in found]


PARTS = {"patients": patients, "experiments": experiments, "comparisons": comparisons, "reruns": reruns, "seeds": seeds}

if __name__ == "__main__":
    run("clinic", PARTS, card)
