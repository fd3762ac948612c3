"""Make the model that the course ships: python recipes/shakespeare_5m.py [WORK_DIRECTORY]

Trains the byte-level BPE on the plays and on support dialogues, then a GPT of about five million parameters on the
plays, and writes model, tokenizer and card into gptcourse/assets/shakespeare-5m. The held-out plays are only measured,
never trained on. The work directory (default: recipes/work, which git ignores) holds the checkpoints: started again,
the recipe goes on where it stopped.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gptcourse.corpora import HELD_OUT, shakespeare, support
from gptcourse.generation import Sampling, generate
from gptcourse.model import GPT, GPTConfig
from gptcourse.tokenizers import BPETokenizer
from gptcourse.training import TrainingConfig, evaluate, train

VOCAB_SIZE = 2048
# No dropout: a text read less than twice is not learnt by heart, and dropout needs a slower attention kernel.
SHAPE = GPTConfig(vocab_size=VOCAB_SIZE, n_positions=256, n_embd=256, n_layer=6, n_head=8)
# The rate stays high until the last 1,000 steps (WSD), so that a longer run can go on from this one's checkpoints.
SETTINGS = TrainingConfig(
    steps=3000,
    batch_size=4,
    learning_rate=1.5e-3,
    warmup_steps=100,
    lr_scheduler_type="warmup_stable_decay",
    decay_steps=1000,
    eval_steps=1000,
    save_steps=100,
)
ASSET = Path(__file__).parents[1] / "gptcourse" / "assets" / "shakespeare-5m"
PROMPT = "HAMLET:\nTo be"


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


def write_card(tokenizer: BPETokenizer, n_tokens: int, n_validation: int, n_bytes: int, history, loss: float) -> str:
    """Describe the model: data, settings, held-out loss (`loss`, that of the shipped half-precision file), limits."""
    model = GPT.load(ASSET)
    ids = generate(model, tokenizer.encode(PROMPT), 120, Sampling(temperature=0.8, top_p=0.95, seed=1))
    bits_per_byte = loss / math.log(2) * n_validation / n_bytes
    epochs = SETTINGS.steps * SETTINGS.batch_size * SHAPE.n_positions / n_tokens
    curve = "\n".join(f"| {s} | {x:.3f} |" for s, x in zip(history.eval_step, history.eval_loss, strict=True))
    return f"""# shakespeare-5m

A GPT-2-shaped language model for learning: {SHAPE.num_parameters:,} parameters, {SHAPE.n_layer} blocks,
{SHAPE.n_embd} wide, {SHAPE.n_head} heads, context {SHAPE.n_positions}, {VOCAB_SIZE:,} tokens. Made by
`python recipes/shakespeare_5m.py`, with the settings that stand there; the weights are stored in half precision.

* **Data.** Shakespeare's plays, as `gptcourse.corpora.shakespeare` fetches and cleans them: {n_tokens:,} tokens,
  read {epochs:.1f} times. Held out, and never trained on: {" and ".join(HELD_OUT)}
  ({n_validation:,} tokens, {n_bytes:,} bytes). The tokenizer has also seen 10,000 support dialogues; the model has not.
* **Held-out loss** of this file, over every token: {loss:.3f} nats per token, {bits_per_byte:.3f} bits per byte.
* **Limits.** It knows the words of one author of around 1600, and no facts. It writes in the shape of plays, loses
  the thread after a few lines, and may repeat what it has read. Use it to learn how such models work, and for nothing
  else.

| step | held-out loss, nats per token |
| ---: | ---: |
{curve}

A sample (temperature 0.8, top-p 0.95, seed 1):

```text
{tokenizer.decode(ids)}
```
"""


def main() -> None:
    """Train, or go on training, then write the asset."""
    work = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "work" / "shakespeare-5m")
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

    checkpoints = work / "checkpoints"
    history = train(
        model,
        tokens,
        SETTINGS,
        validation_tokens=validation,
        checkpoint_dir=checkpoints,
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
