"""The training loop: AdamW as GPT-3 used it, on batches counted by (seed, step), with checkpoints that survive a kill.

Sources: "Language Models are Few-Shot Learners" (Brown et al. 2020, appendix B: betas, clipping, schedule, decay);
"Rethinking the Inception Architecture for Computer Vision" (Szegedy et al. 2016, section 7, label smoothing); "PaLM"
(Chowdhery et al. 2022, section 5, z-loss).
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed import ReduceOp
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from gptcourse import distributed
from gptcourse.checkpoints import checkpointing
from gptcourse.checks import COUNT, between, checked
from gptcourse.config import TrainingConfig
from gptcourse.data import IGNORED, Batches, check_tokens, counted_dropout, fingerprint, get_batch, text_batches
from gptcourse.distributed import choose_device
from gptcourse.model import GPTOutput
from gptcourse.optimizers import build_optimizer, learning_rate_at
from gptcourse.views import (
    context_window,
    device_of,
    eval_view,
    is_transformers,
    plain_name,
    train_mode,
    unwrap,
    vocab_size_of,
)

__all__ = ["DivergedError", "History", "Trainer", "TrainingConfig", "choose_device", "evaluate", "get_batch", "train"]


class DivergedError(RuntimeError):
    """Raised when a loss, gradient or weight is NaN or infinite; `.history` holds the finite steps before it."""

    def __init__(self, message: str, history: History):
        super().__init__(message)
        self.history = history


@dataclass
class History:
    """What a run has measured: one entry a step, the first of which is step 1; losses in nats per token.

    `loss` is measured before the update, `grad_norm` before clipping, `eval_loss` after the step of the same number;
    losses are without label smoothing and z-loss. `tokens` are those read so far, padding included, by all processes.
    `stopped` is None, "interrupted", "callback" or "early stopping".
    """

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    eval_step: list[int] = field(default_factory=list)
    eval_loss: list[float] = field(default_factory=list)
    stopped: str | None = None

    def record(self, loss: float, learning_rate: float, grad_norm: float, n_tokens: int) -> None:
        """Append one step, which has read `n_tokens`."""
        self.step.append(len(self.step) + 1)
        self.loss.append(loss)
        self.learning_rate.append(learning_rate)
        self.grad_norm.append(grad_norm)
        self.tokens.append(sum(self.tokens[-1:]) + n_tokens)


class Objective(nn.Module):
    """What `Trainer` takes in place of a model: a model, and another loss(ids, targets) to train it with."""

    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, ids: Tensor, targets: Tensor) -> GPTOutput:
        """Return the loss as a model would."""
        return GPTOutput(None, self.loss(ids, targets))


class Trainer:
    """One training run of a model that gives a loss: a GPT, a causal language model of transformers, your own.

    `batches(step)` returns the micro-batches (ids, targets), each (B, T), of a step counted from 0, for all processes.
    `validate(model)` returns a validation loss, `schedule(step)` a learning rate (None: `learning_rate_at`). With
    `keep_best`, `best` holds a copy of `state()` at the lowest validation loss; after `patience` evaluations without a
    lower one the run stops. Tensors that `batches` needs on resuming can be put into `extra`, by name: checkpoints keep
    them.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        config: TrainingConfig,
        *,
        validate: Callable[[nn.Module], float] | None = None,
        schedule: Callable[[int], float] | None = None,
        keep_best: bool = False,
        patience: int | None = None,
        device=None,
        strategy: str = "ddp",
    ):
        self.device, self.batches, self.config = choose_device(device), batches, config
        self.validate, self.schedule = validate, schedule or partial(learning_rate_at, config=config)
        self.patience = math.inf if patience is None else patience
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError("All weights of this model are frozen: call model.requires_grad_(True) first.")
        self.core = unwrap(model.model if isinstance(model, Objective) else model)  # whose config counts
        self.recomputes = config.gradient_checkpointing and enable_gradient_checkpointing(self.core)
        self.wrapped = distributed.wrap(model, self.device, strategy, config.bf16)
        self.model = unwrap(model)
        self.trainable = {plain_name(name): p for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = build_optimizer(self.core, config)
        self.history, self.keep_best, self.best, self.extra = History(), keep_best, {}, {}

    def run(self, callback=None, progress=True, checkpoint_dir=None, resume=False, data=None) -> History:
        """Make the remaining steps and return the history; the arguments are those of `train`.

        `data` identifies, in a dict, what is learned from: a run resumes only from checkpoints with the same.
        """
        history, config = self.history, self.config
        saving = checkpointing(self, checkpoint_dir, resume, data or {})
        with saving as save, train_mode(self.wrapped), ctrl_c() as pressed, _progress_bar(self, progress) as show:
            history.stopped = self._early_stop()  # otherwise whoever stopped a run may go on with it
            while len(history.step) < config.steps and history.stopped is None:
                self.step()
                show()
                history.stopped = self._early_stop()
                called = callback is not None and bool(callback(history))
                self._stop_together(called, pressed.is_set())
                if _is_due(history.step[-1], config.save_steps):  # with the reason, if the run stops here
                    self._save(save)
            self._save(save)
        self.optimizer.zero_grad()  # releases the gradients
        if self.recomputes:
            self.core.gradient_checkpointing_disable()
        return history

    def step(self) -> None:
        """Make one step: forward, backward, clip, update, record. Raises DivergedError before a bad update."""
        step = len(self.history.step)
        self.optimizer.zero_grad()
        parts = self.batches(step)
        loss = self._accumulate_gradients(step, parts)
        grad_norm = distributed.whole(clip_grad_norm_(self.trainable.values(), self.config.max_grad_norm))
        loss, grad_norm = torch.stack((loss, grad_norm)).tolist()  # both at once: a GPU is waited for once
        loss = distributed.all_reduce(loss, self.device)
        self._require_finite(loss, f"loss of step {step + 1}")
        self._require_finite(grad_norm, f"gradient norm of step {step + 1}")
        learning_rate = self.schedule(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_factor", 1.0)
        self.optimizer.step()
        self.history.record(loss, learning_rate, grad_norm, sum(ids.numel() for ids, _ in parts))
        if step + 1 == self.config.steps or _is_due(step + 1, self.config.eval_steps):
            self._evaluate()

    def _accumulate_gradients(self, step: int, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Compute the gradient of the objective over all targets of a step; return the loss of this process's parts."""
        config, n = self.config, distributed.world_size()
        counts = [int((targets != IGNORED).sum()) for _, targets in parts]
        if len(parts) < n or not all(counts):  # a process without one would let the others wait for ever
            raise ValueError(f"batches({step}) must give micro-batches with targets, one or more for each process.")
        loss, own = torch.zeros((), device=self.device), range(distributed.rank(), len(parts), n)
        for i in own:
            ids, targets = (tensor.to(self.device) for tensor in parts[i])
            weight = counts[i] / sum(counts)
            sync = distributed.gradient_sync(self.wrapped, i == own[-1])
            # A new autocast for each pass: it caches bfloat16 copies of the weights, which the update makes stale.
            lower = torch.autocast(self.device.type, torch.bfloat16, enabled=config.bf16)
            with sync, counted_dropout(self.device, config.seed, step, i):
                with lower:
                    output = forward(self.wrapped, ids, targets)
                wanted = objective(output, targets, config.label_smoothing, config.z_loss)
                (wanted * weight * n).backward()  # n: both strategies divide the sum of the gradients by n
            loss += output.loss.detach() * weight
        return loss

    def _require_finite(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise DivergedError(
                f"The {what} is {value}; the model has the weights after step {len(self.history.step)}: try a lower "
                "learning_rate, more warmup_steps or a smaller max_grad_norm.",
                self.history,
            )

    def _evaluate(self) -> None:
        if self.validate is None:
            return
        history = self.history
        # The mean over processes, as they must agree to the last bit on which loss is the lowest.
        loss = distributed.all_reduce(self.validate(self.model), self.device) / distributed.world_size()
        self._require_finite(loss, f"validation loss after step {history.step[-1]}")
        if self.keep_best and loss < min(history.eval_loss, default=math.inf):
            self.best = {name: tensor.detach().clone() for name, tensor in self.state().items()}
        history.eval_step.append(history.step[-1])
        history.eval_loss.append(loss)

    def _early_stop(self) -> str | None:
        return "early stopping" if stops_early(self.history.eval_loss, self.patience) else None

    def _stop_together(self, called: bool, interrupted: bool) -> None:
        """Note that the run stops if the callback or Ctrl-C says so in any process: only together can they stop."""
        wish = distributed.all_reduce(2 if interrupted else int(called), self.device, ReduceOp.MAX)
        if wish == 2:
            self.history.stopped = "interrupted"
        elif wish == 1:
            self.history.stopped = self.history.stopped or "callback"

    def _save(self, save: Callable[[], None]) -> None:
        """Save, unless the last update broke the weights, which no loss has shown yet: then raise DivergedError."""
        if not distributed.all_finite(self.trainable.values()):
            self._require_finite(math.inf, f"largest weight after step {len(self.history.step)}")
        save()

    def state(self) -> dict[str, Tensor]:
        """Return what training changes, by name: trainable parameters, and the buffers of the model's state_dict."""
        saved = self.model.state_dict().keys()
        buffers = {name: buffer for name, buffer in self.model.named_buffers() if name in saved}
        return {name: parameter.detach() for name, parameter in self.trainable.items()} | buffers

    def restore_best(self) -> None:
        """Put back the state with the lowest validation loss, if any was kept."""
        state = self.state()
        for name, tensor in self.best.items():
            state[name].copy_(tensor)


def train(
    model,
    tokens,
    config: TrainingConfig,
    *,
    validation_tokens=None,
    checkpoint_dir=None,
    resume=False,
    callback=None,
    device=None,
    strategy: str = "ddp",
    progress: bool = True,
) -> History:
    """Train `model` in place on (n,) token ids, on `device` (None: the best there is), and return the history.

    `callback(history)` is called after each step; True stops the run. Ctrl-C stops it after the step it is in, a second
    one at once. Checkpoints are written to `checkpoint_dir` every `save_steps` and at the end, and the last two kept;
    `resume=True` goes on from the newest whole one, if there is any. On one machine with one number of threads, a CPU
    run then ends bit-identical to one that never stopped. `steps` and the schedule may change on resuming, if the steps
    already made keep their rates. `resume=directory` goes on, while `checkpoint_dir` is empty, from the newest one of
    another run, and leaves it as it is: a trunk at a constant rate gives many cool-downs (MiniCPM, Hu et al. 2024,
    section 4; Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations").

    Started by `torchrun` or `accelerate launch`, n processes make the run of one with n times the
    `gradient_accumulation_steps`; process 0 writes and shows progress. `strategy` is "ddp", each process with the whole
    model, or "fsdp": each holds a part, see `distributed.wrap`, and all write, to a disk that they share.

    Raises ValueError, CheckpointError and DivergedError.
    """
    device, length = choose_device(device), check_length(model, config.sequence_length)
    distributed.init(device)
    tokens = check_tokens(tokens, vocab_size_of(model), length + 1, "training tokens").to(device)
    validate = None
    if validation_tokens is not None:
        validation_tokens = check_tokens(validation_tokens, vocab_size_of(model), 2, "validation tokens").to(device)
        validate = partial(evaluate, tokens=validation_tokens, sequence_length=length)
    batches = text_batches(tokens, config, length, distributed.world_size())
    trainer = Trainer(model, batches, config, validate=validate, device=device, strategy=strategy)
    data = {"the training tokens": fingerprint(tokens), "the validation tokens": fingerprint(validation_tokens)}
    return trainer.run(callback, progress, checkpoint_dir, resume, data | {"sequence_length": length})


@checked(batch_size=COUNT)
def evaluate(model, tokens, *, sequence_length: int | None = None, batch_size: int = 16) -> float:
    """Return the mean cross-entropy in nats per token over the whole set.

    The set is cut into windows of `sequence_length` (None: the model's context window), so that every token but the
    first is predicted exactly once. Raises ValueError for tokens that do not fit.
    """
    length = check_length(model, sequence_length)
    tokens = check_tokens(tokens, vocab_size_of(model), 2, "tokens to evaluate")
    ids, targets = tokens[:-1], tokens[1:]
    whole = len(ids) // length * length
    windows = [part[:whole].view(-1, length).split(batch_size) for part in (ids, targets)]
    batches = list(zip(*windows, strict=True)) if whole else []
    if whole < len(ids):
        batches.append((ids[None, whole:], targets[None, whole:]))  # (1, rest)
    return mean_loss(model, batches)


@torch.inference_mode()
def mean_loss(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the mean loss per target, in nats, over batches (inputs, targets); a model's own loss is a mean, too."""
    view, device, total, count = eval_view(model), device_of(model), 0.0, 0
    for inputs, targets in batches:
        n = int((targets != IGNORED).sum())
        total += forward(view, inputs.to(device), targets.to(device)).loss.item() * n
        count += n
    return total / count


def stops_early(losses: list[float], patience: float) -> bool:
    """Return whether the lowest of the losses has been followed by `patience` others."""
    return bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= patience


def check_length(model, sequence_length: int | None) -> int:
    """Return the sequence length, None being the model's context window. Raises ValueError if it does not fit."""
    longest = context_window(model)
    return longest if sequence_length is None else between(1, longest)("sequence_length", sequence_length)


def enable_gradient_checkpointing(model: nn.Module) -> bool:
    """Let a GPT, or a model of transformers, recompute activations in training; return whether it did not before.

    Raises ValueError for other models.
    """
    if not hasattr(model := unwrap(model), "gradient_checkpointing_enable"):
        raise ValueError(f"A {type(model).__name__} recomputes no activations: leave gradient_checkpointing off.")
    before = getattr(model, "is_gradient_checkpointing", False)
    model.gradient_checkpointing_enable()
    return not before


def forward(model: nn.Module, ids: Tensor, targets: Tensor) -> GPTOutput:
    """Return logits and the mean loss over the targets, both (B, T): of a GPT, your own, or a transformers model."""
    if not is_transformers(model):
        return model(ids, targets)
    logits = model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return GPTOutput(logits, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()))


def objective(output, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Tensor:
    """Return the loss that training minimises, from a model's output (logits (B, T, V) and loss) on targets (B, T).

    `label_smoothing` is the share of the target's probability that is spread evenly over all V tokens (Szegedy et al.
    2016, section 7). `z_loss` multiplies the mean of log² Z, Z being the sum that the softmax divides by, and keeps log
    Z near 0; PaLM took 1e-4 (Chowdhery et al. 2022, section 5). Both leave out IGNORED targets.
    """
    if not label_smoothing and not z_loss:
        return output.loss
    if output.logits is None:
        raise ValueError("This loss is not one of logits: leave label_smoothing and z_loss at 0.")
    logits = output.logits[targets != IGNORED].float()  # (n, V)
    log_z = logits.logsumexp(-1)
    even = (log_z - logits.mean(-1)).mean()  # -log p = log Z - logit, the mean over all tokens
    return (1 - label_smoothing) * output.loss + label_smoothing * even + z_loss * log_z.square().mean()


@contextmanager
def ctrl_c():
    """Give an event that the first Ctrl-C sets, to be read between steps; the second raises KeyboardInterrupt."""
    pressed = threading.Event()

    def handle(*_) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    if threading.current_thread() is not threading.main_thread():  # only there does Python allow handlers
        yield pressed
        return
    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def _progress_bar(trainer: Trainer, progress: bool) -> Iterator[Callable[[], None]]:
    """Give a function that shows the newest step: loss, tokens per second of this run, time left."""
    from tqdm.auto import tqdm  # in a notebook it imports ipywidgets

    config, history = trainer.config, trainer.history
    begin, read_before = time.perf_counter(), sum(history.tokens[-1:])
    quiet = not progress or distributed.rank() > 0
    # Each change is several messages to the browser. Who reads them only when the cell has ended, as nbval does, loses
    # the last ones of a long cell, as the queue is full; so one change a second.
    options = {"mininterval": 1.0, "dynamic_ncols": True, "disable": quiet}
    with tqdm(total=config.steps, initial=len(history.step), unit="step", **options) as bar:

        def show() -> None:
            speed = (history.tokens[-1] - read_before) / (time.perf_counter() - begin)
            bar.set_postfix_str(f"loss {history.loss[-1]:.3f}, {speed:,.0f} tok/s", refresh=False)
            bar.update()

        yield show


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
