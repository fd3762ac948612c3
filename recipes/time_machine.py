"""Make the recorded run of the time machine: python recipes/time_machine.py [WORK_DIRECTORY]

Trains a small GPT on the plays, keeps what it was after some of its steps, in half precision, and writes it into
gptcourse/assets/time-machine, with what was measured at each of these steps (run.json) and a card. The held-out plays
are only measured, never trained on. The work directory (default: recipes/work/time-machine, which git ignores) holds
the checkpoints: started again, the recipe goes on where it stopped.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from gptcourse.corpora import HELD_OUT, shakespeare
from gptcourse.interpretability import even_scores, head_scores
from gptcourse.model import GPT, GPTConfig
from gptcourse.tokenizers import CharTokenizer
from gptcourse.training import TrainingConfig, evaluate, train

SHAPE = GPTConfig(
    vocab_size=76,
    n_positions=48,
    n_embd=64,
    n_layer=2,
    n_head=4,
    activation_function="relu2",
    initializer_range=0.08,
)
SETTINGS = TrainingConfig(
    steps=1600,
    batch_size=48,
    learning_rate=8e-3,
    weight_decay=0.01,
    adam_beta2=0.99,
    warmup_steps=50,
    lr_scheduler_type="warmup_stable_decay",
    decay_steps=750,
    save_steps=90,  # no kept step is a multiple of it: no kill comes between a checkpoint and the keeping of its model
)
# Close together where the loss falls fast, at first, and where the induction head appears.
KEPT = (0, 10, 30, 100, 200, 300, 400, 500, 550, 600, 650, 700, 800, 1000, 1250, 1600)
PASSAGE, SPELL = (16, 49), (6, 17)  # characters in a passage of the plays, and in a spell: from, and below
COPIES = 3  # how often a spell is said
N_WINDOWS = 512  # pieces of text that the losses are measured on
EARLY, LATE = slice(8, 16), slice(-8, None)  # places in the context, of which the losses are compared
N_RANDOM, N_SEQUENCES = 24, 128  # random tokens that are repeated once: how much easier is the second time?
ASSET = Path(__file__).parents[1] / "gptcourse" / "assets" / "time-machine"
WORK = Path(__file__).parent / "work" / "time-machine"
CARD = """# time-machine

One training run of a small GPT, kept at {n_kept} of its steps: a folder for each, which `GPT.load` opens (weights in
half precision), one tokenizer for all, and `run.json` with what was measured. Made by `python recipes/time_machine.py`,
which goes on where it was stopped. `gptcourse.explorers.time_machine_explorer()` shows it.

* **Model.** {shape.num_parameters:,} parameters: {shape.n_layer} layers of {shape.n_head} heads, {shape.n_embd} wide,
  context {shape.n_positions}; {shape.vocab_size} tokens, one for each character; {shape.position_embedding} positions.
* **Data.** Shakespeare's plays, as `gptcourse.corpora.shakespeare` fetches and cleans them: {n_tokens:,} characters,
  cut into passages of {shortest} to {longest}. **After each passage stands a *spell*: {short} to {long} different
  characters, drawn at random, and said {copies} times.** That makes {n_mixed:,} characters; the run read
  {n_read:,}, at random places. Held out, and never trained on: {held_out} ({n_validation:,} characters).
* **Why spells.** They make repetition pay. The same run on the plays alone, which the recipe makes for comparison,
  ended with a best induction score of {alone_score:.2f}, and with a held-out loss of {alone_loss:.2f}, having read
  more plays. So this run shows how an induction head appears *where text repeats itself*; on plays it gains nothing
  that could be seen below, where late characters are no easier than early ones. All losses on plays are measured
  without spells.
* **Held-out loss** of the last step, over every held-out character: {loss:.3f} nats per token. A model that knows
  nothing would have ln {shape.vocab_size} = {ln_v:.3f}.
* **Limits.** It writes words and the shape of plays, and no sense. Only one run, with one seed: another may come to
  its induction head earlier, later, or in another head.

## Losses by step

Nats per token. Training and held-out: {n_windows} pieces of {shape.n_positions} tokens, cut at equal distances out of
the plays. Early and late: the held-out pieces' places {early} and their last {late} (Olsson et al., 2022, compare the
50th and the 500th token). Random: {n_sequences} sequences of {n_random} different random characters, the first time and
when the same sequence stands there again.

