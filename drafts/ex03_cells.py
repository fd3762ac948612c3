"""The exercise cells of notebook 03, three for each exercise: task, code, folded solution.

CELLS = [(cell type, id, tags, source), ...] in the order of gptcourse.exercises.tuning.EXERCISES.
"""

CELLS = []


def exercise(slug: str, task: str, code: str, solution: str) -> None:
    """Add the three cells of one exercise; `slug` is the name of the exercise without "tuning."."""
    mistake = slug.startswith("mend_")
    kind, title = ("mistake", "The mistake") if mistake else ("exercise", "Solution")
    cell_id = f"{kind}-{slug.replace('_', '-')}"
    answer, comment = solution.strip().split("\n---\n")
    folded = f"<details><summary>{title}</summary>\n\n```python\n{answer.strip()}\n```\n\n{comment.strip()}\n\n</details>"
    CELLS.extend(
        [
            ("markdown", cell_id, [], task.strip()),
            ("code", f"{cell_id}-code", [f"{kind}:tuning.{slug}"], code.strip()),
            ("markdown", f"{cell_id}-solution", [f"solution:tuning.{slug}"], folded),
        ]
    )


exercise(
    "schedule",
    """
### Exercise: up in a line, down in a wave

Write the schedule of GPT-3: a straight warm-up, then half a cosine down to a tenth of the peak. Steps count from 0. The climb has `warmup_steps + 1` equal parts: step 0 already gets one of them, and step
`warmup_steps` is the first with the full rate. From there the rate falls along half a cosine, which reaches a tenth of the peak at step `steps`, one after the last. Beyond that it stays there.
""",
    '''
def learning_rate(step: int, peak: float, warmup_steps: int, steps: int) -> float:
    """Return the learning rate of one step of a run of `steps` steps."""
    raise NotImplementedError


check("tuning.schedule", learning_rate);
''',
    """
import math


def learning_rate(step: int, peak: float, warmup_steps: int, steps: int) -> float:
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = min((step - warmup_steps) / (steps - warmup_steps), 1.0)
    wave = (1 + math.cos(math.pi * progress)) / 2  # from 1 to 0
    return peak * (0.1 + 0.9 * wave)
---
`gptcourse.optimizers.learning_rate_at` is the same (Brown et al. 2020, appendix B). With `step / warmup_steps` the first step would have a rate of 0: it would cost as much as any other and change nothing.
""",
)

exercise(
    "decay_groups",
    """
### Exercise: who decays?

Weight decay pulls a parameter towards zero, a little at each step. In this course it pulls the matrices, the token table included, and leaves the vectors alone: biases, and the gains of the norms. Return the
decay of each parameter, in the order of `model.parameters()`: `weight_decay` for those that decay, 0 for the others.
""",
    '''
def decay_of_each(model: nn.Module, weight_decay: float) -> torch.Tensor:
    """Return one number for each parameter tensor of the model, in the order of model.parameters()."""
    raise NotImplementedError


check("tuning.decay_groups", decay_of_each);
''',
    """
import torch
from torch import nn


def decay_of_each(model: nn.Module, weight_decay: float) -> torch.Tensor:
    return torch.tensor([weight_decay if parameter.ndim >= 2 else 0.0 for parameter in model.parameters()])
---
`gptcourse.optimizers.decay_groups` sorts by the number of dimensions as well. Names mislead: the gain of a norm is called `weight` too, and a filter for the name `LayerNorm.weight` overlooks `ln_1.weight`. A
list of layer kinds overlooks the next new norm.
""",
)

exercise(
    "range_test",
    """
### Exercise: read a range test

A range test raised the rate with every step, until the loss broke. `losses[i]` was measured *before* the update with `rates[i]`. Read it in three moves:

1. Smooth the losses: at each place take the median of the last `window` losses up to and including that one (fewer at the start).
2. Find the lowest smoothed loss. The *edge* is the rate of the update that led to it.
3. Suggest half the edge.
""",
    '''
def suggested_rate(rates: list[float], losses: list[float], window: int) -> float:
    """Return half the rate of the update that led to the lowest smoothed loss."""
    raise NotImplementedError


check("tuning.range_test", suggested_rate);
''',
    """
from statistics import median


def suggested_rate(rates: list[float], losses: list[float], window: int) -> float:
    smoothed = [median(losses[max(i + 1 - window, 0) : i + 1]) for i in range(len(losses))]
    lowest = smoothed.index(min(smoothed))
    edge = rates[max(lowest - 1, 0)]
    return edge / 2
---
A median forgives one lucky or unlucky batch; a mean does not. The rate beside the lowest loss made the loss *after* it, which is already higher. Half the edge is this course's rule. Others take a tenth of the
rate at the minimum, or the rate at which the loss falls fastest: every rule only says where to begin the search.
""",
)

