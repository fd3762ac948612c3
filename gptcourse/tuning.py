"""How to find a learning rate and a batch size: GPT-3's choices, rules, range test, sharpness, gradient noise scale.

Every function takes any model that `train` takes, and leaves it as it was; `coordinate_check` needs GPTs.

Sources: Brown et al. (2020), GPT-3, table 2.1 and appendix B; Smith (2017), "Cyclical Learning Rates for Training
Neural Networks", section 3.3 (range test); Cohen et al. (2022), "Adaptive Gradient Methods at the Edge of Stability"
(the highest stable rate); McCandlish et al. (2018), "An Empirical Model of Large-Batch Training" (noise scale); Yang et
al. (2022), "Tensor Programs V" (coordinate check).
"""

from __future__ import annotations

import copy
import math
import statistics
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gptcourse import distributed
from gptcourse.checks import COUNT, FINITE, INSIDE, POSITIVE, POSITIVE_OR_ZERO, An, check_numbers, checked
from gptcourse.config import GPT3_TABLE, TrainingConfig, check_settings
from gptcourse.data import check_tokens, get_batch, text_batches
from gptcourse.distributed import choose_device
from gptcourse.procedure import Budget, t_interval, tune  # noqa: F401 - they belong to tuning, and are imported from here
from gptcourse.sweeps import search, sweep  # noqa: F401 - these as well
from gptcourse.training import DivergedError, History, Trainer, check_length, forward, train
from gptcourse.views import context_window, device_of, eval_view, unwrap, vocab_size_of

# ---- Experience: what GPT-3 chose. Its schedule, betas, clipping and decay are the defaults of TrainingConfig.


@checked(n_parameters=POSITIVE)
def gpt3_learning_rate(n_parameters: float) -> float:
    """Return the peak learning rate of a model with this number of parameters, after GPT-3's table 2.1.

    Log-log interpolation between rows; beyond 125M and 175B, extrapolation with the slope from the first row to the
    last (rate ∝ size^-0.32), which is a guess. Raises ValueError.
    """
    return _along_the_table(n_parameters, "learning_rate")


@checked(n_parameters=POSITIVE)
def gpt3_batch_size(n_parameters: float) -> float:
    """Return the batch size in tokens, as `gpt3_learning_rate` does; beyond the ends of the table ∝ size^0.26."""
    return _along_the_table(n_parameters, "batch_size")


def _along_the_table(n_parameters: float, column: str) -> float:
    unit, rows = {"M": 1e6, "B": 1e9}, GPT3_TABLE.values()
    sizes = np.log([float(row.n_params[:-1]) * unit[row.n_params[-1]] for row in rows])
    values = np.log([getattr(row, column) for row in rows])
    beyond = math.log(n_parameters) - np.clip(math.log(n_parameters), sizes[0], sizes[-1])
    slope = (values[-1] - values[0]) / (sizes[-1] - sizes[0])
    return math.exp(np.interp(math.log(n_parameters), sizes, values) + slope * beyond)


# ---- Rules that transfer: from the settings that were best in a small run to those of a larger one. Width: muP.


@checked(config=An(TrainingConfig), tokens=POSITIVE, depth=POSITIVE, batch_exponent=FINITE)
def transfer(
    config: TrainingConfig, *, tokens: float = 1.0, depth: float = 1.0, batch_exponent: float = 0.383
) -> TrainingConfig:
    """Return settings for a run with `tokens` times the tokens and `depth` times the layers of the run they fit.

    The batch grows ∝ tokens^batch_exponent (Bergsma et al. 2025, "Power Lines"; karpathy/nanochat,
    scripts/base_train.py), in whole sequences: see `for_horizon`, `for_batch_size` and `for_depth`. For more width,
    nothing changes under muP, see `optimizers.mup_groups`. These are predictions: in notebook 06's check the rules for
    decay and depth moved the settings too far. Raises ValueError.
    """
    batch_size = max(round(config.batch_size * tokens**batch_exponent), 1)
    return for_depth(for_batch_size(for_horizon(config, tokens), batch_size), depth)


