"""The cells of notebook 03 about the atlas, in order: CELLS = [(cell type, id, tags, source), ...].

They need these imports of the notebook's first cell:

    import numpy as np

    from gptcourse import plots
    from gptcourse.explorers import atlas_explorer, predict
    from gptcourse.explorers.atlas import TOKENS, load_atlas, power_of_two, settings_of
    from gptcourse.model import GPT3_TABLE
"""

CHECKED, REVEAL = ["nbval-check-output"], ["nbval-check-output", "reveal"]
CELLS = []


def markdown(name, text):
    CELLS.append(("markdown", f"atlas-{name}", [], text.strip()))


def code(name, tags, text):
    CELLS.append(("code", f"atlas-{name}", tags, text.strip()))


markdown(
    "text",
    """
## The atlas: every setting at once

**Question.** You have moved one setting at a time. But the best rate for one batch size is not the best for another, nor for another width. What does the whole map look like?

To draw it, someone has to walk everywhere. We did: every combination of the values below was trained, twice, with `sweep` and the same `train` as yours. `python recipes/atlas.py` records them again, and the card in
`gptcourse/assets/atlas` says how they were made and how long it took. So what follows is **recorded**; a button further down trains any of the runs again, live.

The models are tiny: two blocks, heads of 16 numbers, a context of 64 characters, a read-out matrix of its own. Every run reads the same number of tokens. So a batch twice as large makes half as many steps.
""",
)

code(
    "load",
    CHECKED,
    """
atlas = load_atlas()
print(f"{atlas.n_runs:,} runs of {TOKENS:,} tokens each")
for name, values in atlas.axes.items():
    shown = [power_of_two(value).split(" ")[0] if name == "rate" else str(value) for value in values]
    print(f"{name:>15}: {', '.join(shown)}")
print(f"a model that knows nothing has the loss ln {atlas.vocab_size} = {np.log(atlas.vocab_size):.2f}")
""",
)

markdown(
    "batch-text",
    """
### The batch

**Question.** With a fixed number of tokens to read, is it better to take many small steps or a few well-aimed ones?
""",
)

code(
    "batch-predict",
    [],
    """
predict(
    "Every run reads the same tokens, and each batch size may use the rate, the schedule and the warm-up "
    "that suit it best. Which one ends with the lowest held-out loss?",
    ["4 sequences, 96 steps", "8 sequences, 48 steps", "16 sequences, 24 steps", "32 sequences, 12 steps"],
    "4 sequences, 96 steps",
    "A larger batch aims better, but here aim is not what is missing: steps are. Twelve steps, however well "
    "aimed, do not lead as far as ninety-six.",
)
""",
)

code(
    "batch-code",
    REVEAL,
    """
for width in atlas.axes["width"]:
    print(f"width {width}, standard parametrisation:")
    for batch in atlas.axes["batch"]:
        point, loss = atlas.best(width=width, parametrisation="standard", batch=batch)
        rate, steps = power_of_two(point["rate"]), settings_of(point)["steps"]
        print(f"  batch {batch:>2}, {steps:>2} steps: loss {loss:.2f} with the rate {rate}")
""",
)

markdown(
    "batch-read",
    """
<details><summary>After your guess: the batch</summary>

At every width the smallest batch ends best, and the loss rises with each doubling. Early in training the noise scale is small (McCandlish et al. 2018 saw it grow as the loss fell), and above it a larger batch mostly repeats what
a smaller one has already said. A run on many chips pays that price on purpose: it spends tokens to save time.

Look at the rates, too. While the batch grows eight times, the best rate moves by one step of the slider at most: a factor of two. Rules of thumb would multiply it by $\\sqrt{8} \\approx 2.8$ or by 8. They speak of runs long enough for noise
to be the limit. Here the limit seems to be how large the very first steps may be (see the warm-up below), and a larger batch changes little about that.

</details>
""",
)

markdown(
    "width-text",
    """
### The width, and the parametrisation

**Question.** You found the best rate of a small model. Does a wider one want the same?
""",
)

code(
    "width-predict",
    [],
    """
predict(
    "At width 16 the best rate is about 2⁻⁶. All else stays, and the model becomes four times as wide. "
    "Where is the best rate now, under the standard parametrisation?",
    ["four times higher", "the same", "four times lower"],
    "four times lower",
    "A sum over four times as many inputs moves four times as far when each weight takes a step of the same "
    "size, as it does with AdamW. To move the outputs as far as before, the step must be a quarter.",
)
""",
)