exercise(
    "noise_scale",
    """
### Exercise: the noise scale

The gradient of B sequences has the expected squared length |G|² + tr Σ / B: signal, plus noise that the batch averages away. You measured squared lengths on several batches: `big_norms_squared` for `big` sequences
each, and `small_norms_squared` for `small` sequences each. Take the mean of each; they give two equations. Solve them for |G|² and tr Σ, and return the noise scale tr Σ / |G|², in sequences.
""",
    '''
def noise_scale(small_norms_squared: torch.Tensor, big_norms_squared: torch.Tensor, small: int, big: int) -> float:
    """small_norms_squared (n,), big_norms_squared (n,): squared lengths, one of each for each of n batches."""
    raise NotImplementedError


check("tuning.noise_scale", noise_scale);
''',
    """
import torch


def noise_scale(small_norms_squared: torch.Tensor, big_norms_squared: torch.Tensor, small: int, big: int) -> float:
    of_small, of_big = small_norms_squared.mean().item(), big_norms_squared.mean().item()
    trace = (of_small - of_big) / (1 / small - 1 / big)
    norm_squared = (big * of_big - small * of_small) / (big - small)
    return trace / norm_squared
---
`gptcourse.tuning.noise_scale_estimates` solves the same two equations (McCandlish et al. 2018, appendix A.1). Average first, divide last: each of the two estimates is right on average, but their ratio in one
batch is not, and a mean of such ratios keeps the error.
""",
)

exercise(
    "accumulate",
    """
### Exercise: a big batch in small parts

A batch that does not fit into memory is computed in parts, whose gradients add up: *gradient accumulation*. Here the parts hold different numbers of tokens. A target of -100 marks a place without a token, which
`F.cross_entropy` leaves out by itself. Go through the parts one by one, and return the gradient of the model's weight for the mean loss of **all tokens**, exactly what one big batch would give.
""",
    '''
def accumulated_gradient(model: nn.Linear, micro_batches) -> torch.Tensor:
    """micro_batches: list of (x (n, C), y (n,)), y with -100 where there is no token -> gradient, as model.weight."""
    raise NotImplementedError


check("tuning.accumulate", accumulated_gradient);
''',
    """
import torch
import torch.nn.functional as F
from torch import nn


def accumulated_gradient(model: nn.Linear, micro_batches) -> torch.Tensor:
    n_tokens = sum((y != -100).sum() for _, y in micro_batches)
    model.zero_grad()
    for x, y in micro_batches:
        loss = F.cross_entropy(model(x), y, reduction="sum") / n_tokens
        loss.backward()  # adds to the gradient that is there
    return model.weight.grad
---
A mean of the parts' means gives the tokens of a short part more say than those of a long one. Widely used trainers did just that until 2024. With parts of equal size, as in this course's `train`, the two
are the same.
""",
)

exercise(
    "trade_off",
    """
### Exercise: steps against tokens

To reach a loss, a run needs at least S_min steps, however large its batch, and at least E_min tokens, however small. In between, steps S and tokens E lie on a hyperbola (McCandlish et al. 2018, equation 2.11):
(S / S_min − 1) · (E / E_min − 1) = 1. A run with a batch of B tokens uses E = B · S tokens. Return S and E.
""",
    '''
def steps_and_tokens(batch: int, min_steps: float, min_tokens: float) -> tuple[float, float]:
    """Return the steps S, then the tokens E, that batches of `batch` tokens take to the loss."""
    raise NotImplementedError


check("tuning.trade_off", steps_and_tokens);
''',
    """
def steps_and_tokens(batch: int, min_steps: float, min_tokens: float) -> tuple[float, float]:
    steps = min_steps + min_tokens / batch
    return steps, batch * steps
---
`gptcourse.tuning.BatchTradeOff` holds the same curve. At the critical batch E_min / S_min a run takes twice the fewest steps and twice the fewest tokens: from there, doubling the batch saves less and less time.
""",
)

