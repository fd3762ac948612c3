"""The cells of notebook 03 that show the recorded experiments, one group for each experiment.

CELLS = [(kind, id, tags, source), ...]. `recorded-load` stands before all groups and may be put anywhere above them; it
needs `import json`, `import math`, `import statistics`, `from importlib.resources import files` and
`from gptcourse.tuning import BatchTradeOff` in the imports cell. The groups use `plots` and `predict`, and are complete:
switches, batch, search, third, recipe.
"""

CELLS = []


def markdown(cell_id, source):
    CELLS.append(("markdown", cell_id, [], source.strip()))


def code(cell_id, source, *tags):
    CELLS.append(("code", cell_id, list(tags), source.strip()))


SHOWN = ("nbval-check-output", "reveal")

markdown(
    "recorded",
    """
Some experiments take longer than a notebook may. They were run once by `python recipes/tuning_experiments.py`, with this package, and their results lie in `gptcourse/assets/tuning`, with a card that has every table. Such a
cell says *recorded*: it reads the file and trains nothing. All models there are small GPTs that read the plays as characters. Their losses are in nats per character, on held-out text. Each number is the median over
three seeds; the numbers in brackets are the lowest and the highest of the three.
""",
)
code(
    "recorded-load",
    '''
def recorded(name):
    """Return an experiment that recipes/tuning_experiments.py has recorded."""
    return json.loads((files("gptcourse") / "assets" / "tuning" / f"{name}.json").read_text(encoding="utf-8"))


def losses_of(runs, **settings):
    """Return (median, lowest, highest) of the losses of all runs with these settings."""
    losses = [run["loss"] for run in runs if all(run[name] == value for name, value in settings.items())]
    return statistics.median(losses), min(losses), max(losses)
''',
)
# SWITCHES
markdown(
    "switches-question",
    """
### GPT-3's choices, switched off one at a time

**Question.** GPT-3 was trained with a warm-up, a cosine down to a tenth, β₂ = 0.95, clipping at 1 and weight decay 0.1. What does each of them protect against, and does a small model need them?

A small GPT (2 layers, 64 wide) is trained for 250 steps of 8 sequences: with all five, then with each one switched off alone. We do it twice: at a moderate rate, and at one more than ten times as high, far above the best. There the brakes should matter.
""",
)
code(
    "switches-predict",
    """
predict(
    "At the moderate rate, which of the five, switched off alone, raises the median loss most?",
    ["warm-up", "cosine decay", "β₂ = 0.95 (0.999 instead)", "clipping", "weight decay"],
    "clipping",
    "Without clipping two of the three seeds end far higher, and the third does not: a danger, "
    "not a certainty. That is why one seed is not enough.",
)
""",
)
code(
    "switches-measured",
    '''
switches = recorded("switches")
rates = list(dict.fromkeys(run["rate"] for run in switches["runs"]))
names = list(dict.fromkeys(run["switch"] for run in switches["runs"]))
print("held-out loss, median of three seeds (lowest–highest)")
print(" " * 24 + "".join(f"rate {rate:g}".rjust(22) for rate in rates))
for name in names:
    row = [losses_of(switches["runs"], switch=name, rate=rate) for rate in rates]
    print(f"{name:<24}" + "".join(f"{m:.3f} ({low:.3f}–{high:.3f})".rjust(22) for m, low, high in row))
''',
    *SHOWN,
)
code(
    "switches-figure",
    '''
curves = {}
for name in names:
    runs = [run["curve"] for run in switches["runs"] if run["switch"] == name and run["rate"] == rates[-1]]
    steps = [step for step, _ in runs[0]]
    curves[name] = (steps, [statistics.median(loss for _, loss in point) for point in zip(*runs, strict=True)])
plots.lines(
    None,
    curves,
    title=f"At a rate of {rates[-1]:g}: all choices, and each one switched off (recorded)",
    x_label="step",
    y_label="training loss (nats per character)",
)
''',
    "reveal",
)
markdown(
    "switches-text",
    """
<details><summary>After your guess: what the runs say</summary>

Compare ranges, not only medians: where the range of a row overlaps that of the first row, three seeds cannot tell them apart.

* **Clipping** at the moderate rate: the median rises most, but one seed of three ends where the others do with clipping. A rare step goes wrong, or it does not. At the high rate the ranges overlap.
* **A constant rate** is worse with every seed at both rates, a little at the moderate one: the last steps are made at full rate, and the noise stays in the weights.
* **β₂ = 0.999** and **no weight decay** are worse with every seed at the high rate only. At the moderate rate they make no difference that these runs can show.
* **No warm-up**: the ranges overlap at both rates. In so small a model, with clipping on, its absence does no visible harm. That does not mean that a large model can do without.

So most of these choices are insurance. At a good rate and at this size you do not notice them; you notice them when the rate is too high.

</details>

**What GPT-3 did.** All five, for all sizes (Brown et al. 2020, appendix B): the warm-up lasts for the first 375 million tokens, and the cosine reaches a tenth after 260 billion.
""",
)
# BATCH
markdown(
    "batch-question",
    """
### Batch size: steps against tokens

**Question.** A larger batch costs more tokens per step. How many steps does it save?

The same small GPT is trained at a constant rate until its held-out loss reaches 2.45, with batches of 2 to 64 sequences. Each batch size gets its own rate: we tried rates a factor of two apart until the best had a worse one on either side.
(With one rate for all, we would measure which batch size that rate suits.)

If doubling the batch halved the steps, the number of tokens would stay the same, and many machines could share the work for nothing. If it saved no steps, the tokens would double in vain.
""",
)
code(
    "batch-predict",
    """
predict(
    "From 2 to 64 sequences the batch grows 32 times. By how much do the steps fall?",
    ["about 32 times", "about 13 times", "about 4 times", "hardly at all"],
    "about 13 times",
    "Each of the first doublings saves more than two fifths of the steps, the last one less than a "
    "third: every doubling costs tokens, and the last one most.",
)
""",
)
code(
    "batch-measured",
    '''
batch = recorded("batch")
T = batch["model"]["n_positions"]
steps_of, rate_of = {}, {}
for size in dict.fromkeys(run["batch_size"] for run in batch["runs"]):
    runs = [run for run in batch["runs"] if run["batch_size"] == size]
    first = [run for run in runs if run["seed"] == 0 and run["steps"]]
    rate_of[size] = min(first, key=lambda run: run["steps"])["rate"]
    steps_of[size] = statistics.median(run["steps"] or math.inf for run in runs if run["rate"] == rate_of[size])

print(f"to a held-out loss of {batch['target']}, three seeds, each batch size with its best rate")
print("sequences   best rate   steps    tokens")
for size, steps in steps_of.items():
    print(f"{size:>9}{rate_of[size]:>12.2g}{steps:>8,.0f}{steps * size * T:>10,.0f}")
''',
    *SHOWN,
)
code(
    "batch-hyperbola",
    '''
tokens_of = {size * T: steps for size, steps in steps_of.items()}
fit = BatchTradeOff.fit(list(tokens_of), list(tokens_of.values()))
noise = statistics.median(scale["tokens"] for scale in batch["noise"])
height = statistics.median(steps / (1 + noise / size) for size, steps in tokens_of.items())
predicted = BatchTradeOff(height, noise)

for scale in batch["noise"]:
    measured = f"{scale['tokens']:,.0f} tokens ({scale['sequences']:.1f} sequences)"
    print(f"noise scale after {scale['step']} steps: {measured}")
measured = f"{fit.critical_batch:,.0f} tokens ({fit.critical_batch / T:.1f} sequences)"
print(f"the critical batch that fits the steps: {measured}")
''',
    *SHOWN,
)
code(
    "batch-figure",
    '''
smooth = [min(tokens_of) * 1.1**n for n in range(60) if min(tokens_of) * 1.1**n <= max(tokens_of)]
plots.lines(
    None,
    {
        "measured (recorded)": (list(tokens_of), list(tokens_of.values())),
        "the hyperbola that fits": (smooth, [fit.steps(size) for size in smooth]),
        "bend from the noise scale": (smooth, [predicted.steps(size) for size in smooth]),
    },
    title="Larger batches save steps, up to a point",
    x_label="tokens in a batch",
    y_label=f"steps to a loss of {batch['target']}",
    log_x=True,
    log_y=True,
)
''',
    "reveal",
)
markdown(
    "batch-text",
    """
<details><summary>After your guess: the hyperbola, and how far to trust the noise scale</summary>

The measured steps lie close to the hyperbola of McCandlish et al. (2018), equation 2.11: *steps = fewest steps · (1 + critical batch / batch)*. Below the critical batch you pay in steps, above it in tokens.

The **noise scale** should tell the critical batch beforehand, from gradients alone. Here it gives a hint and no more: it moves up and down by a factor of about five along the run, and its median is several times smaller than the critical batch that fits. So the
third line flattens too early: it promises too little for large batches. Two reasons come to mind, and we have tested neither. The theory is about plain SGD with the best rate at every step, and AdamW at one rate is not that; and the *simple* noise scale stands in for one that also
knows the curvature. Use it for the order of magnitude, and measure when it matters.

</details>

**Two rules for the rate.** When the batch grows $k$ times, should the rate grow $k$ times (the *linear* rule, made for SGD) or $\\sqrt{k}$ times (the *square-root* rule)? Both start here from the rate that was best for 16 sequences; one seed. A run was stopped when it had taken far more steps than the best one.
""",
)
code(
    "batch-rules",
    """
anchor, anchor_rate = batch["anchor"]
for size in (2, 4, 64):
    for rule, power in {"square root": 0.5, "linear": 1.0}.items():
        rate = anchor_rate * (size / anchor) ** power
        run = next(r for r in batch["runs"] if r["batch_size"] == size and math.isclose(r["rate"], rate, rel_tol=1e-3))
        took = f"{run['steps']:,} steps" if run["steps"] else f"not within {run['limit']:,} steps"
        print(f"{size:>2} sequences, {rule:<11} rule: rate {rate:.4f}, {took}")
""",
    *SHOWN,
)
markdown(
    "batch-rules-text",
    """
For AdamW the square-root rule is the better guess in all three places, and the rates found one by one, in the table above, follow it from 4 to 64 sequences. At 2 sequences twice its rate was best. It is a place to begin a sweep, not its result.

**What GPT-3 did.** Batches of 0.5 million tokens for its smallest model and 3.2 million for its largest (table 2.1), guided by the noise scale (section 2.3), and a batch that grows from 32,000 tokens to the full size over the first billions of tokens (appendix B).
""",
)
# SEARCH
markdown(
    "search-question",
    """
### Three searches, one budget

**Question.** You may train on so many tokens and no more. Is it better to lay a grid, to draw settings at random, or to let a program (Optuna's TPE) learn from the runs so far and stop the bad ones early?

The budget is the number of *tokens* in all runs together, not the number of runs: a run that is stopped early has cost less. The grid varies three settings (rate, batch, warm-up) and leaves the others at GPT-3's choices; the other two
also draw schedule, β₂ and weight decay. That is how these methods are used; it also means that they do not search quite the same space.
""",
)
code(
    "search-predict",
    """
predict(
    "Which search has found the lowest loss when the budget is spent?",
    ["the grid, clearly", "random search, clearly", "TPE with pruning, clearly", "no clear winner"],
    "no clear winner",
    "TPE has the lowest median, but the ranges of all three overlap: with three seeds and sixteen "
    "runs' worth of tokens, nothing is proved.",
)
""",
)
code(
    "search-measured",
    '''
searches = recorded("search")
print(f"lowest held-out loss after {searches['budget']:,} tokens, median of three seeds (lowest–highest)")
for method in ("grid", "random", "tpe"):
    runs = [run for run in searches["runs"] if run["method"] == method]
    best = [run["best"][-1] for run in runs]
    begun = ", ".join(str(len(run["tokens"])) for run in runs)
    print(f"{method:>7}: {statistics.median(best):.3f} ({min(best):.3f}–{max(best):.3f}), runs: {begun}")
''',
    *SHOWN,
)
code(
    "search-figure",
    '''
def best_at(run, tokens):
    """Return the lowest loss that a search has found when it has spent so many tokens."""
    found = [loss for spent, loss in zip(run["tokens"], run["best"], strict=True) if spent <= tokens]
    return found[-1] if found else math.nan


spent = [searches["budget"] * share / 20 for share in range(3, 21)]
curves = {}
for method in ("grid", "random", "tpe"):
    runs = [run for run in searches["runs"] if run["method"] == method]
    curves[method] = [statistics.median(best_at(run, tokens) for run in runs) for tokens in spent]
plots.lines(
    spent,
    curves,
    title="What each search has found, by the tokens it has spent (recorded)",
    x_label="tokens trained on, all runs together",
    y_label="lowest held-out loss so far",
)
''',
    "reveal",
)
markdown(
    "search-text",
    """
<details><summary>After your guess: what the searches say</summary>

TPE's median is the lowest, and yet its worst seed ends above the grid's worst: the ranges overlap, and we claim no winner. Three things can be seen, though.

* **Pruning buys runs.** For the same tokens TPE began more runs than the others.
* **The first ten runs of TPE are random ones**, and with the same seed the very runs of random search: both curves are one at first. A search so short leaves it little time to use what it has learnt.
* **Chance decides much.** One random search met its best settings in its first run.

With few runs, look at what you know first: GPT-3's choices, the range test, the square-root rule. A search is for what is left.

</details>
""",
)
# THIRD
markdown(
    "third-question",
    """
### The third dial: structure and loss

**Question.** Rate and batch are tuned. Would another *shape* with as many parameters, or another *loss* to train on, do better?

First the shape. All six have about 110,000 parameters, and each is shown with the better of two rates. Then the loss: **label smoothing** gives a small share of the target's probability to all characters, and **z-loss** keeps the sum in the softmax near 1. Both change what
is trained on. What is *reported* is the plain cross-entropy for all, or the numbers could not be compared.
""",
)
code(
    "third-predict",
    """
predict(
    "After 250 steps, which shape has the lowest held-out loss?",
    ["1 layer, 90 wide", "2 layers, 64 wide", "4 layers, 46 wide", "8 layers, 32 wide"],
    "1 layer, 90 wide",
    "So early in training, the wide and shallow one. It is a result about 250 steps: ask it again "
    "of a longer run before you build a model on it.",
)
""",
)
code(
    "third-shapes",
    '''
third = recorded("third")
print("shape                         parameters   best rate   held-out loss")
for shape in dict.fromkeys(run["shape"] for run in third["shapes"]):
    runs = [run for run in third["shapes"] if run["shape"] == shape]
    rate = min({run["rate"] for run in runs}, key=lambda rate: losses_of(runs, rate=rate))
    median, low, high = losses_of(runs, rate=rate)
    print(f"{shape:<30}{runs[0]['parameters']:>10,}{rate:>12g}   {median:.3f} ({low:.3f}–{high:.3f})")
''',
    *SHOWN,
)
code(
    "third-losses",
    '''
print("trained on               plain cross-entropy on held-out text")
for name in dict.fromkeys(run["objective"] for run in third["losses"]):
    median, low, high = losses_of(third["losses"], objective=name)
    print(f"{name:<25}{median:.3f} ({low:.3f}–{high:.3f})")
''',
    *SHOWN,
)
markdown(
    "third-text",
    """
<details><summary>After your guess: what the runs say</summary>

**Depth against width.** At equal parameters each doubling of the depth made these short runs a little worse. That is about *these* runs: 128,000 characters, too few for any of the models to get far, and two rates. (For one and two layers the better rate is the lower
of the two, so a still lower one may be better again.) **Heads.** One head, four or sixteen of them: all lie within two hundredths of a nat.

**Loss.** Label smoothing makes the plain cross-entropy worse with every seed, and more of it worse still: the model is paid for being less sure than it could be. z-loss makes no visible difference here; it was
made to keep very large runs stable (Chowdhery et al. 2022, section 5), and nothing is unstable here.

</details>

**What GPT-3 did.** It chose its shapes for its machines: depth and width so that the work divides well among GPUs, because earlier work had found the loss not very sensitive to them (section 2.1). And it trained on the plain cross-entropy.
""",
)
# RECIPE
markdown(
    "recipe-question",
    """
### The recipe to beat

**Question.** Same model, same text: how much does tuning buy?

nanoGPT comes with a recipe for a CPU, which very many people have run: 4 layers, 4 heads, 128 wide, a context of 64, batches of 12 sequences, 2,000 steps of AdamW, a warm-up of 100 steps to a rate of 1e-3, then a cosine
down to 1e-4, β₂ = 0.99, weight decay 0.1, clipping at 1, no dropout. We ran it on the plays, as characters. (Our model has biases, nanoGPT's has none; all else is the same.) Then we tried other settings that do not change the model: rate,
batch, schedule, β₂, and the size of the first random weights. (With other first weights it is still the same model: the same matrices, the same number of parameters.)

The settings were chosen on the beginning of *Macbeth*, with a seed of its own. The two runs are compared on the end of *Twelfth Night*, with three other seeds: text and seeds that no setting was chosen on.
""",
)
code(
    "recipe-predict",
    """
predict(
    "The recipe trains on 1.5 million characters. How many does the tuned run need to reach the "
    "same held-out loss?",
    ["nearly as many", "about two thirds", "less than half", "less than a tenth"],
    "less than half",
    "The cells below show it, in steps, tokens and seconds.",
)
""",
)
code(
    "recipe-measured",
    """
race = recorded("recipe")
width, batch_size = race["model"]["n_positions"], race["tuned"]["batch_size"]
goal, goal_low, goal_high = losses_of(race["recipe_runs"])
recipe_tokens = race["recipe_runs"][0]["tokens"]
print(f"the recipe: {race['recipe']['steps']:,} steps, {recipe_tokens:,} tokens, ", end="")
print(f"held-out loss {goal:.3f} ({goal_low:.3f}–{goal_high:.3f})")
budgets = sorted({run["budget"] for run in race["tuned_runs"]})
for tokens in budgets:
    median, low, high = losses_of(race["tuned_runs"], budget=tokens)
    print(f"tuned: {tokens // (width * batch_size):,} steps, {tokens:,} tokens, ", end="")
    print(f"held-out loss {median:.3f} ({low:.3f}–{high:.3f})")

enough = min(tokens for tokens in budgets if losses_of(race["tuned_runs"], budget=tokens)[0] <= goal)
steps_share = enough // (width * batch_size) / race["recipe"]["steps"]
print(f"to the recipe's loss, as a share of the recipe: steps {steps_share:.2f}, ", end="")
print(f"tokens {enough / recipe_tokens:.2f}, seconds {steps_share * race['seconds_per_step']['ratio']:.2f}")
""",
    *SHOWN,
)
code(
    "recipe-figure",
    """
curves = {}
for name, runs, tokens_per_step in (
    ("the recipe", race["recipe_runs"], width * race["recipe"]["batch_size"]),
    ("tuned", [run for run in race["tuned_runs"] if run["budget"] == enough], width * batch_size),
):
    evaluations = [run["evaluations"] for run in runs]  # one list for each seed
    seen = [step * tokens_per_step for step, _ in evaluations[0]]
    curves[name] = (seen, [statistics.median(loss for _, loss in point) for point in zip(*evaluations, strict=True)])
plots.lines(
    None,
    curves,
    title="Same model, same text: nanoGPT's CPU recipe, and tuned (recorded)",
    x_label="tokens trained on",
    y_label="held-out loss (nats per character)",
    marker="o",
    floor=(goal, "where the recipe ends"),
)
""",
    "reveal",
)
markdown(
    "recipe-trials-text",
    """
What made the difference? These are the trials by which the settings were chosen: first short ones, in which one thing at a time was changed from "start" (batch 8, rate 4e-3, straight down to zero, warm-up over the first tenth),
then three that were longer. *First weights* is the standard deviation of the random numbers that the weights start from (`initializer_range`); it is 0.02 where nothing else is said.
""",
)
code(
    "recipe-trials",
    """
for rounds in ("trials", "long_trials"):
    print(f"one seed, about {max(run['tokens'] for run in race[rounds]):,} tokens each:")
    for run in sorted(race[rounds], key=lambda run: run["loss"]):
        print(f"  {run['loss']:.3f}  {run['trial']}")
""",
    *SHOWN,
)
markdown(
    "recipe-text",
    """
<details><summary>After your guess: what the trials say</summary>

The single change that gains most is one that no learning-rate slider shows: **first weights 0.05** instead of 0.02. 0.02 is a habit from wider models, and it seems to be too small for a width of 128; 0.09 gave the gain away again.
The start itself, with its higher rate and smaller batch, beats the shortened recipe by about as much. The shapes of the schedule (cosine, straight line, WSD) lie so close together that one seed cannot tell them apart: we kept one of
them and do not claim that it is the best.

A batch of 8 instead of 12 takes more steps for the same tokens; that is why the share of steps is larger than the share of tokens. Which share counts is your choice: steps if many machines work on one step, tokens and seconds if
you have one.

</details>

`python benchmarks/tuned_against_recipe.py` runs both once more on your machine and prints the ratio again.

**What GPT-3 did.** It could not try everything on its 175 billion parameters. Its model and initialisation are GPT-2's (section 2.1), and its batch and rate follow a rule over eight sizes (table 2.1; section 2.3 says that larger models take larger batches and
smaller rates, and that the noise scale guided the choice of batch).
""",
)