@checked(config=An(TrainingConfig), tokens=POSITIVE)
def for_horizon(config: TrainingConfig, tokens: float) -> TrainingConfig:
    """Return settings for a run with `tokens` times the tokens, at the same batch size.

    Decay and ramp keep their share of the run, and so does `timescale`, by a smaller weight decay (Wang and Aitchison
    2024, "How to set AdamW's weight decay as you scale model and dataset size"). Warm-up keeps its number of steps, up
    to half of the run: notebook 05 has rates that fewer steps of it break. Raises ValueError.
    """
    return replace(_with_steps(config, tokens), weight_decay=config.weight_decay / tokens)


@checked(config=An(TrainingConfig), batch_size=COUNT)
def for_batch_size(config: TrainingConfig, batch_size: int) -> TrainingConfig:
    """Return settings for another batch size, and as many tokens.

    The rate grows ∝ √batch_size (Malladi et al. 2022, "On the SDEs and Scaling Rules for Adaptive Gradient
    Algorithms"), the half-life of β₂ is kept in tokens (Marek et al. 2025, "Small Batch Size Training for Language
    Models"), and `timescale` as a share of the run, by weight_decay ∝ √batch_size (nanochat). Warm-up keeps its number
    of steps, as in `for_horizon`. Raises ValueError.
    """
    ratio = batch_size / config.batch_size
    return replace(
        _with_steps(config, 1 / ratio),
        batch_size=batch_size,
        learning_rate=config.learning_rate * math.sqrt(ratio),
        weight_decay=config.weight_decay * math.sqrt(ratio),
        adam_beta2=beta2_of(half_life_of(config.adam_beta2, config.batch_size), batch_size),
    )


@checked(config=An(TrainingConfig), depth=POSITIVE)
def for_depth(config: TrainingConfig, depth: float) -> TrainingConfig:
    """Return settings for a model with `depth` times the layers: rate ∝ 1 / √depth, the same rate · weight_decay.

    Yang et al. (2023, "Tensor Programs VI") divide Adam's rate by √n_layer, and what each block adds as well; a GPT of
    this course only begins with additions divided like this. Dey et al. (2025, CompleteP) divide what is added by
    n_layer, and keep the rate. Raises ValueError.
    """
    root = math.sqrt(depth)
    return replace(config, learning_rate=config.learning_rate / root, weight_decay=config.weight_decay * root)


@checked(half_life=POSITIVE, tokens_per_step=POSITIVE)
def beta2_of(half_life: float, tokens_per_step: float) -> float:
    """Return the β₂ with which a squared gradient counts half after `half_life` tokens (Marek et al. 2025)."""
    return 0.5 ** (tokens_per_step / half_life)


@checked(beta2=INSIDE, tokens_per_step=POSITIVE)
def half_life_of(beta2: float, tokens_per_step: float) -> float:
    """Return the tokens after which a squared gradient counts half. Raises ValueError for a β₂ outside 0 to 1."""
    return tokens_per_step * math.log(0.5) / math.log(beta2)


@checked(config=An(TrainingConfig))
def timescale(config: TrainingConfig) -> float:
    """Return the share of a run that AdamW's weights average over: 1 / (rate · weight_decay · steps), at the peak.

    Weights with decay are an exponential moving average of updates (Wang and Aitchison 2024, section 2). Infinite
    without decay.
    """
    return 1 / (config.learning_rate * config.weight_decay * config.steps) if config.weight_decay else math.inf


