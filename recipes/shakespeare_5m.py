"""Make the model that the course ships: python recipes/shakespeare_5m.py [WORK_DIRECTORY]

Trains the byte-level BPE on the plays and on support dialogues, then a GPT of about five million parameters on the
plays, and writes model, tokenizer and card into gptcourse/assets/shakespeare-5m. The held-out plays are only measured,
never trained on. The work directory (default: recipes/work, which git ignores) holds the checkpoints: started again,
the recipe goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import torch
from baselines import as_rows, measure
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from gptcourse.corpora import HELD_OUT, shakespeare, support
from gptcourse.evaluation import bits_per_byte
from gptcourse.generation import Sampling, generate
from gptcourse.model import GPT, GPTConfig
from gptcourse.tokenizers import BPETokenizer
from gptcourse.training import TrainingConfig, evaluate, train

VOCAB_SIZE = 2048
# Heads of 64 numbers, as in GPT-2. Dropout and much weight decay: each made the small trials of four epochs a little
# worse or no better, but the whole model reads the plays eight times, and without them it learns them by heart
# (shakespeare_5m_full_size.jsonl).
SHAPE = GPTConfig(vocab_size=VOCAB_SIZE, n_positions=256, n_embd=256, n_layer=6, n_head=4, dropout=0.1)
# The rate stays high until the last 2,600 steps (WSD), so that a longer run can go on from this one's checkpoints.
SETTINGS = TrainingConfig(
    steps=7000,
    batch_size=8,
    learning_rate=1.5e-3,
    weight_decay=0.5,
    adam_beta2=0.99,
    warmup_steps=200,
    lr_scheduler_type="warmup_stable_decay",
    decay_steps=2600,
    eval_steps=1000,
    save_steps=100,
)
ASSET = Path(__file__).parents[1] / "gptcourse" / "assets" / "shakespeare-5m"
WORK = Path(__file__).parent / "work" / "shakespeare-5m"
TRIALS = Path(__file__).with_name("shakespeare_5m_trials.jsonl")
FULL_SIZE = Path(__file__).with_name("shakespeare_5m_full_size.jsonl")  # whole runs of this recipe, by their settings
PROMPTS = ("HAMLET:\nTo be", "ROMEO:\nMy love", "Enter KING")
CARD = """# shakespeare-5m

A GPT-2-shaped language model for learning: {shape.num_parameters:,} parameters, {shape.n_layer} blocks,
{shape.n_embd} wide, {shape.n_head} heads, context {shape.n_positions}, {vocab_size:,} tokens. Made by
`python recipes/shakespeare_5m.py`, which goes on where it was stopped; the weights are stored in half precision.

* **Data.** Shakespeare's plays, as `gptcourse.corpora.shakespeare` fetches and cleans them: {n_tokens:,} tokens,
  read {epochs:.1f} times. Held out, and never trained on: {held_out}
  ({n_validation:,} tokens, {n_bytes:,} bytes). The tokenizer has also seen 10,000 support dialogues,
  in fewer phrasings than there are today (made again, it comes out slightly different); the model has seen none.
* **Held-out loss** of this file, over every token: {loss:.3f} nats per token, {bits_per_byte:.3f} bits per byte.
* **Limits.** It knows the words of one author of around 1600, and no facts. It writes in the shape of plays, loses
  the thread after a few lines, and may repeat what it has read. Use it to learn how such models work, and for nothing
  else.

## Against simpler models

All on the same held-out plays; the token models use the same tokens and training text
(`python recipes/baselines.py` prints the first three rows).

| predicts by | nats per token | bits per byte |
| --- | ---: | ---: |
{table}

## Training

| step | held-out loss, nats per token |
| ---: | ---: |
{curve}

| setting | value |
| --- | --- |
{settings}

Matrices were multiplied in bfloat16 while training; the losses by step are those of that arithmetic.

## What was tried

The whole run, with these settings and otherwise those above. The held-out plays chose among these three, so the
loss of the winner is a little lucky:

| dropout | weight decay | training loss, end | held-out loss at step 4000 | at step 6000 | at the end |
| ---: | ---: | ---: | ---: | ---: | ---: |
{full_size}

Without dropout the model learns the plays by heart: its training loss ends far below its held-out loss.

Before that, a smaller copy (4 blocks, 128 wide, a tenth of the text), one setting changed at a time from the trial
"start" (batch 4, rate 2e-3, cosine schedule, 4 epochs): `python recipes/tune_shakespeare_5m.py`. The trials "start",
"seed 1" and "seed 2" differ in nothing but the seed: a difference of that size means nothing.

| trial | training loss, end | held-out loss |
| --- | ---: | ---: |
{trials}

## Samples

Temperature 0.8, top-p 0.95, seed 1:

{samples}
"""


def encode_corpus(work: Path) -> tuple[BPETokenizer, torch.Tensor, torch.Tensor, int]:
    """Return the tokenizer, the tokens to train and to validate on, and the bytes of the validation text."""
    plays = shakespeare()
    if not (work / "tokenizer.json").exists():
        dialogues = [text for dialogue in support(10_000) for text in (dialogue.message, dialogue.reply)]
        BPETokenizer.train([plays.train, *dialogues], VOCAB_SIZE).save(work)
    tokenizer = BPETokenizer.load(work)
    tokens, validation = (torch.tensor(tokenizer.encode(text)) for text in (plays.train, plays.validation))
    return tokenizer, tokens, validation, len(plays.validation.encode())


def save_asset(model: GPT, tokenizer: BPETokenizer) -> None:
    """Write the tokenizer, and the model in half precision (GPT.load and transformers widen it to float32)."""
    model.save(ASSET, tokenizer)
    weights = ASSET / "model.safetensors"
    half = {name: tensor.half() for name, tensor in load_file(weights).items()}
    save_file(half, weights, metadata={"format": "pt"})


def samples(model: GPT, tokenizer: BPETokenizer) -> str:
    """Return what the model writes after each of PROMPTS, as Markdown."""
    sampling = Sampling(temperature=0.8, top_p=0.95, seed=1)
    texts = [tokenizer.decode(generate(model, tokenizer.encode(prompt), 120, sampling)) for prompt in PROMPTS]
    return "\n\n".join(f"```text\n{text}\n```" for text in texts)


def full_size_rows() -> list[str]:
    """Return the whole runs as the rows of a Markdown table."""
    rows = []
    for run in map(json.loads, FULL_SIZE.read_text().splitlines()):
        held_out = (f"{run['held_out_loss'][step]:.3f}" for step in ("4000", "6000", "7000"))
        rows.append(f"| {run['dropout']} | {run['weight_decay']} | {run['train_loss']:.3f} | {' | '.join(held_out)} |")
    return rows


def trial_rows() -> list[str]:
    """Return the trials of tune_shakespeare_5m.py as the rows of a Markdown table, the best first."""
    trials = sorted(map(json.loads, TRIALS.read_text().splitlines()), key=lambda trial: trial["held_out_loss"])
    return [f"| {trial['trial']} | {trial['train_loss']:.3f} | {trial['held_out_loss']:.3f} |" for trial in trials]


def write_card(tokenizer: BPETokenizer, n_tokens: int, n_validation: int, n_bytes: int, history, loss: float) -> str:
    """Describe the model: data, settings, held-out loss (`loss`, that of the shipped half-precision file), limits."""
    bits = bits_per_byte(loss, n_validation, n_bytes)
    epochs = SETTINGS.steps * SETTINGS.batch_size * SHAPE.n_positions / n_tokens
    curve = "\n".join(f"| {s} | {x:.3f} |" for s, x in zip(history.eval_step, history.eval_loss, strict=True))
    table = measure(tokenizer) | {"**shakespeare-5m**, this file": (loss, bits)}
    settings = "\n".join(f"| `{f.name}` | {getattr(SETTINGS, f.name)} |" for f in fields(SETTINGS))
    return CARD.format(
        shape=SHAPE,
        vocab_size=VOCAB_SIZE,
        n_tokens=n_tokens,
        epochs=epochs,
        held_out=" and ".join(HELD_OUT),
        n_validation=n_validation,
        n_bytes=n_bytes,
        loss=loss,
        bits_per_byte=bits,
        table="\n".join(as_rows(table)),
        curve=curve,
        settings=settings,
        full_size="\n".join(full_size_rows()),
        trials="\n".join(trial_rows()),
        samples=samples(GPT.load(ASSET), tokenizer),
    )


@contextlib.contextmanager
def half_precision() -> Iterator[None]:
    """Multiply matrices in bfloat16, attention's too: here this trains about twice as many tokens in a second.

    The weights stay in float32. Their copies in bfloat16 are not kept, because every step changes the weights.
    """
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # in spite of its name, for the CPU as well
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), sdpa_kernel(SDPBackend.MATH):
        yield


def main() -> None:
    """Train, or go on training, then write the asset."""
    work = Path(sys.argv[1]) if len(sys.argv) > 1 else WORK
    tokenizer, tokens, validation, n_bytes = encode_corpus(work)
    print(f"{len(tokens):,} tokens to train on, {len(validation):,} held out", flush=True)
    torch.manual_seed(SETTINGS.seed)
    model = GPT(SHAPE)
    log = work / "log.jsonl"

    def write_log(history) -> None:
        if history.step[-1] % 25 == 0:
            line = {"time": round(time.time()), "step": history.step[-1], "loss": sum(history.loss[-25:]) / 25}
            line["eval_loss"] = history.eval_loss[-1] if history.eval_loss else None
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")

    with half_precision():
        history = train(
            model,
            tokens,
            SETTINGS,
            validation_tokens=validation,
            checkpoint_dir=work / "checkpoints",
            resume=True,
            callback=write_log,
        )
    if history.stopped:
        return
    save_asset(model, tokenizer)
    loss = evaluate(GPT.load(ASSET), validation)
    card = write_card(tokenizer, len(tokens), len(validation), n_bytes, history, loss)
    (ASSET / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