exercise(
    "batch_rate",
    """
### Exercise: a larger batch, another rate

The rate was tuned at one batch size, and now the batch changes. Two rules of thumb are in use. The *linear* rule changes the rate by the same factor as the batch. The *square-root* rule changes it by the root
of that factor. Return the rate under each.
""",
    '''
def rates_for_batch(rate: float, batch: int, new_batch: int) -> tuple[float, float]:
    """Return the rate for `new_batch` under the linear rule, then under the square-root rule."""
    raise NotImplementedError


check("tuning.batch_rate", rates_for_batch);
''',
    """
import math


def rates_for_batch(rate: float, batch: int, new_batch: int) -> tuple[float, float]:
    growth = new_batch / batch
    return rate * growth, rate * math.sqrt(growth)
---
The linear rule comes from plain gradient descent (Goyal et al. 2017), the square-root rule is often used with Adam. Both are about small batches: far above the noise scale a larger batch no longer allows a larger rate.
""",
)

exercise(
    "rate_at_width",
    """
### Exercise: the rate of a wider model

You tuned the rate of a narrow model and want to train a wider one with Adam. Under muP three rules carry the rate over. The rate of the *hidden matrices* falls as one over the width. The rates of the *embeddings*,
and of *biases and gains*, stay as they are. The *output of the read-out*, the logits, is multiplied by a number that falls as one over the width. At the base width nothing changes.
""",
    '''
def rates_at_width(rate: float, base_width: int, width: int) -> tuple[float, float, float, float]:
    """rate: tuned at base_width -> rate of hidden matrices, of embeddings, of biases and gains; read-out multiplier."""
    raise NotImplementedError


check("tuning.rate_at_width", rates_at_width);
''',
    """
def rates_at_width(rate: float, base_width: int, width: int) -> tuple[float, float, float, float]:
    narrower = base_width / width
    return rate * narrower, rate, rate, narrower
---
Adam changes each entry of a matrix by about the rate, whatever its width. In a hidden matrix, and in the read-out, a sum over the width adds these changes up; an embedding is picked, a bias or a gain acts on one
number, and nothing adds up. Divide where a sum grows, and nowhere else (Yang et al. 2022, table 8). `gptcourse.optimizers.mup_groups` gives
the optimizer these rates.
""",
)

exercise(
    "mend_schedule",
    """
### Find the mistake: the rate that does not fall

The scheduler was told to fall along one cosine over the whole run, down to a tenth of the peak. At the end of the run the rate is almost where it began. *Question: how often does `scheduler.step()` run, and how
often did the scheduler expect it?*
""",
    '''
def rates_of_a_run(model: nn.Module, batches, epochs: int, peak: float) -> torch.Tensor:
    """Train for so many epochs on the pairs (x, y) in batches; return the rate of every step, in order."""
    optimizer = torch.optim.SGD(model.parameters(), lr=peak)
    total_steps = epochs * len(batches)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total_steps, eta_min=0.1 * peak)
    rates = []
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
        scheduler.step()
    return torch.tensor(rates)


torch.manual_seed(0)
examples = [(torch.randn(8, 3), torch.randn(8, 1)) for _ in range(50)]
rates = rates_of_a_run(nn.Linear(3, 1), examples, epochs=4, peak=0.1)
print(f"rate of the first step {rates[0]:.4f}, of the last {rates[-1]:.4f}")
check("tuning.mend_schedule", rates_of_a_run);
''',
    """
import torch
import torch.nn.functional as F
from torch import nn


def rates_of_a_run(model: nn.Module, batches, epochs: int, peak: float) -> torch.Tensor:
    optimizer = torch.optim.SGD(model.parameters(), lr=peak)
    total_steps = epochs * len(batches)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total_steps, eta_min=0.1 * peak)
    rates = []
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return torch.tensor(rates)
---
A scheduler does not know what a step is: it counts its own calls. Planned for 200 moves it got 4. Its unit and yours must be the same, and for language models that is the step of the optimizer: not the epoch (there is
often only one), and with accumulation not the micro-batch. To fall in `epochs` moves instead would be stairs, a whole epoch long each.
""",
)