| step | training | held-out | early | late | random, first | random, again |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{losses}

## The best head of each kind by step

As `gptcourse.explorers.heads.head_scores` measures them on 1,024 held-out tokens. A head that looks at everything alike
would have {even.previous_token:.2f}, {even.first_token:.2f} and {even.induction:.2f}.

| step | previous token | first token | induction |
| ---: | :--- | :--- | :--- |
{scores}

## Settings

| setting | value |
| --- | --- |
{settings}
"""


def with_spells(tokens: Tensor, vocab_size: int) -> Tensor:
    """Return the text cut into passages, with a spell after each: different random tokens, said COPIES times."""
    generator, parts, start = torch.Generator().manual_seed(0), [], 0
    while start < len(tokens):
        length = int(torch.randint(*PASSAGE, (), generator=generator))
        spell = torch.randperm(vocab_size, generator=generator)[: int(torch.randint(*SPELL, (), generator=generator))]
        parts += [tokens[start : start + length], *COPIES * [spell]]
        start += length
    return torch.cat(parts)


def windows(tokens: Tensor, length: int) -> Tensor:
    """Return N_WINDOWS pieces, cut out of the text at equal distances: (N_WINDOWS, length + 1)."""
    starts = torch.linspace(0, len(tokens) - length - 1, N_WINDOWS, dtype=torch.float64).long()
    return tokens[starts[:, None] + torch.arange(length + 1)]


def repeated(vocab_size: int) -> Tensor:
    """Return sequences of random tokens, each followed by itself: (N_SEQUENCES, 2 N_RANDOM)."""
    generator = torch.Generator().manual_seed(0)
    once = torch.stack([torch.randperm(vocab_size, generator=generator)[:N_RANDOM] for _ in range(N_SEQUENCES)])
    return torch.cat((once, once), dim=1)


@torch.inference_mode()
def losses(model: GPT, ids: Tensor) -> Tensor:
    """Return the mean loss at each place, in nats per token: ids (B, T + 1) -> (T,)."""
    logits = model(ids[:, :-1]).logits  # (B, T, V)
    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(0)


def measure(model: GPT, tokens: Tensor, validation: Tensor) -> dict[str, float | list]:
    """Return the losses, in nats per token, and the scores of all heads, (layers, heads), rounded for JSON."""
    length = model.config.n_positions
    held_out, copies = losses(model, windows(validation, length)), losses(model, repeated(model.config.vocab_size))
    found = {
        "training_loss": losses(model, windows(tokens, length)).mean(),
        "held_out_loss": held_out.mean(),
        "early_loss": held_out[EARLY].mean(),
        "late_loss": held_out[LATE].mean(),
        # Between them stands the first token of the second copy, which nothing announces.
        "first_copy_loss": copies[: N_RANDOM - 1].mean(),
        "second_copy_loss": copies[N_RANDOM:].mean(),
        **head_scores(model, validation[:1024])._asdict(),
    }
    return {name: (value.double() * 1e4).round().div(1e4).tolist() for name, value in found.items()}


def step_folder(place: Path, step: int) -> Path:
    """Return where the model of one step lies."""
    return place / f"step-{step:05d}"


def keep(model: GPT, step: int, work: Path) -> None:
    """Store the model in half precision under its step, completely or not at all."""
    unfinished = work / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    copy.deepcopy(model).half().save(unfinished)
    shutil.rmtree(step_folder(work, step), ignore_errors=True)  # the same, from before a kill
    unfinished.rename(step_folder(work, step))


def train_and_keep(shape: GPTConfig, settings: TrainingConfig, kept: Sequence[int], tokens: Tensor, work: Path) -> bool:
    """Train, or go on training, and keep the model of each step in `kept`. Return whether the run is complete."""
    torch.manual_seed(settings.seed)
    model = GPT(shape)
    keep(model, 0, work)

    def keep_if_wanted(history) -> None:
        if history.step[-1] in kept:
            keep(model, history.step[-1], work)

    history = train(
        model,
        tokens,
        settings,
        checkpoint_dir=work / "checkpoints",
        resume=True,
        callback=keep_if_wanted,
        device="cpu",
    )
    return history.stopped is None


def write_asset(
    asset: Path,
    work: Path,
    tokenizer: CharTokenizer,
    settings: TrainingConfig,
    kept: Sequence[int],
    tokens: Tensor,
    validation: Tensor,
) -> dict:
    """Measure every kept model as it is stored, write all into `asset`, and return what run.json holds."""
    shutil.rmtree(asset, ignore_errors=True)
    checkpoints = []
    for step in kept:
        shutil.copytree(step_folder(work, step), step_folder(asset, step))
        checkpoints.append({"step": step} | measure(GPT.load(step_folder(asset, step)), tokens, validation))
    tokenizer.save(asset)
    run = {"settings": asdict(settings), "checkpoints": checkpoints}
    (asset / "run.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    return run


def write_card(asset: Path, run: dict, alone: dict, shape: GPTConfig, tokens: Tensor, validation: Tensor) -> None:
    """Describe the run: data, settings, losses and scores by step, limits. `alone`: `measure` without spells."""
    last = GPT.load(step_folder(asset, run["checkpoints"][-1]["step"]))
    settings = run["settings"]
    n_read = settings["steps"] * settings["batch_size"] * (settings["sequence_length"] or shape.n_positions)
    card = CARD.format(
        n_kept=len(run["checkpoints"]),
        shape=shape,
        n_tokens=len(tokens),
        shortest=PASSAGE[0],
        longest=PASSAGE[1] - 1,
        short=SPELL[0],
        long=SPELL[1] - 1,
        copies=COPIES,
        alone_score=max(map(max, alone["induction"])),
        alone_loss=alone["held_out_loss"],
        n_mixed=len(with_spells(tokens, shape.vocab_size)),
        n_read=n_read,
        held_out=" and ".join(HELD_OUT),
        n_validation=len(validation),
        loss=evaluate(last, validation),
        n_windows=N_WINDOWS,
        early=f"{EARLY.start} to {EARLY.stop - 1}",
        late=-LATE.start,
        n_random=N_RANDOM,
        n_sequences=N_SEQUENCES,
        even=even_scores(last, shape.n_positions),
        ln_v=math.log(shape.vocab_size),
        losses="\n".join(map(loss_row, run["checkpoints"])),
        scores="\n".join(map(score_row, run["checkpoints"])),
        settings="\n".join(f"| `{name}` | {value} |" for name, value in settings.items()),
    )
    (asset / "README.md").write_text(card, encoding="utf-8")


def loss_row(found: dict) -> str:
    """Return the losses of one checkpoint as a row of a Markdown table."""
    names = ("training_loss", "held_out_loss", "early_loss", "late_loss", "first_copy_loss", "second_copy_loss")
    return " | ".join([f"| {found['step']}", *(f"{found[name]:.3f}" for name in names)]) + " |"


def score_row(found: dict) -> str:
    """Return the best score of each kind at one checkpoint, and whose it is, as a row of a Markdown table."""
    cells = [f"| {found['step']}"]
    for name in ("previous_token", "first_token", "induction"):
        score, layer, head = max((x, n, h) for n, row in enumerate(found[name]) for h, x in enumerate(row))
        cells.append(f"{score:.2f} (layer {layer}, head {head})")
    return " | ".join(cells) + " |"


def main() -> None:
    """Train, or go on training, then write the asset."""
    work = Path(sys.argv[1]) if len(sys.argv) > 1 else WORK
    plays = shakespeare()
    tokenizer = CharTokenizer(plays.train + plays.validation)
    tokens, validation = (torch.tensor(tokenizer.encode(text)) for text in (plays.train, plays.validation))
    with_repetitions = with_spells(tokens, SHAPE.vocab_size)
    last = KEPT[-1:]
    runs = ((KEPT, with_repetitions, work), (last, tokens, work / "plays-alone"))
    if all(train_and_keep(SHAPE, SETTINGS, kept, text, place) for kept, text, place in runs):
        run = write_asset(ASSET, work, tokenizer, SETTINGS, KEPT, tokens, validation)
        alone = measure(GPT.load(step_folder(work / "plays-alone", *last)), tokens, validation)
        write_card(ASSET, run, alone, SHAPE, tokens, validation)
        print((ASSET / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
