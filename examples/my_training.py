"""Train a GPT on a text of your own: this one file serves one CPU, eight GPUs, and two machines with eight GPUs each.

    python examples/my_training.py my_text.txt out
    torchrun --nproc-per-node 8 examples/my_training.py my_text.txt out
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint node1:29500 \\
        examples/my_training.py my_text.txt out --strategy fsdp

The last command is started on both machines; node1 is the name of one of them. A run that was stopped or killed goes on
from its newest checkpoint when it is started again, on another number of processes too: each step reads `--batch-size`
windows in all, and the processes share them.
"""

from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import torch

from gptcourse import distributed
from gptcourse.config import GPT3_TABLE
from gptcourse.corpora import text_file
from gptcourse.generation import Sampling, generate
from gptcourse.model import GPT, GPTConfig
from gptcourse.tokenizers import CharTokenizer
from gptcourse.training import TrainingConfig, train

parser = ArgumentParser(description="Train a GPT on a text, in as many processes as torchrun has started.")
parser.add_argument("data", type=Path, help="a text file in UTF-8; its last tenth is held out")
parser.add_argument("out", type=Path, help="the folder for checkpoints and the finished model")
parser.add_argument("--strategy", choices=distributed.STRATEGIES, default="ddp", help="fsdp: each process holds a part")
parser.add_argument("--size", choices=("tiny", *GPT3_TABLE), default="tiny", help="tiny, or one of GPT-3's sizes")
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--batch-size", type=int, default=64, help="windows per step, of all processes together")
parser.add_argument("--micro-batch-size", type=int, default=8, help="windows per forward pass: as many as memory takes")
parser.add_argument("--learning-rate", type=float, default=2e-3)
parser.add_argument("--device", help="cuda, mps or cpu (default: the best that is here)")
parser.add_argument("--bf16", action="store_true", help="multiply matrices in bfloat16")
parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more arithmetic")


def main(arguments: list[str] | None = None) -> None:
    """Train, save and write a few words; every process that the launcher has started runs this."""
    options = parser.parse_args(arguments)
    distributed.init(options.device)
    together = options.micro_batch_size * distributed.world_size()  # windows in one pass of all processes
    if together < 1 or options.batch_size % together:
        parser.error(
            f"--batch-size is {options.batch_size}: make it a multiple of {max(together, 1)}, one pass of all "
            "processes, and --micro-batch-size 1 or more"
        )
    try:
        corpus = text_file(options.data)
    except ValueError as reason:
        parser.error(str(reason))
    tokenizer = CharTokenizer(corpus.train + corpus.validation)  # for a large text: BPETokenizer.train(texts, 32_768)
    tokens, held_out = (torch.tensor(tokenizer.encode(text)) for text in (corpus.train, corpus.validation))
    shape = GPTConfig(1, 64, 128, 4, 4) if options.size == "tiny" else GPTConfig.gpt3(options.size)
    torch.manual_seed(0)
    model = GPT(replace(shape, vocab_size=tokenizer.vocab_size))
    config = TrainingConfig(
        steps=options.steps,
        batch_size=options.micro_batch_size,
        gradient_accumulation_steps=options.batch_size // together,
        learning_rate=options.learning_rate,
        warmup_steps=options.steps // 20,
        save_steps=max(options.steps // 10, 1),
        bf16=options.bf16,
        gradient_checkpointing=options.gradient_checkpointing,
    )
    places = {"checkpoint_dir": options.out / "checkpoints", "resume": True}
    options_of_run = {"validation_tokens": held_out, "strategy": options.strategy, "device": options.device}
    history = train(model, tokens, config, **options_of_run, **places)
    state = distributed.full_state(model)  # all processes must call it: each may hold a part
    if distributed.rank() == 0:
        finish(model.config, state, tokenizer, options.out / "model")
        print(f"held-out loss {history.eval_loss[-1]:.4f} nats per token, processes {distributed.world_size()}")


def finish(config: GPTConfig, state: dict[str, torch.Tensor], tokenizer: CharTokenizer, folder: Path) -> None:
    """Put the model together, save it, and let it write."""
    model = GPT(config)
    model.load_state_dict(state)
    model.save(folder, tokenizer)
    ids = generate(model, torch.tensor([[0]]), 100, Sampling(temperature=0.8, seed=0))
    print(tokenizer.decode(ids[0].tolist()))


if __name__ == "__main__":
    main()