code(
    "width-code",
    REVEAL,
    """
def best_rates(width, parametrisation):
    \"\"\"Return the best rate at each batch size, by the mean loss over schedules, warm-ups and seeds.\"\"\"
    losses = atlas.losses(width=width, parametrisation=parametrisation)  # (batch, schedule, warm-up, rate)
    return [atlas.axes["rate"][n] for n in losses.mean((1, 2)).argmin(-1)]


print("best rate with a batch of", ", ".join(map(str, atlas.axes["batch"])))
for parametrisation in atlas.axes["parametrisation"]:
    for width in atlas.axes["width"]:
        shown = [power_of_two(rate).split(" ")[0] for rate in best_rates(width, parametrisation)]
        print(f"{parametrisation:>9}, width {width}:  {'  '.join(shown)}")
for parametrisation in atlas.axes["parametrisation"]:
    _, loss = atlas.best(width=64, parametrisation=parametrisation)
    print(f"the best of all runs at width 64, {parametrisation}: loss {loss:.2f}")
""",
)

code(
    "width-figure",
    ["reveal"],
    """
curves = {}
for width, parametrisation in ((16, "standard"), (64, "standard"), (64, "muP")):
    losses = atlas.losses(width=width, parametrisation=parametrisation, batch=8, schedule="cosine")
    curves["width 16, both" if width == 16 else f"width 64, {parametrisation}"] = losses.mean(0)
plots.lines(
    atlas.axes["rate"],
    curves,
    title="muP keeps the valley where it is (batch 8, cosine)",
    x_label="learning rate",
    y_label="held-out loss (nats per token)",
    log_x=True,
    marker="o",
)
""",
)

markdown(
    "width-read",
    """
<details><summary>After your guess: the width</summary>

Under the standard parametrisation the best rate halves when the width doubles, at batches of 4, 8 and 16: 2⁻⁶, 2⁻⁷, 2⁻⁸. Under muP it stays at 2⁻⁶. (At width 16, the base width, both are the same runs. With a batch of 32 there
are only twelve steps, and its small model likes a rate twice as high.)

See also what muP does *not* do: it does not make the best model better. At width 64 the best losses of the two differ by less than two seeds do. muP keeps the valley in its place, so that you look for it where looking is cheap.

</details>

What does it cost to carry the rate of the small model over? For each batch, schedule and warm-up we take the best rate at width 16, use it at width 64, and compare with the best that width 64 can do.
""",
)

code(
    "transfer-code",
    CHECKED,
    """
small = atlas.losses(width=16, parametrisation="standard").argmin(-1)[..., None]  # the place of the best rate
for parametrisation in atlas.axes["parametrisation"]:
    losses = atlas.losses(width=64, parametrisation=parametrisation)  # (batch, schedule, warm-up, rate)
    carried = np.take_along_axis(losses, small, axis=-1)[..., 0]
    lost = carried - losses.min(-1)
    worse = (carried > atlas.losses(width=16, parametrisation="standard").min(-1)).sum()
    print(f"{parametrisation:>9}: {np.median(lost):.2f} nats lost in the median, {lost.max():.2f} at worst;", end=" ")
    print(f"worse than the small model in {worse} of {lost.size} cases")
""",
)

markdown(
    "transfer-read",
    """
Under the standard parametrisation, with the small model's rate, the wide model ends worse than the small one in every case. Whoever does not tune again would conclude that width does harm. Under muP half of the cases lose nothing at all
(to two digits), and the wide model is mostly the better one, as it should be. The cases in which it is not all have a batch of 32: twelve steps are too few for either.
""",
)

markdown(
    "warmup-text",
    """
### The warm-up

**Question.** The first tenth of the steps with a smaller rate: is that time lost, or time won?
""",
)

code(
    "warmup-predict",
    [],
    """
predict(
    "At which rates does warm-up lower the final loss of the standard model of width 64?",
    ["at low rates", "just above the best rate", "at all rates alike"],
    "just above the best rate",
    "A low rate needs no protection, and with warm-up it is lower still for a while. Just above the best "
    "rate the first steps are too large for the untrained model, and warm-up saves the run. Far above it, "
    "nothing does.",
)
""",
)

code(
    "warmup-code",
    REVEAL,
    """
for parametrisation in atlas.axes["parametrisation"]:
    without, with_it = (atlas.losses(width=64, parametrisation=parametrisation, warmup=w) for w in (0.0, 0.1))
    print(f"{parametrisation}: what a warm-up of 10 % takes off the loss at width 64, median over batch and schedule")
    for rate, gain in zip(atlas.axes["rate"], np.median(without - with_it, axis=(0, 1)), strict=True):
        print(f"  {power_of_two(rate):>15}: {gain + 0.0:+.2f}")
""",
)

markdown(
    "warmup-read",
    """
<details><summary>After your guess: warm-up</summary>

Warm-up pays one or two steps above the best rate (2⁻⁸ for the standard model, 2⁻⁶ under muP): the first steps of an untrained model are the dangerous ones. At lower rates it costs one or two
hundredths, for the steps spent below the full rate. So it is an insurance: cheap, and worth most to those who are not sure of their rate.

</details>
""",
)

markdown(
    "cost-text",
    """
### What the wrong rate costs

**Question.** Tuning takes time. What do you lose if you guess?
""",
)

