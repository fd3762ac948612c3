"""Fine-tuning: go on training a finished model, on dialogues, and learn from the replies alone.

Everything that is learned from is an *example*: token ids, and for each the target that should follow it, or -100
where nothing is to be learned. `encode_dialogue` makes one of a dialogue, `text_examples` of plain text, `pack` of
several. All functions take our GPT and the causal language models of transformers.

Sources: Ouyang et al. (2022), InstructGPT (fine-tuning on demonstrations); Brown et al. (2020), GPT-3, appendix B
(packing); Hu et al. (2021), LoRA, section 4.1; Rolnick et al. (2019), "Experience Replay for Continual Learning".
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from gptcourse import distributed, training
from gptcourse.generation import Sampling, context_window, generate
from gptcourse.model import GPT, GPTOutput, in_mode
from gptcourse.support import Dialogue
from gptcourse.tokenizers import CHAT_TOKENS
from gptcourse.training import History, TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Example: TypeAlias = tuple[list[int], list[int]]
IGNORED = -100  # what F.cross_entropy leaves out
PLACE = "\ue000"  # holds the place of a text while a chat template is filled: no language has this character
GREEDY = Sampling(temperature=0)
WEIGHTS_FILE = "model.safetensors"


# ---- Examples: dialogues as tokens


def encode_dialogue(tokenizer, message: str, reply: str) -> Example:
    """Return (ids, targets) of `<|user|>message<|assistant|>reply<|end|>`, or of what the chat template makes of it.

    The end is part of the reply, or the model would never learn to stop; outside the reply the targets are -100. What
    people type stays plain text: reserved tokens come from the format alone. Raises ValueError for a tokenizer without
    a chat format.
    """
    prompt, answer = _chat_ids(tokenizer, message, reply)
    return prompt + answer, [IGNORED] * (len(prompt) - 1) + answer + [IGNORED]


def encode_dialogues(tokenizer, dialogues: Iterable[Dialogue | tuple[str, str]]) -> list[Example]:
    """Return an example for each dialogue; a pair (message, reply) will do for one."""
    pairs = [(d.message, d.reply) if isinstance(d, Dialogue) else d for d in dialogues]
    return [encode_dialogue(tokenizer, message, reply) for message, reply in pairs]


def encode_labelled(tokenizer, pairs: Iterable[tuple[str, str]], template: str = "{text}\n{label}") -> list[Example]:
    """Return an example for each pair (text, label), of which the label and the end of its line are learned.

    The template is that of `evaluation.few_shot`: it ends with {label}, and what stands before is the prompt.
    """
    ask, examples = template.removesuffix("{label}"), []
    for text, label in pairs:
        prompt, answer = tokenizer.encode(ask.format(text=text)), tokenizer.encode(f"{label}\n")
        examples.append(((prompt + answer)[:-1], [IGNORED] * (len(prompt) - 1) + answer))
    return examples


def chat_prompt(tokenizer, message: str, earlier: Iterable[tuple[str, str]] = ()) -> list[int]:
    """Return the ids after which the reply to `message` begins; `earlier` are the (message, reply) said before it.

    Raises ValueError like `encode_dialogue`.
    """
    return _chat_ids(tokenizer, message, "", earlier)[0]


def eos_id(tokenizer) -> int:
    """Return the token that ends a reply: the `eos_token_id` for `generate` and `stream`."""
    return tokenizer.token_id(CHAT_TOKENS[-1]) if hasattr(tokenizer, "token_id") else tokenizer.eos_token_id


def _chat_ids(tokenizer, message, reply, earlier=()):
    """Return the ids of all that comes before the reply, and those of the reply with its end."""
    if hasattr(tokenizer, "token_id"):
        user, assistant, end = map(tokenizer.token_id, CHAT_TOKENS)
        before = [token for pair in earlier for token in chain(*_chat_ids(tokenizer, *pair))]
        return [*before, user, *tokenizer.encode(message), assistant], [*tokenizer.encode(reply), end]
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"This tokenizer has no chat format: take a BPETokenizer, which reserves {', '.join(CHAT_TOKENS)}, or one "
            "of transformers that has a chat_template."
        )
    texts = [*chain(*earlier), message, reply]
    chat = [{"role": ("user", "assistant")[i % 2], "content": PLACE} for i in range(len(texts))]
    frame = tokenizer.apply_chat_template(chat, tokenize=False).split(PLACE)
    *frame, end = (tokenizer(text, add_special_tokens=False).input_ids for text in frame)
    plain = {"add_special_tokens": False, "split_special_tokens": True}
    *texts, reply = (tokenizer(text, **plain).input_ids for text in texts)
    before = [token for piece in zip(frame, [*texts, []], strict=True) for token in chain(*piece)]
    return before, reply + end[: end.index(tokenizer.eos_token_id) + 1]


def text_examples(tokens, n: int, length: int, seed: int = 0) -> list[Example]:
    """Return n pieces of plain text, every token of which is learned: mixed with dialogues, they keep it in memory."""
    tokens = training._checked(tokens, math.inf, length + 1, "tokens to cut from")
    ids, targets = training.get_batch(tokens, n, length, seed, 0)
    return list(zip(ids.tolist(), targets.tolist(), strict=True))


def pack(examples: Iterable[Example], length: int) -> list[Example]:
    """Put several examples into one, each into the first of up to `length` tokens that has room for it.

    Attention crosses from a dialogue into those before it in its row. GPT-3 was trained in this way (Brown et al. 2020,
    appendix B): the end token says that what stands before has no bearing any more, and the model learns to heed it.
    """
    rows: list[Example] = []
    for ids, targets in examples:
        row = next(
            (row for row in rows[-100:] if len(row[0]) + len(ids) <= length), None
        )  # older ones are all but full
        if row is None:
            rows.append(row := ([], []))
        row[0].extend(ids)
        row[1].extend(targets)
    return rows


def pad(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Return ids and targets (B, T), filled up on the right: no token looks to its right, so no mask is needed."""
    ids, targets = ([torch.tensor(row) for row in part] for part in zip(*examples, strict=True))
    return pad_sequence(ids, batch_first=True), pad_sequence(targets, batch_first=True, padding_value=IGNORED)


