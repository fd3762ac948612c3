"""The training loop: batches counted by (seed, step), AdamW as GPT-3 used it, checkpoints that survive a kill.

Nothing random is carried from step to step. The batch of step n, and its dropout, are functions of (seed, n)
alone, so that a checkpoint needs only the weights, the optimiser's moments and n to go on bit for bit.

Sources: "Language Models are Few-Shot Learners" (Brown et al. 2020, appendix B: betas, clipping, schedule,
decay); "Decoupled Weight Decay Regularization" (Loshchilov and Hutter 2019, AdamW); "Parallel Random Numbers:
As Easy as 1, 2, 3" (Salmon et al. 2011, Philox: random numbers from a counter); "Rethinking the Inception
Architecture for Computer Vision" (Szegedy et al. 2016, section 7, label smoothing); "PaLM" (Chowdhery et al. 2022,
section 5, z-loss).
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import signal
import threading
import time
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch

from gptcourse import distributed
from gptcourse.checkpoints import CheckpointError, Checkpoints
from gptcourse.model import in_mode
from gptcourse.optimizers import OPTIMIZERS, SCHEDULES, build_optimizer, learning_rate_at


class DivergedError(RuntimeError):
    """Raised when a loss or gradient is NaN or infinite; `.history` holds the finite steps before it."""

    def __init__(self, message: str, history: History):
        super().__init__(message)
        self.history = history


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a run; the defaults are GPT-3's where it has one (Brown et al. 2020, appendix B).

    `batch_size` counts the sequences of one forward pass; a step makes `gradient_accumulation_steps` of them
    and learns from all of their tokens. `sequence_length=None` means the model's `n_positions`. `eval_steps=0`
    evaluates only at the end, `save_steps=0` saves only at the end. `decay_steps` is explained at
    `learning_rate_at`; `max_grad_norm=math.inf` switches clipping off. `label_smoothing` and `z_loss` are explained
    at `objective`; GPT-3 has neither. `optim` is "adamw" or "muon", see `optimizers.Muon`: `adam_beta1`
    is Muon's momentum too, `ns_steps` are its Newton-Schulz steps. `bf16` multiplies matrices in bfloat16 (Micikevicius
    et al. 2018, "Mixed Precision Training", with the wider exponent of Kalamkar et al. 2019); weights, moments and
    evaluation stay in float32. Raises ValueError.
    """

    steps: int
    batch_size: int
    learning_rate: float
    seed: int = 0
    sequence_length: int | None = None
    gradient_accumulation_steps: int = 1
    lr_scheduler_type: str = "cosine"
    warmup_steps: int = 0
    decay_steps: int | None = None
    min_lr_ratio: float = 0.1
    weight_decay: float = 0.1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    optim: str = "adamw"
    ns_steps: int = 5
    bf16: bool = False
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    eval_steps: int = 0
    save_steps: int = 0

    def __post_init__(self):
        given = [name for name in ("sequence_length", "decay_steps") if getattr(self, name) is not None]
        for name in ("steps", "batch_size", "gradient_accumulation_steps", "ns_steps", *given):
            self._require(name, int, "a whole number, 1 or more", lambda x: x >= 1)
        for name in ("seed", "warmup_steps", "eval_steps", "save_steps"):
            self._require(name, int, "a whole number, 0 or more", lambda x: x >= 0)
        for name in ("learning_rate", "adam_epsilon"):
            self._require(name, float, "a number above 0", lambda x: 0 < x < math.inf)
        for name in ("adam_beta1", "adam_beta2", "label_smoothing"):
            self._require(name, float, "a number from 0 to just below 1", lambda x: 0 <= x < 1)
        self._require("min_lr_ratio", float, "a number from 0 to 1", lambda x: 0 <= x <= 1)
        for name in ("weight_decay", "z_loss"):
            self._require(name, float, "a number, 0 or more", lambda x: 0 <= x < math.inf)
        self._require("max_grad_norm", float, "a number above 0", lambda x: x > 0)
        if self.lr_scheduler_type not in SCHEDULES:
            raise ValueError(f"lr_scheduler_type must be one of {SCHEDULES}, not {self.lr_scheduler_type!r}.")
        if not isinstance(self.bf16, bool):
            raise ValueError(f"bf16 must be True or False, not {self.bf16!r}.")
        if self.optim not in OPTIMIZERS:
            raise ValueError(f"optim must be one of {OPTIMIZERS}, not {self.optim!r}.")
        if self.warmup_steps + (self.decay_steps or 1) > self.steps:
            raise ValueError(f"warmup_steps and decay_steps do not fit into the {self.steps} steps of the run.")

    def _require(self, name: str, kind: type, wanted: str, is_fine) -> None:
        value = getattr(self, name)
        is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not is_number or not is_fine(value) or (kind is int and value // 1 != value):
            raise ValueError(f"{name} must be {wanted}, not {value!r}.")
        object.__setattr__(self, name, kind(value))  # NumPy's numbers are welcome, but JSON has no place for them


@dataclass
class History:
    """What a run has measured: one entry a step, the first of which is step 1; losses in nats per token.

    `loss` is measured on the step's batch before the update, `grad_norm` before clipping. Both losses are the
    model's own, without label smoothing and z-loss, so that runs can be compared. `eval_loss` is measured after
    the step of the same number. `stopped` is None, "interrupted", "callback" or, in fine-tuning, "early stopping".
    """

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    eval_step: list[int] = field(default_factory=list)
    eval_loss: list[float] = field(default_factory=list)
    stopped: str | None = None

    def until(self, step: int) -> History:
        """Return the history as it stood after `step` steps."""
        n_evals = sum(eval_step <= step for eval_step in self.eval_step)
        by_step = (self.step, self.loss, self.learning_rate, self.grad_norm)
        return History(*(values[:step] for values in by_step), self.eval_step[:n_evals], self.eval_loss[:n_evals])


def get_batch(tokens: torch.Tensor, batch_size: int, sequence_length: int, seed: int, step: int):
    """Return (ids, targets), each (batch_size, sequence_length), cut at random places out of (n,) `tokens`.

    The target of each token is the token after it. A pure function: the same seed and step give the same batch.
    """
    # Drawing numbers moves Philox's 256-bit counter up from its low end. The step goes into the high half: in
    # the low one, each step would draw most of the numbers of the step before again.
    generator = np.random.Generator(np.random.Philox(key=seed, counter=step << 128))
    starts = torch.from_numpy(generator.integers(0, len(tokens) - sequence_length, size=(batch_size, 1)))
    places = (starts + torch.arange(sequence_length)).to(tokens.device)  # (B, T)
    return tokens[places], tokens[places + 1]


def objective(output, targets: torch.Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0) -> torch.Tensor:
    """Return what training minimises, out of a model's output on targets (B, T): its loss, unless told otherwise.

    `label_smoothing` is the share of the target's probability that is spread evenly over all V tokens: the same
    as F.cross_entropy's (Szegedy et al. 2016, section 7). `z_loss` multiplies the mean of log² Z, where Z is the sum
    that the softmax divides by, and keeps log Z near 0; PaLM took 1e-4 (Chowdhery et al. 2022, section 5). Both
    need `output.logits` (B, T, V), and leave out targets of -100.
    """
    if not label_smoothing and not z_loss:
        return output.loss
    logits = output.logits[targets != -100]  # (n, V)
    log_z = logits.logsumexp(-1)
    even = (log_z - logits.mean(-1)).mean()  # -log p = log Z - logit, the mean over all tokens
    return (1 - label_smoothing) * output.loss + label_smoothing * even + z_loss * log_z.square().mean()


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Return the given device, or the best there is: a CUDA GPU of this process's own, Apple's GPU, or the CPU.

    Raises ValueError.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda", distributed.local_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as fault:
        raise ValueError(f"PyTorch finds no device {str(device)!r} here: leave `device` out.") from fault
    return torch.device(device)


@torch.no_grad()
def evaluate(model, tokens, *, sequence_length: int | None = None, batch_size: int = 16) -> float:
    """Return the mean cross-entropy in nats per token over the whole set.

    The set is cut into windows of `sequence_length` (None: the model's `n_positions`), the last one shorter, so
    that every token but the first is predicted exactly once. Raises ValueError for tokens that do not fit.
    """
    length = _sequence_length(model, sequence_length)
    tokens = _checked(tokens, model.config.vocab_size, 2, "tokens to evaluate").to(model.device)
    ids, targets = tokens[:-1], tokens[1:]
    whole = len(ids) // length * length
    windows = [part[:whole].view(-1, length).split(batch_size) for part in (ids, targets)]
    batches = list(zip(*windows, strict=True)) if whole else []
    if whole < len(ids):
        batches.append((ids[None, whole:], targets[None, whole:]))  # (1, rest)
    with in_mode(model, training=False):
        total = sum(model(x, y).loss.item() * y.numel() for x, y in batches)
    return total / len(ids)


def train(
    model,
    tokens,
    config: TrainingConfig,
    *,
    validation_tokens=None,
    checkpoint_dir=None,
    resume: bool = False,
    callback=None,
    device=None,
    progress: bool = True,
) -> History:
    """Train `model` in place on (n,) token ids, on `device` (None: the best there is), and return the history.

    `callback(history)` is called after each step and returns True to stop the run. Ctrl-C stops it after the
    step it is in; a second Ctrl-C at once. With `checkpoint_dir`, checkpoints are written there every
    `save_steps` and at the end, the last two are kept, and `resume=True` goes on from the newest whole one, or
    from the beginning where there is none yet. On one machine with one number of threads, a CPU run that was
    killed and resumed ends bit-identical to one that never stopped. `steps` may grow on resuming, as long as
    the schedule gives the steps already made the same rates. To undo a bad step, one copy of weights and
    moments is held in memory.

    Started by `torchrun` or `accelerate launch`, each process takes `batch_size` sequences of its own: n processes
    make the same run as one with n times the `gradient_accumulation_steps`. Process 0 writes and shows progress.

    Raises ValueError (tokens or settings that do not fit), CheckpointError and DivergedError.
    """
    distributed.init()
    device = choose_device(device)
    run = _Run(model, _Text(model, tokens, validation_tokens, config, device), config, device)
    run.open(checkpoint_dir, resume)
    return run.go_on(callback, progress)


class _Text:
    """What a run learns from and is measured on: two rows of token ids. Fine-tuning puts dialogues in its place."""

    def __init__(self, model, tokens, validation_tokens, config: TrainingConfig, device: torch.device):
        length, vocab_size = _sequence_length(model, config.sequence_length), model.config.vocab_size
        self.config = replace(config, sequence_length=length)
        self.tokens = _checked(tokens, vocab_size, length + 1, "training tokens").to(device)
        self.validation_tokens = None
        if validation_tokens is not None:
            self.validation_tokens = _checked(validation_tokens, vocab_size, 2, "validation tokens").to(device)

    def batches(self, n_done: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the parts (ids, targets) of the batch of the step after `n_done` steps."""
        config, n_parts = self.config, self.config.gradient_accumulation_steps * distributed.world_size()
        size = config.batch_size * n_parts
        ids, targets = get_batch(self.tokens, size, config.sequence_length, config.seed, n_done)
        return list(zip(ids.chunk(n_parts), targets.chunk(n_parts), strict=True))

    def validation_loss(self, model) -> float | None:
        """Return the loss on the validation tokens, None if there are none."""
        if self.validation_tokens is None:
            return None
        length, size = self.config.sequence_length, self.config.batch_size
        return evaluate(model, self.validation_tokens, sequence_length=length, batch_size=size)

    def settings(self, model) -> dict:
        """Return what two runs must share, beside their TrainingConfig, for one to go on where the other stopped."""
        settings = {f"the model's {name}": value for name, value in asdict(model.config).items()}
        settings["sequence_length"] = self.config.sequence_length
        settings["the training tokens"] = fingerprint(self.tokens)
        settings["the validation tokens"] = fingerprint(self.validation_tokens)
        return settings


class _Run:
    """A run under way: what a step reads and changes, and what a checkpoint keeps."""

    def __init__(self, model, data: _Text, config: TrainingConfig, device: torch.device):
        self.data, self.config, self.n_tokens, self.device = data, config, 0, device
        self.model = model.to(device)
        distributed.broadcast(model.parameters())
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise ValueError("All weights of this model are frozen: call model.requires_grad_(True) first.")
        self.optimizer = build_optimizer(model, config)
        self.history = History()
        self.checkpoints: Checkpoints | None = None
        self.before_update: list[torch.Tensor] = []

    def go_on(self, callback, progress: bool) -> History:
        """Make the steps that are left, until the last one or until somebody stops the run; return the history."""
        config, history = self.config, self.history
        with in_mode(self.model, training=True), _ctrl_c() as ctrl_c, _progress_bar(self, progress) as show:
            while len(history.step) < config.steps and history.stopped is None:
                self.step()
                show()
                if _is_due(history.step[-1], config.save_steps):
                    self.checkpoint()
                if distributed.anywhere(callback is not None and bool(callback(history)), self.device):
                    history.stopped = "callback"
                if distributed.anywhere(ctrl_c.is_set(), self.device):
                    history.stopped = "interrupted"
            self.checkpoint()
        self.model.zero_grad()  # gives the memory of the gradients back
        return history

    def open(self, checkpoint_dir, resume: bool) -> None:
        """Prepare the folder of checkpoints and, on resuming, go on from the newest. Raises CheckpointError."""
        if checkpoint_dir is None:
            if resume:
                raise CheckpointError("resume=True needs the checkpoint_dir to resume from.")
            return
        self.checkpoints = Checkpoints(checkpoint_dir, self.model, self.optimizer, self._settings())
        if not resume:
            self.checkpoints.refuse_any()
        elif (state := self.checkpoints.newest()) is not None:
            self._check_schedule(state["history"]["learning_rate"])
            self.checkpoints.restore(state["step"])
            self.history = History(**state["history"])

    def _settings(self) -> dict:
        """Return what two runs must share for one to go on where the other stopped."""
        free = ("steps", "save_steps")  # the first is looked at by _check_schedule, the second changes no result
        settings = {name: value for name, value in asdict(self.config).items() if name not in free}
        return settings | self.data.settings(self.model) | {"the number of processes": distributed.world_size()}

    def _check_schedule(self, made: list[float]) -> None:
        config = self.config
        if made != [learning_rate_at(step, config) for step in range(min(len(made), config.steps))]:
            raise CheckpointError(
                f"A run of steps={config.steps} would not have made its first {len(made)} steps at the same learning "
                "rates: resume with the old number of steps, or train into another checkpoint_dir."
            )

    def step(self) -> None:
        """Make one step, evaluate when that is due, and write both into the history. Raises DivergedError."""
        config, history, n_done = self.config, self.history, len(self.history.step)
        rate = learning_rate_at(n_done, config)
        loss = self._backward(n_done)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm)
        loss, norm = torch.stack((loss, norm)).tolist()  # both at once: a GPU is waited for once
        if not math.isfinite(loss):
            self._diverge(f"loss of step {n_done + 1} is {loss}", undo=True)
        if not math.isfinite(norm):
            self._diverge(f"gradient of step {n_done + 1} has the norm {norm}", undo=False)
        self._update(rate)
        history.step.append(n_done + 1)
        history.loss.append(loss)
        history.learning_rate.append(rate)
        history.grad_norm.append(norm)
        if n_done + 1 == config.steps or _is_due(n_done + 1, config.eval_steps):
            self._evaluate()

    def _backward(self, n_done: int) -> torch.Tensor:
        """Leave the gradient of the objective over all targets of the step in the model, and return the mean loss."""
        config, batches = self.config, self.data.batches(n_done)
        counts = [int((y != -100).sum()) for _, y in batches]  # -100 marks what is not to be learned
        total = torch.zeros((), device=batches[0][0].device)
        self.model.zero_grad()
        for part in range(distributed.rank(), len(batches), distributed.world_size()):  # those of this process
            x, y = batches[part]
            # A new autocast for each pass: it keeps its bfloat16 copies of the weights, which the update makes stale.
            lower = torch.autocast(x.device.type, torch.bfloat16, enabled=config.bf16)
            with lower, _seeded(x.device, (config.seed, n_done, part)):
                output = self.model(x, y)
            wanted = objective(output, y, config.label_smoothing, config.z_loss)
            parts = sum(counts) / counts[part]  # a part counts by its targets: of n equal ones, each counts 1 / n
            (wanted / parts).backward()
            total += output.loss.detach() / parts
        self.n_tokens += sum(x.numel() for x, _ in batches)
        distributed.all_reduce(
            [total, *(parameter.grad for parameter in self.parameters if parameter.grad is not None)]
        )
        return total

    def _update(self, rate: float) -> None:
        """Let the optimizer change the weights, after keeping a copy of what it changes."""
        now = self._changing()
        if len(now) != len(self.before_update):  # the first update creates the moments
            self.before_update = [tensor.clone() for tensor in now]
        for kept, tensor in zip(self.before_update, now, strict=True):
            kept.copy_(tensor)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_factor", 1.0)
        self.optimizer.step()

    def _changing(self) -> list[torch.Tensor]:
        """Return all tensors that an update changes: the weights, then the optimizer's moments once there are any."""
        states = [self.optimizer.state.get(parameter, {}) for parameter in self.parameters]
        return [p.detach() for p in self.parameters] + [tensor for state in states for tensor in state.values()]

    def _diverge(self, what: str, undo: bool) -> None:
        """Go back to the newest weights that gave a finite loss, save them, and raise DivergedError."""
        history, n_good = self.history, len(self.history.step)
        if undo and self.before_update:
            n_good -= 1
            if len(self.before_update) == len(self.parameters):  # before the first update there were no moments
                self.optimizer.state.clear()
            for tensor, kept in zip(self._changing(), self.before_update, strict=True):
                tensor.copy_(kept)
        self.history = history.until(n_good)
        self.save()
        advice = "try a lower learning_rate, more warmup_steps or a smaller max_grad_norm"
        raise DivergedError(f"The {what}, so the weights after step {n_good} are back: {advice}.", history)

    def _evaluate(self) -> None:
        loss, history = self.data.validation_loss(self.model), self.history
        if loss is None:
            return
        if not math.isfinite(loss):
            self._diverge(f"validation loss after step {history.step[-1]} is {loss}", undo=True)
        history.eval_step.append(history.step[-1])
        history.eval_loss.append(loss)

    def checkpoint(self) -> None:
        """Save, unless the last update broke the weights, which no loss has shown yet: then raise DivergedError."""
        if self.before_update and not all(parameter.isfinite().all() for parameter in self.parameters):
            self._diverge(f"weights after step {self.history.step[-1]} are not finite", undo=True)
        self.save()

    def save(self) -> None:
        """Write a checkpoint, if the run keeps any."""
        if self.checkpoints is not None and distributed.rank() == 0:
            self.checkpoints.save(len(self.history.step), asdict(replace(self.history, stopped=None)))
        distributed.barrier()


@contextlib.contextmanager
def _ctrl_c():
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


@contextlib.contextmanager
def _progress_bar(run: _Run, progress: bool):
    """Give a function that shows the newest step: loss, tokens per second of this run, time left."""
    from tqdm.auto import tqdm  # in a notebook it imports ipywidgets

    begin, n_begin = time.perf_counter(), len(run.history.step)
    quiet = not progress or distributed.rank() > 0
    # Each change is several messages to the browser. Who reads them only when the cell has ended, as nbval does, loses
    # the last ones of a long cell, as the queue is full; so one change a second.
    options = {"mininterval": 1.0, "dynamic_ncols": True, "disable": quiet}
    with tqdm(total=run.config.steps, initial=n_begin, unit="step", **options) as bar:

        def show() -> None:
            speed = run.n_tokens / (time.perf_counter() - begin)
            bar.set_postfix_str(f"loss {run.history.loss[-1]:.3f}, {speed:,.0f} tok/s", refresh=False)
            bar.update()

        yield show


@contextlib.contextmanager
def _seeded(device: torch.device, counters: tuple[int, ...]):
    """Let dropout draw from random numbers that `counters` alone decide, and give the caller's state back."""
    backend = {"cuda": torch.cuda, "mps": torch.mps}.get(device.type, torch)
    # Not torch.manual_seed: it would seed the caller's other devices as well.
    seed = torch.default_generator.manual_seed if backend is torch else backend.manual_seed
    state = backend.get_rng_state()
    seed(int(np.random.SeedSequence(counters).generate_state(1, np.uint64)[0] >> 1))
    try:
        yield
    finally:
        backend.set_rng_state(state)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _sequence_length(model: torch.nn.Module, asked: int | None) -> int:
    longest = model.config.n_positions
    if asked is not None and not 1 <= asked <= longest:
        raise ValueError(f"sequence_length is {asked}, but this model takes from 1 to n_positions={longest} tokens.")
    return asked or longest


def _checked(tokens, vocab_size: int, least: int, name: str) -> torch.Tensor:
    """Return token ids as an int64 tensor (n,), or raise ValueError with one sentence that says what is wrong."""
    array = tokens.cpu().numpy() if isinstance(tokens, torch.Tensor) else np.asarray(tokens)
    if array.ndim != 1:
        raise ValueError(f"The {name} must be one row of token ids, as encode() gives; their shape is {array.shape}.")
    if len(array) < least:
        raise ValueError(f"The {name} are {len(array)}, but at least {least} are needed: give a longer text.")
    if array.dtype.kind not in "iu":
        raise ValueError(f"The {name} must be whole numbers, not {array.dtype}: give what encode() returns.")
    if array.min() < 0 or array.max() >= vocab_size:
        raise ValueError(
            f"The {name} go from {array.min()} to {array.max()}, but the model knows ids from 0 to {vocab_size - 1}: "
            "use the tokenizer that the model was made for."
        )
    return torch.from_numpy(array.astype(np.int64))


def fingerprint(tokens: torch.Tensor | None) -> str | None:
    """Return what tells these token ids from others, in few characters: how many there are, and their SHA-256."""
    if tokens is None:
        return None
    return f"{len(tokens)} ids, sha256 {hashlib.sha256(tokens.cpu().numpy()).hexdigest()[:16]}"