def _with_steps(config: TrainingConfig, ratio: float) -> TrainingConfig:
    """Return settings with `ratio` times the steps; other numbers of steps are rounded down to 1 or more."""
    steps = max(round(config.steps * ratio), 1)
    parts = {name: getattr(config, name) for name in ("decay_steps", "batch_ramp_steps", "eval_steps", "save_steps")}
    warmup = min(config.warmup_steps, steps // 2)
    most = {"decay_steps": max(steps - warmup, 1), "batch_ramp_steps": steps - 1}  # all that fits into the run
    scaled = {name: n and min(max(int(n * ratio), 1), most.get(name, steps)) for name, n in parts.items()}
    return replace(config, steps=steps, warmup_steps=warmup, **scaled)


# ---- The range test


@dataclass
class RangeTest:
    """What a range test has measured, one entry a step; print it to read the result.

    As in a History, `losses[i]` is measured before the update at `rates[i]`. `smoothed[i]` is the median of the last
    losses. `broke` and `interrupted` tell why a test ended before its last step.
    """

    rates: list[float] = field(default_factory=list, repr=False)
    losses: list[float] = field(default_factory=list, repr=False)
    smoothed: list[float] = field(default_factory=list, repr=False)
    broke: bool = False
    interrupted: bool = False

    @property
    def edge(self) -> float | None:
        """The last rate that led to the lowest smoothed loss: above it the loss only rose. None if it never broke."""
        return self.rates[max(int(np.argmin(self.smoothed)) - 1, 0)] if self.broke else None

    @property
    def plateau(self) -> tuple[float, float] | None:
        """The first and the last rate that led to within 3 % of the lowest smoothed loss. None if it never broke."""
        near = np.flatnonzero(np.array(self.smoothed) <= 1.03 * min(self.smoothed))
        return (self.rates[max(near[0] - 1, 0)], self.rates[max(near[-1] - 1, 0)]) if self.broke else None

    @property
    def suggestion(self) -> float | None:
        """The first rate of the plateau: it varies less from seed to seed than the middle, or the lowest point."""
        return self.plateau[0] if self.broke else None

    def record(self, rate: float, loss: float, window: int) -> None:
        """Append one step; the loss has broken if the median of the last `window` rose by a tenth."""
        self.rates.append(rate)
        self.losses.append(loss)
        self.smoothed.append(statistics.median(self.losses[-window:]))
        self.broke = self.smoothed[-1] > 1.1 * min(self.smoothed)

    def __str__(self) -> str:
        last = f"a rate of {self.rates[-1]:.1e}"
        if self.broke:
            low, high = self.plateau
            return f"The loss was lowest from {low:.1e} to {high:.1e} and broke at {last}: try {self.suggestion:.1e}."
        if self.interrupted:
            return f"Interrupted at {last}, before the loss broke: the edge is not known."
        return f"The loss never broke, up to {last}: raise `highest` to find the edge."


def lr_range_test(
    model, tokens, config, *, lowest=1e-5, highest=10.0, callback=None, device=None, progress=True
) -> RangeTest:
    """Train a copy of `model` while the learning rate grows from `lowest` to `highest`, until the loss breaks.

    The rate grows exponentially over `config.steps` steps, whatever the rate and schedule of `config`. The loss breaks
    when a loss or gradient is not finite, or the median of the last losses (a twentieth of `config.steps`, at least 3)
    is more than a tenth above the lowest such median. Smith (2017, section 3.3) raises the rate linearly. In fewer than
    some 150 steps single batches decide the result.

    `callback(model, optimizer)` is called after each step with the copy and its AdamW. Ctrl-C stops the test and keeps
    what was measured. Raises ValueError, and DivergedError when the first loss is not finite.
    """
    if not 0 < lowest < highest < math.inf:
        raise ValueError("The rate must grow: choose lowest < highest, both above 0.")
    device, length = choose_device(device), check_length(model, config.sequence_length)
    tokens = check_tokens(tokens, vocab_size_of(model), length + 1, "training tokens").to(device)
    rates = np.geomspace(lowest, highest, config.steps).tolist()
    batches, test = text_batches(tokens, config, length, distributed.world_size()), RangeTest()
    trainer = Trainer(copy.deepcopy(unwrap(model)), batches, config, schedule=rates.__getitem__, device=device)

    def after_step(history: History) -> bool:
        test.record(history.learning_rate[-1], history.loss[-1], max(config.steps // 20, 3))
        if callback is not None and not test.broke:
            callback(trainer.model, trainer.optimizer)
        return test.broke

    try:
        test.interrupted = trainer.run(after_step, progress).stopped == "interrupted"
    except DivergedError:
        if not test.losses:
            raise
        test.broke = True
    return test


# ---- Whether the rate fits every width


def coordinate_check(make_model, widths, tokens, config, *, device=None, progress=True) -> dict[int, dict[str, float]]:
    """Return the change of the activations of a GPT of each width after `config.steps` steps of training.

    `make_model(width)` gives a new GPT. A change is the mean of |after - before| over one batch that was not trained
    on: of the outputs of "embeddings", "attention", "MLP" (mean over layers) and of the "logits". Under the standard
    parametrisation it grows with the width, under muP it does not (Yang et al. 2022, appendix D). Ctrl-C keeps the
    finished widths. Raises ValueError.
    """
    changes, device = {}, choose_device(device)
    for width in widths:
        model = make_model(width).to(device)
        length = check_length(model, config.sequence_length)
        checked = check_tokens(tokens, vocab_size_of(model), length + 1, "training tokens").to(device)
        ids, _ = get_batch(checked, config.batch_size, length, config.seed, config.steps)
        before = _activations(model, ids)
        if train(model, tokens, config, device=device, progress=progress).stopped:
            break
        pairs = {kind: zip(before[kind], after, strict=True) for kind, after in _activations(model, ids).items()}
        changes[width] = {k: statistics.fmean((a - b).abs().mean().item() for a, b in v) for k, v in pairs.items()}
    return changes


@torch.no_grad()
def _activations(model, ids: Tensor) -> dict[str, list[Tensor]]:
    """Return the outputs of the parts of a GPT for ids (B, T), a tensor for each layer that has the part."""
    seen, view = {"embeddings": [], "attention": [], "MLP": []}, eval_view(model)
    view.h[0].register_forward_pre_hook(lambda _, inputs: seen["embeddings"].append(inputs[0]))
    for block in view.h:
        block.attn.register_forward_hook(lambda _, __, output: seen["attention"].append(output[0]))
        block.mlp.register_forward_hook(lambda _, __, output: seen["MLP"].append(output))
    seen["logits"] = [view(ids).logits]
    return seen


# ---- The highest stable rate, from the curvature


def stability_limit(model, ids: Tensor, targets: Tensor, optimizer=None, *, tolerance: float = 0.01) -> float:
    """Return the highest stable learning rate of full-batch training at this curvature.

    λ is the largest eigenvalue of the Hessian of the loss on one batch, ids and targets (B, T). Without an optimizer: 2
    / λ, gradient descent's limit. With an Adam or AdamW after its first step: (2 + 2β₁) / ((1 − β₁) λ), with λ of P⁻¹H,
    P being `adam_preconditioner` (Cohen et al. 2022, section 3); under muP, before each group's factor. Exact for a
    quadratic loss and a constant P; infinite without positive curvature. Raises ValueError.
    """
    scales = None if optimizer is None else adam_preconditioner(model, optimizer)
    beta1 = 0.0 if optimizer is None else optimizer.param_groups[0]["betas"][0]
    curvature = sharpness(model, ids, targets, scales, tolerance=tolerance)
    return (2 + 2 * beta1) / ((1 - beta1) * curvature) if curvature > 0 else math.inf


def adam_preconditioner(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return P = (√v̂ + ε) / lr_factor for each trainable parameter: Adam's update is rate · averaged gradient / P.

    Raises ValueError for an optimizer without second moments, or groups whose rates differ by more than their factors.
    """
    groups, states = optimizer.param_groups, [optimizer.state.get(parameter, {}) for parameter in _trained(model)]
    rates = [group["lr"] / group.get("lr_factor", 1.0) for group in groups]
    if not all("exp_avg_sq" in state for state in states) or not math.isclose(min(rates), max(rates)):
        raise ValueError("The optimizer must be an Adam or AdamW with one rate for all, after its first step.")
    beta2, epsilon = groups[0]["betas"][1], groups[0]["eps"]
    factors = {parameter: group.get("lr_factor", 1.0) for group in groups for parameter in group["params"]}
    divisors = [(state["exp_avg_sq"] / (1 - beta2 ** state["step"])).sqrt() + epsilon for state in states]
    return [divisor / factors[parameter] for divisor, parameter in zip(divisors, _trained(model), strict=True)]


def sharpness(model: nn.Module, ids: Tensor, targets: Tensor, precondition=None, *, tolerance: float = 0.01) -> float:
    """Return the largest eigenvalue of the Hessian H of the loss on one batch, ids and targets (B, T), without dropout.

    With `precondition`, a tensor P > 0 for each trainable parameter: of P^-1/2 H P^-1/2, which has the eigenvalues of
    P⁻¹H. By Lanczos's method, up to 200 Hessian-vector products, until |Hv − λv| ≤ tolerance · |λ|: an eigenvalue is
    then at most that far away. Raises ValueError for a loss that is not finite, and when 200 products are not enough.
    """
    product = _hessian_product(eval_view(model), ids, targets, precondition)
    sizes = [parameter.numel() for parameter in _trained(model)]
    v = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(0)).to(_trained(model)[0])
    v, before, beta = v / v.norm(), torch.zeros_like(v), 0.0
    diagonal, beside = [], []  # of H in the basis of the v's: each product reaches one new direction only
    for _ in range(200):
        Hv = product(v) - beta * before
        diagonal.append((Hv @ v).item())
        rest = Hv - diagonal[-1] * v
        beta = rest.norm().item()
        values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, -1))  # reads the lower triangle
        if beta * abs(vectors[-1, -1]) <= tolerance * abs(values[-1]):
            return float(values[-1])
        before, v = v, rest / beta
        beside.append(beta)
    raise ValueError("The largest eigenvalue has not settled after 200 products: raise the tolerance.")


def _hessian_product(model, ids, targets, precondition):
    """Return the function v → Hv, or P^-1/2 H P^-1/2 v, on flat vectors (number of trainable parameters,)."""
    parameters = _trained(model)
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels can be differentiated once only
        loss = forward(model, ids, targets).loss
    if not loss.isfinite():
        raise ValueError(f"The loss on this batch is {loss.item()}: there is no curvature to measure.")
    gradient = _flat_gradient(loss, parameters, create_graph=True)
    scale = 1.0 if precondition is None else torch.cat([p.flatten() for p in precondition]).rsqrt()
    return lambda v: scale * _flat_gradient(gradient, parameters, grad_outputs=scale * v, retain_graph=True)


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _flat_gradient(output: Tensor, parameters: list[nn.Parameter], **options) -> Tensor:
    parts = torch.autograd.grad(output, parameters, materialize_grads=True, **options)
    return torch.cat([part.flatten() for part in parts])


# ---- The gradient's noise, and what it says about the batch


@dataclass(frozen=True)
class NoiseScale:
    """The simple noise scale tr Σ / |G|²: G is the mean gradient, Σ the covariance of one sequence's gradient.

    `sequences` and `tokens` are that ratio in two units; `standard_error` is the uncertainty of `sequences`.
    """

    gradient_norm_squared: float
    trace: float
    sequences: float
    tokens: float
    standard_error: float


def gradient_noise_scale(model, tokens, *, small=4, big=64, n_batches=8, seed=0, progress=True) -> NoiseScale:
    """Measure the noise scale at the current weights, on (n,) token ids: McCandlish et al. (2018), appendix A.1.

    For `n_batches` batches of `big` sequences, the squared gradient norm is compared with that of their parts of
    `small` sequences. Both estimates are averaged over batches before they are divided, as the ratio of one batch is
    biased; the standard error is the jackknife's. Without dropout.

    Raises ValueError for sizes or batches that leave nothing to compare, a zero gradient, or one hidden by its noise.
    """
    sizes = {"small": small, "big": big, "n_batches": n_batches}
    small, big, n_batches = (COUNT(name, size) for name, size in sizes.items())
    if big <= small or big % small:
        raise ValueError(f"Noise shows between two batch sizes: big must be 2, 3, … times small, not {big} to {small}.")
    if n_batches < 2:
        raise ValueError(f"n_batches is {n_batches}, but the spread needs 2 or more: with few samples chance decides.")
    from tqdm.auto import tqdm

    length, view, found = context_window(model), eval_view(model), []
    tokens = check_tokens(tokens, vocab_size_of(model), length + 1, "tokens to measure on").to(device_of(model))
    for step in tqdm(range(n_batches), unit="batch", disable=not progress, dynamic_ncols=True):
        norms = _squared_norms(view, *get_batch(tokens, big, length, seed, step), small)
        found.append(noise_scale_estimates(*norms, small, big))
    found = np.array(found)  # (n_batches, 2)
    norm_squared, trace = found.mean(0).tolist()
    if not found.any():
        raise ValueError("Every gradient is zero, and a noise scale compares noise with a gradient: there is none.")
    if not norm_squared > 0:
        raise ValueError(f"The noise hides the gradient (|G|² is estimated as {norm_squared:.1e}): raise big.")
    without_one = (found.sum(0) - found).T  # the ratio of the sums is the ratio of the means
    error = math.sqrt((n_batches - 1) * np.var(without_one[1] / without_one[0]))
    return NoiseScale(norm_squared, trace, trace / norm_squared, trace / norm_squared * length, error)


@checked(small_norm=POSITIVE_OR_ZERO, big_norm=POSITIVE_OR_ZERO, small=COUNT, big=COUNT)
def noise_scale_estimates(small_norm: float, big_norm: float, small: int, big: int) -> tuple[float, float]:
    """Return unbiased estimates (|G|², tr Σ) from the mean squared gradient norms of two batch sizes.

    For B samples the expectation is |G|² + tr Σ / B: two sizes, two equations (McCandlish et al. 2018, appendix A.1).
    Raises ValueError.
    """
    if big <= small:
        raise ValueError(f"big is {big}, but it must be above small, which is {small}.")
    norm_squared = (big * big_norm - small * small_norm) / (big - small)
    return norm_squared, (small_norm - big_norm) / (1 / small - 1 / big)


def _squared_norms(model, ids: Tensor, targets: Tensor, small: int) -> tuple[float, float]:
    """Return the squared gradient norm: the mean over parts of `small` sequences, and of all together."""
    norms, total, parameters = [], 0.0, _trained(model)
    for x, y in zip(ids.split(small), targets.split(small), strict=True):
        gradient = _flat_gradient(forward(model, x, y).loss, parameters)
        norms.append((gradient @ gradient).item())
        total = total + gradient / (len(ids) // small)
    return statistics.fmean(norms), (total @ total).item()


@dataclass(frozen=True)
class BatchTradeOff:
    """Steps and tokens to one loss, by batch size: a hyperbola (McCandlish et al. 2018, section 2.3, equation 2.11).

    `min_steps` is the limit for large batches. At the `critical_batch`, in tokens, a run takes twice the fewest steps
    and twice the fewest tokens possible.
    """

    min_steps: float
    critical_batch: float

    def __post_init__(self):
        check_settings(self)

    @property
    def min_tokens(self) -> float:
        """Tokens in the limit of small batches."""
        return self.min_steps * self.critical_batch

    @checked(batch=POSITIVE)
    def steps(self, batch: float) -> float:
        """Return the steps with batches of `batch` tokens."""
        return self.min_steps * (1 + self.critical_batch / batch)

    @checked(batch=POSITIVE)
    def tokens(self, batch: float) -> float:
        """Return the tokens with batches of `batch` tokens."""
        return self.min_tokens * (1 + batch / self.critical_batch)

    @classmethod
    @checked()
    def fit(cls, batches, steps) -> BatchTradeOff:
        """Return the hyperbola that fits the measured steps of each batch size: least squares of the ratio.

        Raises ValueError for fewer than two batch sizes, and where more batch did not save steps.
        """
        batches, steps = (check_numbers("batches and steps", part, 1e-6, 1e15).tolist() for part in (batches, steps))
        if len(set(batches)) < 2 or len(batches) != len(steps):
            raise ValueError("A hyperbola needs steps for each of two or more different batch sizes.")
        terms = [[1 / s, 1 / (b * s)] for b, s in zip(batches, steps, strict=True)]  # · (S_min, E_min): should be 1
        min_steps, min_tokens = np.linalg.lstsq(np.array(terms), np.ones(len(terms)), rcond=None)[0].tolist()
        if not (min_steps > 0 and min_tokens > 0):
            raise ValueError("These steps lie on no such hyperbola: with the batch, steps must fall and tokens grow.")
        return cls(min_steps, min_tokens / min_steps)