def count_targets(examples: Iterable[Example]) -> int:
    """Return how many tokens are learned from."""
    return sum(target != IGNORED for _, targets in examples for target in targets)


# ---- Tokens that pretraining never met


@torch.no_grad()
def reinit_embeddings(model: GPT | PreTrainedModel, tokens: Sequence[int], seed: int = 0) -> None:
    """Give these tokens fresh embeddings, each of its own: the mean of all others, and noise as wide as they spread.

    A tied table pushes the tokens that never occur in one direction, step after step, until they are all alike; nothing
    can be copied then. The same start serves tokens that are added: Hewitt (2021), "Initializing New Word Embeddings
    for Pretrained Language Models". Raises ValueError for a token outside the vocabulary, and if no other is left.
    """
    table = (model.wte if isinstance(model, GPT) else model.get_input_embeddings()).weight  # (V, C)
    if not all(0 <= token < len(table) for token in tokens) or len(set(tokens)) >= len(table):
        raise ValueError(f"tokens must be ids from 0 to {len(table) - 1}, and leave some that are kept as they are.")
    renewed = torch.zeros(len(table), dtype=torch.bool)
    renewed[list(tokens)] = True
    others = table[~renewed]
    noise = torch.randn(int(renewed.sum()), table.shape[1], generator=torch.Generator().manual_seed(seed))
    table[renewed] = others.mean(0) + others.std() * noise.to(table)


# ---- Which weights learn, and how


def without_dropout(model: GPT) -> GPT:
    """Return a copy of the model that is trained without dropout.

    Dropout slows learning by heart. In a short fine-tuning hardly an example is seen twice, and it slows learning only.
    """
    copy = GPT(replace(model.config, dropout=0.0)).to(model.device)
    copy.load_state_dict(model.state_dict())
    return copy


