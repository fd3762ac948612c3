"""Make the model that the course ships: python recipes/shakespeare_5m.py [--work FOLDER]

Trains the byte-level BPE on the plays and on support dialogues, then a GPT of about five million parameters on the
plays, and writes model, tokenizer and card into gptcourse/assets/shakespeare-5m. The held-out plays are only measured,
never trained on. The checkpoints lie in the work folder: started again, training resumes there.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from baselines import as_rows, measure
from runner import RECIPES, Work, completed, constants, fill, run, tables
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from gptcourse.corpora import HELD_OUT, shakespeare, support
from gptcourse.evaluation import bits_per_byte
from gptcourse.files import write_file
from gptcourse.generation import Sampling, generate
from gptcourse.model import GPT, GPTConfig
from gptcourse.tokenizers import BPETokenizer
from gptcourse.training import TrainingConfig, evaluate, train

N_DIALOGUES = 10_000
SHAPE, SETTINGS = tables("shakespeare_5m", "SHAPE", "SETTINGS")
SHAPE, SETTINGS = GPTConfig(**SHAPE), TrainingConfig(**SETTINGS)
TRIALS = RECIPES / "shakespeare_5m_trials.jsonl"  # pieces of tune_shakespeare_5m.py
FULL_SIZE = RECIPES / "shakespeare_5m_full_size.jsonl"  # whole runs of this recipe, by their settings
PROMPTS = ("HAMLET:\nTo be", "ROMEO:\nMy love", "Enter KING")


def encode_corpus(folder: Path) -> tuple[BPETokenizer, torch.Tensor, torch.Tensor]:
    """Return the tokenizer, which is trained where the folder has none, and the tokens to train and to validate on."""
    plays = shakespeare()
    if not (folder / "tokenizer.json").exists():
        dialogues = [text for dialogue in support(N_DIALOGUES) for text in (dialogue.message, dialogue.reply)]
        BPETokenizer.train([plays.train, *dialogues], SHAPE.vocab_size).save(folder)
    tokenizer = BPETokenizer.load(folder)
    return tokenizer, *(torch.tensor(tokenizer.encode(text)) for text in (plays.train, plays.validation))


@contextlib.contextmanager
def half_precision() -> Iterator[None]:
    """Multiply matrices in bfloat16, attention's too: here this trains about twice as many tokens in a second.

    The weights stay in float32. Their copies in bfloat16 are not kept, because every step changes the weights.
    """
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # in spite of its name, for the CPU as well
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), sdpa_kernel(SDPBackend.MATH):
        yield


def save_asset(model: GPT, tokenizer: BPETokenizer, asset: Path) -> None:
    """Write the tokenizer, and the model in half precision (GPT.load and transformers widen it to float32)."""
    model.save(asset, tokenizer)
    weights = asset / "model.safetensors"
    half = {name: tensor.half() for name, tensor in load_file(weights).items()}
    save_file(half, weights, metadata={"format": "pt"})


def sizes(asset: Path) -> dict:
    """Return how much text there is, in tokens and in bytes."""
    _, tokens, validation = encode_corpus(asset)
    n_bytes = len(shakespeare().validation.encode())
    return {"n_tokens": len(tokens), "n_validation": len(validation), "n_bytes": n_bytes}


def measured(asset: Path) -> dict:
    """Return the numbers of the card that are measured on the shipped half-precision file, and its samples."""
    tokenizer, _, validation = encode_corpus(asset)
    model, sampling, found = GPT.load(asset), Sampling(temperature=0.8, top_p=0.95, seed=1), sizes(asset)
    loss = evaluate(model, validation)
    bits = bits_per_byte(loss, len(validation), found["n_bytes"])
    texts = [tokenizer.decode(generate(model, tokenizer.encode(prompt), 120, sampling)) for prompt in PROMPTS]
    return found | {
        "loss": loss,
        "bits_per_byte": bits,
        "table": "\n".join(as_rows(measure(tokenizer) | {"**shakespeare-5m**, this file": (loss, bits)})),
        "samples": "\n\n".join(f"```text\n{text}\n```" for text in texts),
    }


def card(numbers: dict, curve: dict[int, float]) -> str:
    """Return the card: data, settings, held-out losses, limits. `numbers` are `measured`, `curve` the loss by step."""
    full_size, trials = ([json.loads(line) for line in path.read_text().splitlines()] for path in (FULL_SIZE, TRIALS))
    trials = [trial["result"] for trial in trials]
    return fill(
        "shakespeare-5m",
        **constants(globals()),
        held_out=HELD_OUT,
        **numbers,
        curve=curve,
        full_size=full_size,
        trials=trials,
    )


def model(work: Work) -> None:
    """Train, or resume training, then write the asset and its card."""
    tokenizer, tokens, validation = encode_corpus(work.folder)
    torch.manual_seed(SETTINGS.seed)
    model = GPT(SHAPE)
    options = {"validation_tokens": validation, "checkpoint_dir": work.folder / "checkpoints", "resume": True}
    with half_precision():
        history = completed(train(model, tokens, SETTINGS, **options))
    save_asset(model, tokenizer, work.asset)
    curve = dict(zip(history.eval_step, history.eval_loss, strict=True))
    write_file(work.asset / "README.md", card(measured(work.asset), curve))


if __name__ == "__main__":
    run("shakespeare-5m", {"model": model})