exercise(
    "mend_decay",
    """
### Find the mistake: the gain that fades

To see what weight decay does on its own, the cell below takes 100 steps with gradients of zero. The matrices shrink, as they should. But the gain of the norm, which starts at 1, shrinks with them.
*Question: what would happen to a signal that goes through 96 such layers?*
""",
    '''
def updated(model: nn.Module, gradients, rate: float, weight_decay: float, steps: int) -> tuple[torch.Tensor, ...]:
    """Take steps of AdamW with the same gradients, one for each parameter, each time; return all parameters."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=weight_decay)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    for _ in range(steps):
        optimizer.step()
    return tuple(model.parameters())


norm = nn.LayerNorm(4)
no_gradients = [torch.zeros_like(parameter) for parameter in norm.parameters()]
gain, _ = updated(norm, no_gradients, rate=0.1, weight_decay=0.1, steps=100)
print(f"gain after 100 steps without a gradient: {gain[0]:.3f}")
check("tuning.mend_decay", updated);
''',
    """
import torch
from torch import nn


def updated(model: nn.Module, gradients, rate: float, weight_decay: float, steps: int) -> tuple[torch.Tensor, ...]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    for _ in range(steps):
        optimizer.step()
    return tuple(model.parameters())
---
Given plain `model.parameters()`, AdamW lets everything decay. A gain has no reason to be near zero, and a bias none to be small. Name the decay of *both* groups: a group that names none gets AdamW's default of 0.01, not 0.
And give the optimizer all parameters: what is in no group is never trained. `gptcourse.optimizers.decay_groups(model, weight_decay)` does all this.
""",
)

exercise(
    "mend_accumulation",
    """
### Find the mistake: four parts, sixteen times the step

A batch of 32 was cut into 4 equal parts to save memory. "Four times the batch, four times the rate", somebody thought. The step should be that of the uncut batch, and it is far longer.
*Question: which two lines each make the step four times as long?*
""",
    '''
def accumulated_step(model: nn.Linear, micro_batches, rate: float) -> torch.Tensor:
    """Take one step of gradient descent on all pairs (x, y) of equal size together; return the new weight."""
    model.zero_grad()
    for x, y in micro_batches:
        loss = F.mse_loss(model(x), y)
        loss.backward()
    with torch.no_grad():
        model.weight -= rate * len(micro_batches) * model.weight.grad
    return model.weight


torch.manual_seed(1)
x, y = torch.randn(32, 1), torch.randn(32, 1)
for n_parts in (1, 4):
    line = nn.Linear(1, 1, bias=False)
    nn.init.ones_(line.weight)
    weight = accumulated_step(line, list(zip(x.chunk(n_parts), y.chunk(n_parts), strict=True)), rate=0.01)
    print(f"in {n_parts} part(s): the weight goes from 1 to {weight.item():.4f}")
check("tuning.mend_accumulation", accumulated_step);
''',
    """
import torch
import torch.nn.functional as F
from torch import nn


def accumulated_step(model: nn.Linear, micro_batches, rate: float) -> torch.Tensor:
    model.zero_grad()
    for x, y in micro_batches:
        loss = F.mse_loss(model(x), y) / len(micro_batches)
        loss.backward()
    with torch.no_grad():
        model.weight -= rate * model.weight.grad
    return model.weight
---
Cutting a batch changes nothing but the memory: same gradient, same rate. The gradients of the parts add up, so each loss is divided by the number of parts; and the rate belongs to the whole batch, so it stays. Only if the
whole batch grows does the rate change with it. Adam hides half of this mistake, because it divides every gradient by its own size; the rate it takes as it is given.
""",
)