def freeze_all_but_last(model: GPT | PreTrainedModel, n_layers: int) -> None:
    """Let only the last `n_layers` blocks learn. Raises ValueError if there are not so many."""
    blocks = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    if not 1 <= n_layers <= len(blocks):
        raise ValueError(f"n_layers is {n_layers}, but this model has {len(blocks)} blocks: choose 1 to {len(blocks)}.")
    model.requires_grad_(False)
    blocks[-n_layers:].requires_grad_(True)


class LoRALinear(nn.Module):
    """A frozen linear map W and beside it a change of low rank that learns: W x + (alpha / rank) B A x.

    A starts random and B at zero, so that nothing changes at first (Hu et al. 2021, section 4.1).
    """

    def __init__(self, base_layer: nn.Linear, rank: int, alpha: float):
        super().__init__()
        n_out, n_in = base_layer.weight.shape
        if not 1 <= rank <= min(n_out, n_in):
            raise ValueError(f"rank is {rank}, but a matrix of {n_out} × {n_in} takes 1 to {min(n_out, n_in)}.")
        self.base_layer, self.scaling = base_layer, alpha / rank
        self.lora_A = nn.Parameter(torch.randn_like(base_layer.weight[:rank]) / math.sqrt(n_in))  # (r, in)
        self.lora_B = nn.Parameter(torch.zeros_like(base_layer.weight[:, :rank]))  # (out, r)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return self.base_layer(x) + self.scaling * F.linear(F.linear(x, self.lora_A), self.lora_B)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the change to W itself."""
        self.base_layer.weight += self.scaling * self.lora_B @ self.lora_A


def add_lora(
    model: GPT | PreTrainedModel, rank: int = 8, alpha: float = 16.0, targets: Sequence[str] | None = None
) -> None:
    """Freeze the model and give its linear maps named in `targets` a change of rank `rank` that learns.

    None means of our GPT `c_attn`, the queries, keys and values; of a transformers model what the library peft has for
    its kind. Raises ValueError for an impossible rank, and where no linear map has such a name.
    """
    if not isinstance(model, GPT):
        return _add_peft(model, rank, alpha, targets)
    targets = targets or ("c_attn",)
    layers = [
        (parent, name, LoRALinear(child, rank, alpha))
        for parent in model.modules()
        for name, child in parent.named_children()
        if name in targets and isinstance(child, nn.Linear)
    ]
    if not layers:
        raise ValueError(f"No linear map of this model, or none without LoRA, is named in {targets}: print(model).")
    model.requires_grad_(False)
    for parent, name, layer in layers:
        setattr(parent, name, layer)


def _add_peft(model, rank, alpha, targets):
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError(
            'LoRA on a model of transformers needs the library peft: run `pip install "gptcourse[real-models]"`.'
        ) from error
    turned = model.config.model_type == "gpt2"  # its matrices are (in, out)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets and list(targets), fan_in_fan_out=turned)
    inject_adapter_in_model(config, model)