code(
    "cost-code",
    CHECKED,
    """
losses = atlas.losses(width=64, parametrisation="standard").min((1, 2))  # (batch, rate): best schedule and warm-up
print("loss above the best, by how far the rate is off (width 64, standard)")
for batch, row in zip(atlas.axes["batch"], losses, strict=True):
    at = int(row.argmin())
    cost = [f"{row[at + k] - row[at]:.2f}" if 0 <= at + k < len(row) else "  – " for k in (-3, -2, -1, 0, 1, 2, 3)]
    print(f"batch {batch:>2}:  1/8 {cost[0]}  1/4 {cost[1]}  1/2 {cost[2]}  best {cost[3]}  ", end="")
    print(f"2× {cost[4]}  4× {cost[5]}  8× {cost[6]}")
spread = np.ptp(atlas.held_out, axis=-1)
print(f"the seeds of one point differ by {np.median(spread):.2f} in the median")
""",
)

markdown(
    "cost-read",
    """
A factor of two costs up to about 0.2, a factor of eight up to about 0.8: many times what another seed changes. Which side is worse depends on the number of steps. With twelve steps a rate that is too low gets nowhere; with ninety-six it
is the rate that is too high that loses more.

A rate eight times too high does not end in infinities here: not one of the runs diverged. AdamW's step is about as long as the rate says, however long the gradient is. So nothing warns you. The run looks alive, and is merely bad.
""",
)

markdown(
    "explorer-text",
    """
### Your turn

Move the sliders. Blue is the recorded run, one thin line for each seed; grey behind it is the best run of that width. On the right is the valley: the final loss at every rate, all else as your sliders say, with grey for the
best that any schedule, batch, warm-up and parametrisation reached at that rate. The button trains the chosen run now, on your machine, and lays it in orange on the recorded one.

Try these:

1. Width 64, standard: find the best rate for a batch of 4. Switch to muP without touching the rate. What happened, and which rate brings it back?
2. Warm-up off, and raise the rate until the curve has a bump. Then switch warm-up on.
3. Go to the rate 2⁻¹¹ and compare the three schedules. Do the same at the best rate, and past it.
""",
)

code("explorer", [], "atlas_explorer()")

markdown("figure-text", "The same as a plain figure, for one choice of the sliders:")

code(
    "figure",
    [],
    """
chosen = {"width": 64, "parametrisation": "standard", "batch": 8, "schedule": "cosine", "warmup": 0.0}
best, _ = atlas.best(width=64)
curves = {"best of this width": (atlas.run(best).tokens, atlas.run(best).curves.mean(0))}
for rate in (2**-11, 2**-8, 2**-6):
    run = atlas.run(chosen | {"rate": rate})
    curves[f"rate {power_of_two(rate)}"] = (run.tokens, run.curves.mean(0))
plots.lines(
    None,
    curves,
    title="Too low, right, too high (width 64, batch 8)",
    x_label="tokens read",
    y_label="training loss (nats per token)",
    floor=(np.log(atlas.vocab_size), "knows nothing"),
)
""",
)

code(
    "gpt3",
    CHECKED,
    """
for name in ("125M", "1.3B", "13B", "175B"):
    row = GPT3_TABLE[name]
    print(f"{name:>5}: width {row.d_model:>6,}, batch {row.batch_size:>9,} tokens, rate {row.learning_rate:.1e}")
first, last = GPT3_TABLE["125M"], GPT3_TABLE["175B"]
wider, lower = last.d_model / first.d_model, first.learning_rate / last.learning_rate
print(f"{wider:.0f} times as wide, with a rate {lower:.0f} times lower")
print(f"warm-up over 375 million of 300 billion tokens: {375e6 / 300e9:.2%} of the run")
""",
)

markdown(
    "gpt3-text",
    """
**What GPT-3 did.** Its rate falls as the models grow, while the batch grows (Brown et al. 2020, table 2.1): what the standard column of our table does, found by tuning. The numbers do not fall as fast as one over the width, but depth and
batch change with it, so the two are not the same experiment. The warm-up is linear over the first 375 million tokens, and the rate falls along a cosine to a tenth over 260 billion (appendix B). A tenth of a run of 24,576 tokens is a long warm-up
in comparison: ours has to fit into very few steps.
""",
)

code(
    "limits-code",
    CHECKED,
    """
wins = dict.fromkeys(atlas.axes["schedule"], 0)
for width, parametrisation in ((16, "muP"), (32, "standard"), (32, "muP"), (64, "standard"), (64, "muP")):
    for batch in atlas.axes["batch"]:
        best, _ = atlas.best(width=width, parametrisation=parametrisation, batch=batch)
        wins[best["schedule"]] += 1
print("how often each schedule belongs to the best run of a model and a batch:", wins)
""",
)

markdown(
    "limits-text",
    """
**What the atlas cannot tell you.** These runs end where a real one has hardly begun, and the constant rate wins nearly everywhere: while the loss still falls steeply, every step at a lower rate is a step given away. Do not carry that to a
long run. The same holds for the best batch and the length of the warm-up. What does carry over is the *method*: one map, made of real runs, each setting seen against the others, and the spread of the seeds as the yardstick.
""",
)
