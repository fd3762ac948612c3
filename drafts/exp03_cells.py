"""The cells of notebook 03 that show the recorded experiments, one group for each experiment.

CELLS = [(kind, id, tags, source), ...]. `recorded-load` stands before all groups and may be put anywhere above them; it
needs `import json`, `import statistics` and `from importlib.resources import files` in the imports cell. The groups
use `plots` and `predict`.
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
    curves[name] = (steps, [statistics.median(losses) for losses in zip(*([y for _, y in run] for run in runs))])
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
# BATCH
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
    print(f"noise scale after {scale['step']:>5,} steps: {scale['tokens']:>6,.0f} tokens ({scale['sequences']:.1f} sequences)")
print(f"critical batch that fits the measured steps: {fit.critical_batch:,.0f} tokens ({fit.critical_batch / T:.1f} sequences)")
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
# SEARCH
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
    return min((loss for spent, loss in zip(run["tokens"], run["best"]) if spent <= tokens and loss), default=math.nan)


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
# THIRD
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
# RECIPE
markdown(
    "recipe-question",
    """
### The recipe to beat

**Question.** Same model, same text: how much does tuning buy?

nanoGPT comes with a recipe for a CPU, which very many people have run: 4 layers, 4 heads, 128 wide, a context of 64, batches of 12 sequences, 2,000 steps of AdamW, a warm-up of 100 steps to a rate of 1e-3, then a cosine
down to 1e-4, β₂ = 0.99, weight decay 0.1, clipping at 1, no dropout. We ran it on the plays, as characters. (Our model has biases, nanoGPT's has none; all else is the same.) Then we tuned everything that does not change the model: rate,
batch, schedule, β₂, and the size of the first random weights.

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

The largest step is one that no learning-rate slider shows: **first weights 0.05** instead of 0.02. A width of 128 is small; 0.02 is a habit from wider models, and with it a narrow model begins so near to zero that it spends
its first hundreds of steps growing its weights. Next come the higher rate and the smaller batch. The shapes of the schedule (cosine, straight line, WSD) lie so close together that one seed cannot tell them apart: we kept one of
them and do not claim that it is the best.

A batch of 8 instead of 12 takes more steps for the same tokens; that is why the share of steps is larger than the share of tokens. Which share counts is your choice: steps if many machines work on one step, tokens and seconds if
you have one.

</details>

`python benchmarks/tuned_against_recipe.py` runs both once more on your machine and prints the ratio again.

**What GPT-3 did.** It could not try everything on its 175 billion parameters. Its model and initialisation are GPT-2's (section 2.1), and its batch and rate follow a rule over eight sizes (table 2.1; section 2.3 says that larger models take larger batches and
smaller rates, and that the noise scale guided the choice of batch).
""",
)