def merge_lora(model: GPT | PreTrainedModel) -> None:
    """Add what LoRA has learned to the weights and take its layers out: a plain model with the same logits."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if hasattr(layer, "base_layer"):  # ours or peft's
                layer.merge()
                setattr(parent, name, layer.base_layer)
    vars(model).pop("peft_config", None)  # peft's note that its layers are there
    model.requires_grad_(True)


# ---- Training


def finetune(
    model: GPT | PreTrainedModel,
    examples: Sequence[Example],
    config: TrainingConfig,
    *,
    validation: Sequence[Example] | None = None,
    patience: int | None = None,
    checkpoint_dir=None,
    resume: bool = False,
    callback=None,
    device=None,
    progress: bool = True,
) -> History:
    """Train `model` in place on examples, and return the history, in nats per token that is learned from.

    All weights learn, unless `freeze_all_but_last` or `add_lora` was called before. A step draws `batch_size` examples
    for each of its parts; its loss is the sum over all its targets divided by their number, however they lie in parts
    and rows. With `validation` examples the weights with the lowest validation loss are put back at the end, and after
    `patience` evaluations without a lower one the run stops ("early stopping"). All else is as in `train`; a
    checkpoint holds only the weights that learn. Raises ValueError, CheckpointError and DivergedError.
    """
    if patience is not None and not (patience >= 1 and config.eval_steps and validation):
        raise ValueError("patience counts evaluations, 1 or more: give validation examples and set eval_steps.")
    distributed.init()
    device, trainee = training.choose_device(device), _Trainee(model)
    run = training._Run(trainee, _Examples(model, examples, validation, config, device), config, device)
    run.open(checkpoint_dir, resume)

    def after_step(history: History) -> bool:
        _stop_early(history, patience)
        return callback is not None and callback(history)

    _stop_early(run.history, patience)  # a run that is resumed may have stopped before
    history = run.go_on(after_step, progress)
    trainee.take(trainee.best)
    return history


def _stop_early(history, patience):
    losses = history.eval_loss
    if patience is not None and losses and len(losses) - 1 - losses.index(min(losses)) >= patience:
        history.stopped = "early stopping"


class _Trainee(nn.Module):
    """A model of either kind as the training loop wants it: it gives a loss, keeps its best weights, and is saved.

    Only the weights that learn are saved, as the others are what they were.
    """

    def __init__(self, model):
        super().__init__()
        self.model, self.best, self.best_loss = model, {}, math.inf

    def __getattr__(self, name):  # what is asked of the model, such as its config
        return super().__getattr__(name) if name == "model" else getattr(self.model, name)

    def forward(self, ids: Tensor, targets: Tensor) -> GPTOutput:
        """Return the logits and the mean loss over the targets."""
        if isinstance(self.model, GPT):
            return self.model(ids, targets)
        logits = self.model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        return GPTOutput(logits, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()))

    def learning(self) -> dict[str, Tensor]:
        """Return the weights that learn, themselves and no copies."""
        return {name: weight.detach() for name, weight in self.model.named_parameters() if weight.requires_grad}

    def judge(self, loss: float) -> float:
        """Return the validation loss, after keeping a copy of the weights if none was lower."""
        if loss < self.best_loss:
            self.best, self.best_loss = {name: weight.clone() for name, weight in self.learning().items()}, loss
        return loss

    def take(self, weights: dict[str, Tensor]) -> None:
        """Put values into the weights that learn."""
        for name, value in weights.items():
            self.learning()[name].copy_(value)

    def save(self, directory: Path) -> None:
        """Write the weights that learn, now and at their best."""
        state = {"best_loss": torch.tensor(self.best_loss, dtype=torch.float64)}
        for prefix, weights in (("now.", self.learning()), ("best.", self.best)):
            state |= {prefix + name: weight.contiguous() for name, weight in weights.items()}
        save_file(state, directory / WEIGHTS_FILE)

    def restore(self, directory: Path) -> None:
        """Take over what `save` has written."""
        state = load_file(directory / WEIGHTS_FILE)
        self.best_loss = state.pop("best_loss").item()
        self.take({name.removeprefix("now."): value for name, value in state.items() if name.startswith("now.")})
        best = {name.removeprefix("best."): value for name, value in state.items() if name.startswith("best.")}
        self.best = {name: value.clone() for name, value in best.items()}  # lets go of the file, which is deleted later


class _Examples:
    """What a fine-tuning run learns from and is measured on."""

    def __init__(self, model, examples, validation, config: TrainingConfig, device: torch.device):
        self.examples, self.validation = _checked(model, examples), validation
        if validation is not None:
            _checked(model, validation)
        self.config, self.device = config, device

    def batches(self, n_done: int) -> list[tuple[Tensor, Tensor]]:
        """Return the parts (ids, targets) of the batch of the step after `n_done` steps: (B, T) each."""
        shape = (self.config.gradient_accumulation_steps * distributed.world_size(), self.config.batch_size)
        drawn = np.random.default_rng((self.config.seed, n_done)).integers(len(self.examples), size=shape)
        parts = [pad([self.examples[i] for i in part]) for part in drawn]
        return [(ids.to(self.device), targets.to(self.device)) for ids, targets in parts]

    def validation_loss(self, trainee: _Trainee) -> float | None:
        """Return the loss on the validation examples, None if there are none, and let the trainee know it."""
        if self.validation is None:
            return None
        return trainee.judge(_mean_loss(trainee, self.validation, self.config.batch_size))

    def settings(self, trainee: _Trainee) -> dict:
        """Return what two runs must share, beside their TrainingConfig, for one to go on where the other stopped."""
        frozen = hashlib.sha256()
        for weight in (weight for weight in trainee.parameters() if not weight.requires_grad):
            frozen.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
        settings = {"the number of weights that learn": sum(weight.numel() for weight in trainee.learning().values())}
        settings["the sha256 of those that do not"] = frozen.hexdigest()[:16]
        for name, examples in (("examples", self.examples), ("validation examples", self.validation or [])):
            numbers = [number for ids, targets in examples for number in (*ids, *targets)]
            settings[f"the {name}"] = training.fingerprint(torch.tensor(numbers, dtype=torch.int64))
        return settings


def _checked(model, examples):
    """Return the examples. Raises ValueError with one sentence for none, and for one that does not fit the model."""
    if not examples or any(set(targets) <= {IGNORED} for _, targets in examples):
        raise ValueError("There must be examples with something to learn in each: encode_dialogues makes such ones.")
    longest, window = max(len(ids) for ids, _ in examples), context_window(model)
    if longest > window:
        raise ValueError(f"An example is {longest} tokens long, but this model takes {window}: shorten or drop it.")
    largest, vocab_size = max(max(ids) for ids, _ in examples), model.config.vocab_size
    if largest >= vocab_size:
        raise ValueError(
            f"An example holds token {largest}, but the model knows ids from 0 to {vocab_size - 1}: use the tokenizer "
            "that the model was made for."
        )
    return examples


# ---- What was learned


def reply_loss(model: GPT | PreTrainedModel, examples: Sequence[Example], batch_size: int = 16) -> float:
    """Return the loss on examples, in nats per token of the replies. Raises ValueError for those that do not fit.

    Times `count_targets(examples) / len(examples)` it is the loss per reply, which no model can bring below the mean of
    the dialogues' -log_prob: H(reply | message), see `support.reply_entropy`.
    """
    return _mean_loss(_Trainee(model), _checked(model, examples), batch_size)


@torch.no_grad()
def _mean_loss(trainee, examples, batch_size):
    examples = sorted(examples, key=lambda example: len(example[0]))  # rows of like lengths need little padding
    batches = [examples[i : i + batch_size] for i in range(0, len(examples), batch_size)]
    with in_mode(trainee, training=False):
        losses = [trainee(*(part.to(trainee.device) for part in pad(batch))).loss.item() for batch in batches]
    total = sum(loss * count_targets(batch) for loss, batch in zip(losses, batches, strict=True))
    return total / count_targets(examples)


def generate_replies(
    model: GPT | PreTrainedModel,
    tokenizer,
    messages: Sequence[str],
    sampling: Sampling = GREEDY,
    max_new_tokens: int = 100,
) -> list[str]:
    """Return the model's reply to each message; a reply that needs more than `max_new_tokens` is cut off."""
    prompts = [chat_prompt(tokenizer, message) for message in messages]
    end = eos_id(tokenizer)
    rows = generate(model, prompts, max_new_tokens, sampling, eos_token_id=end)
    replies = [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]
    return [tokenizer.decode([token for token in reply if token != end]) for reply in replies]