exercise(
    "mend_budget",
    """
### Find the mistake: the race that one runner ran for longer

Which batch size is better? Below, two runs of the same model are compared after the same number of steps, and the large batch wins clearly. *Question: how many tokens had each of them seen by then?*

Compare them at equal tokens instead: at the end of the run that saw fewer tokens in all, and at the place in the other run where it had seen just as many.
""",
    '''
def losses_compared(small_losses: torch.Tensor, small_batch: int, big_losses: torch.Tensor, big_batch: int):
    """losses[i]: the loss after i + 1 steps of so many tokens -> the loss of each run, to be compared (two floats).

    You may rely on it that the smaller number of tokens is a multiple of both batches.
    """
    steps = min(len(small_losses), len(big_losses))
    return small_losses[steps - 1].item(), big_losses[steps - 1].item()


def loss_curve(batch: int, steps: int) -> torch.Tensor:
    """A made-up curve: a step counts for more with a larger batch, up to a limit."""
    return 1.5 + 2.5 / (1 + torch.arange(1, steps + 1) / (1 + 512 / batch) / 20)


small_loss, big_loss = losses_compared(loss_curve(256, 400), 256, loss_curve(2048, 100), 2048)
print(f"batches of 256 tokens: loss {small_loss:.2f}; batches of 2048 tokens: loss {big_loss:.2f}")
check("tuning.mend_budget", losses_compared);
''',
    """
import torch


def losses_compared(small_losses: torch.Tensor, small_batch: int, big_losses: torch.Tensor, big_batch: int):
    tokens = min(len(small_losses) * small_batch, len(big_losses) * big_batch)
    return small_losses[tokens // small_batch - 1].item(), big_losses[tokens // big_batch - 1].item()
---
After 100 steps the large batch had computed eight times as much. At equal tokens, which cost about the same arithmetic, the small batch leads. (In *time* the answer may be another one: a large batch often keeps a processor busier. Say
which budget you compare at.) The same trap: comparing runs of which one has finished its schedule, and the other has not.
""",
)

exercise(
    "mend_seeds",
    """
### Find the mistake: the lucky seed

Each rate was tried with five seeds, and the rate with the lowest loss won. It had the best run of all twenty, but three of its five runs broke (their loss is infinite). *Question: what loss do you expect from
a new seed?*

Choose by the median over the seeds instead, and report that median.
""",
    '''
def best_rate(rates: torch.Tensor, losses: torch.Tensor) -> tuple[float, float]:
    """rates (R,), losses (R, 5), one row for each rate -> the chosen rate, and the loss to report."""
    of_each_rate = losses.min(dim=1).values
    best = of_each_rate.argmin()
    return rates[best].item(), of_each_rate[best].item()


tried = torch.tensor([0.001, 0.002, 0.004, 0.008])
final_losses = torch.tensor(
    [
        [2.51, 2.49, 2.50, 2.52, 2.48],
        [2.12, 2.09, 2.14, 2.10, 2.11],
        [2.03, 1.99, 2.85, 2.01, 2.02],
        [1.91, torch.inf, torch.inf, 1.94, torch.inf],
    ]
)
rate, loss = best_rate(tried, final_losses)
print(f"best rate {rate:g}, loss {loss:.2f}")
check("tuning.mend_seeds", best_rate);
''',
    """
import torch


def best_rate(rates: torch.Tensor, losses: torch.Tensor) -> tuple[float, float]:
    of_each_rate = losses.median(dim=1).values
    best = of_each_rate.argmin()
    return rates[best].item(), of_each_rate[best].item()
---
The best of many seeds rewards whatever varies most. A mean would let one unlucky run decide, and leaving out the runs that broke makes the most dangerous rate look best. With an even number of
seeds `torch.median` takes the lower of the two in the middle, so an odd number is easier to read.
""",
)

exercise(
    "mend_choice",
    """
### Find the mistake: the test that chose

Fifty runs, and the one with the lowest test loss is reported. In the cell below all fifty are equally good: on fresh text each would have a loss of 2.00, and what was measured differs by luck alone.
*Question: why is the reported loss so much lower?*
""",
    '''
def report(validation_losses: torch.Tensor, test_losses: torch.Tensor) -> tuple[int, float]:
    """validation_losses (n,), test_losses (n,), one for each run -> number of the chosen run, test loss to report."""
    best = test_losses.argmin().item()
    return best, test_losses[best].item()


torch.manual_seed(2)
run, loss = report(2.0 + 0.1 * torch.randn(50), 2.0 + 0.1 * torch.randn(50))
print(f"run {run} is chosen; reported test loss {loss:.2f}")
check("tuning.mend_choice", report);
''',
    """
import torch


def report(validation_losses: torch.Tensor, test_losses: torch.Tensor) -> tuple[int, float]:
    best = validation_losses.argmin().item()
    return best, test_losses[best].item()
---
The lowest of fifty measurements is low partly by luck, on whichever set it was found. So the set that chooses cannot also judge: validation chooses, and the test set is opened once, for the run that was chosen. A single test
loss still varies by luck, but no longer to one side. This holds for every choice: rate, batch size, stopping step, seed.
""",
)
