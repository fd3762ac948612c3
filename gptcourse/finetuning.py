"""Fine-tuning: go on training a finished model, on dialogues, and learn from the replies alone.

Everything that is learned from is an *example*: token ids, and for each the target that should follow it, or -100
where nothing is to be learned. `encode_dialogue` makes one of a dialogue, `text_examples` of plain text, `pack` of
several. All functions take our GPT and the causal language models of transformers.

Sources: Ouyang et al. (2022), InstructGPT (fine-tuning on demonstrations); Brown et al. (2020), GPT-3, appendix B
(packing); Hu et al. (2021), LoRA, section 4.1; Rolnick et al. (2019), "Experience Replay for Continual Learning".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcourse import distributed
from gptcourse.checks import COUNT, POSITIVE, TEXTS, An, between, checked
from gptcourse.config import TrainingConfig
from gptcourse.data import (
    IGNORED,
    Example,
    alone_with_random,
    check_examples,
    check_tokens,
    count_targets,  # noqa: F401 - it belongs to fine-tuning as well: notebook 08 looks for it here
    example_batches,
    fill_template,
    fingerprint_examples,
    get_batch,
    pad,
)
from gptcourse.distributed import choose_device
from gptcourse.generation import Sampling, generate, only_tokens_of
from gptcourse.model import GPT
from gptcourse.support import Dialogue
from gptcourse.tokenizers import CHAT_TOKENS, check_text, encode_text
from gptcourse.training import History, Trainer, mean_loss
from gptcourse.views import context_window, unwrap, vocab_size_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PLACE = "\ue000"  # holds the place of a text while a chat template is filled: no language has this character
GREEDY = Sampling(temperature=0)


# ---- Examples: dialogues as tokens


def encode_dialogue(tokenizer, message: str, reply: str, earlier: Iterable[tuple[str, str]] = ()) -> Example:
    """Return (ids, targets) of `<|user|>message<|assistant|>reply<|end|>`, or of what the chat template makes of it.

    The `earlier` pairs (message, reply) stand before it. Targets outside the reply and its end token are IGNORED.
    Special tokens come from the format alone, never from typed text. Raises ValueError for a tokenizer without a chat
    format.
    """
    prompt, answer = _chat_ids(tokenizer, message, reply, earlier)
    return prompt + answer, [IGNORED] * (len(prompt) - 1) + answer + [IGNORED]


def encode_dialogues(tokenizer, dialogues: Iterable[Dialogue | tuple[str, str]]) -> list[Example]:
    """Return an example for each dialogue; a pair (message, reply) will do for one."""
    pairs = [(d.message, d.reply) if isinstance(d, Dialogue) else d for d in dialogues]
    return [encode_dialogue(tokenizer, message, reply) for message, reply in pairs]


def encode_labelled(tokenizer, pairs: Iterable[tuple[str, str]], template: str = "{text}\n{label}") -> list[Example]:
    """Return an example for each pair (text, label); its targets are the label and the end of its line.

    The template is that of `evaluation.few_shot`: it ends with {label}, and what stands before is the prompt.
    """
    examples = []
    for text, label in pairs:
        prompt = encode_text(tokenizer, fill_template(template, text))
        answer = encode_text(tokenizer, f"{label}\n", start=False)
        examples.append(((prompt + answer)[:-1], [IGNORED] * (len(prompt) - 1) + answer))
    return examples


def chat_prompt(tokenizer, message: str, earlier: Iterable[tuple[str, str]] = ()) -> list[int]:
    """Return the ids before the reply to `message`, after `earlier` pairs (message, reply). Raises ValueError."""
    return _chat_ids(tokenizer, message, "", earlier)[0]


def eos_id(tokenizer) -> int:
    """Return the token that ends a reply, which in a chat template need not be tokenizer.eos_token_id."""
    if getattr(tokenizer, "chat_template", None) or not hasattr(tokenizer, "eos_token_id"):
        return _chat_ids(tokenizer, "", "")[1][-1]
    return tokenizer.eos_token_id


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
    texts = [check_text(text) for text in (*chain(*earlier), message, reply)]
    chat = [{"role": ("user", "assistant")[i % 2], "content": PLACE} for i in range(len(texts))]
    frame = tokenizer.apply_chat_template(chat, tokenize=False).split(PLACE)
    *frame, end = (tokenizer(text, add_special_tokens=False).input_ids for text in frame)
    plain = {"add_special_tokens": False, "split_special_tokens": True}
    *texts, reply = (tokenizer(text, **plain).input_ids for text in texts)
    before = [token for piece in zip(frame, [*texts, []], strict=True) for token in chain(*piece)]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    length = next((i for i, token in enumerate(end, start=1) if token in special), None)
    if length is None:
        raise ValueError("This chat template ends a reply with no special token, so a model cannot learn to stop.")
    return before, reply + end[:length]


def text_examples(tokens, n: int, length: int, seed: int = 0) -> list[Example]:
    """Return n pieces of plain text with all targets: mixed with dialogues, they reduce forgetting."""
    tokens = check_tokens(tokens, math.inf, length + 1, "tokens to cut from")
    ids, targets = get_batch(tokens, n, length, seed, 0)
    return list(zip(ids.tolist(), targets.tolist(), strict=True))


def pack(examples: Iterable[Example], length: int) -> list[Example]:
    """Concatenate examples into rows of up to `length` tokens, each into the first recent row with room for it.

    A longer example has a row of its own.

    Attention crosses from a dialogue into those before it in its row. GPT-3 was trained in this way (Brown et al. 2020,
    appendix B): the end token tells the model that what stands before is unrelated.
    """
    rows: list[Example] = []
    for ids, targets in examples:
        row = next((row for row in rows[-100:] if len(row[0]) + len(ids) <= length), None)
        if row is None:
            rows.append(row := ([], []))
        row[0].extend(ids)
        row[1].extend(targets)
    return rows


# ---- Tokens that pretraining never met


@torch.no_grad()
def reinit_embeddings(model: GPT | PreTrainedModel, tokens: Sequence[int], seed: int = 0) -> None:
    """Give these tokens new embeddings: the mean of all others plus noise of their standard deviation.

    Training pushes tokens that never occur in one direction in a tied table, until they are alike. Source: Hewitt
    (2021), "Initializing New Word Embeddings for Pretrained Language Models". Raises ValueError for a token outside the
    vocabulary, and if no other is left.
    """
    model = unwrap(model)
    table = (model.wte if isinstance(model, GPT) else model.get_input_embeddings()).weight  # (V, C)
    tokens = [int(token) if token == int(token) else -1 for token in tokens]
    if not all(0 <= token < len(table) for token in tokens) or len(set(tokens)) >= len(table):
        raise ValueError(f"tokens must be ids from 0 to {len(table) - 1}, and leave some that are kept as they are.")
    renewed = torch.zeros(len(table), dtype=torch.bool)
    renewed[tokens] = True
    others = table[~renewed]
    noise = torch.randn(int(renewed.sum()), table.shape[1], generator=torch.Generator().manual_seed(seed))
    table[renewed] = others.mean(0) + others.std() * noise.to(table)


# ---- Which weights learn, and how


def freeze_all_but_last(model: GPT | PreTrainedModel, n_layers: int) -> None:
    """Train only the last `n_layers` blocks. Raises ValueError if there are not so many."""
    blocks = next((module for module in model.modules() if isinstance(module, nn.ModuleList)), ())
    n_layers = between(1, len(blocks))("n_layers", n_layers)
    model.requires_grad_(False)
    blocks[-n_layers:].requires_grad_(True)


class LoRALinear(nn.Module):
    """A frozen linear map W plus a trainable low-rank update: W x + (alpha / rank) B A x.

    A is random and B zero at first, so that the update is zero (Hu et al. 2021, section 4.1).
    """

    @alone_with_random
    def __init__(self, base_layer: nn.Linear, rank: int, alpha: float):
        super().__init__()
        n_out, n_in = base_layer.weight.shape
        rank = between(1, min(n_out, n_in))("rank", rank)
        self.base_layer, self.scaling = base_layer, alpha / rank
        self.lora_A = nn.Parameter(torch.randn_like(base_layer.weight[:rank]) / math.sqrt(n_in))  # (r, in)
        self.lora_B = nn.Parameter(torch.zeros_like(base_layer.weight[:, :rank]))  # (out, r)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return self.base_layer(x) + self.scaling * F.linear(F.linear(x, self.lora_A), self.lora_B)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to W itself."""
        self.base_layer.weight += self.scaling * self.lora_B @ self.lora_A


def add_lora(
    model: GPT | PreTrainedModel, rank: int = 8, alpha: float = 16.0, targets: Sequence[str] | None = None
) -> None:
    """Freeze the model and add trainable updates of rank `rank` to its linear maps named in `targets`.

    None: of our GPT `c_attn`, of a transformers model the library peft's choice for its architecture. Raises ValueError
    for an impossible rank, and where no linear map has such a name.
    """
    model, alpha = unwrap(model), POSITIVE("alpha", alpha)
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


@alone_with_random
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
    """Add LoRA's updates to the weights and remove its layers: a plain model with the same logits.

    A tied LM head gets a matrix of its own, as the embeddings have no update.
    """
    model = unwrap(model)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if hasattr(layer, "base_layer"):  # ours or peft's
                _untie(model, layer.base_layer)
                layer.merge()
                setattr(parent, name, layer.base_layer)
    vars(model).pop("peft_config", None)  # peft's note that its layers are there
    model.requires_grad_(True)


def _untie(model, layer):
    """Give a layer a weight of its own if another module has the same one."""
    owners = [module for module in model.modules() if module._parameters.get("weight") is layer.weight]
    if len(owners) > 1:
        layer.weight = nn.Parameter(layer.weight.detach().clone())
        if isinstance(model, GPT):
            model.config = replace(model.config, tie_word_embeddings=False)
        else:
            model.config.tie_word_embeddings = False


# ---- Training


def finetune(
    model: GPT | PreTrainedModel,
    examples: Sequence[Example],
    config: TrainingConfig,
    *,
    validation: Sequence[Example] | None = None,
    patience: int | None = None,
    checkpoint_dir=None,
    resume=False,
    callback=None,
    device=None,
    progress: bool = True,
) -> History:
    """Train `model` in place on examples, and return the history, in nats per target.

    A step draws `batch_size` examples for each micro-batch; its loss is the mean over all its targets. With
    `validation` examples the weights with the lowest validation loss are put back at the end, and after `patience`
    evaluations without a lower one the run stops ("early stopping"). All else is as in `train`.
    """
    if patience is not None and not (patience >= 1 and config.eval_steps and validation):
        raise ValueError("patience counts evaluations, 1 or more: give validation examples and set eval_steps.")
    device = choose_device(device)
    distributed.init(device)
    examples = _fitting(model, examples)
    validation = None if validation is None else _fitting(model, validation)
    validate = validation and partial(_mean_loss, examples=validation, batch_size=config.batch_size)
    named = {"the examples": examples, "the validation examples": validation or []}
    data = {name: fingerprint_examples(rows) for name, rows in named.items()}
    batches = example_batches(examples, config, distributed.world_size())
    best = {"keep_best": validation is not None, "patience": patience}
    trainer = Trainer(model, batches, config, validate=validate, device=device, **best)
    history = trainer.run(callback, progress, checkpoint_dir, resume, data)
    trainer.restore_best()
    return history


def _fitting(model, examples: Iterable[Example]) -> list[Example]:
    return check_examples(examples, vocab_size_of(model), context_window(model))


# ---- What was learned


@checked(batch_size=COUNT)
def reply_loss(model: GPT | PreTrainedModel, examples: Sequence[Example], batch_size: int = 16) -> float:
    """Return the mean loss on examples, in nats per target. Raises ValueError for those that do not fit.

    Times `count_targets(examples) / len(examples)` it is the loss per reply, whose minimum for any model is the mean of
    the dialogues' -log_prob, H(reply | message): see `support.reply_entropy`.
    """
    return _mean_loss(model, _fitting(model, examples), batch_size)


def _mean_loss(model, examples, batch_size):
    examples = sorted(examples, key=lambda example: len(example[0]))  # rows of similar lengths need little padding
    return mean_loss(model, (pad(examples[i : i + batch_size]) for i in range(0, len(examples), batch_size)))


@checked(messages=TEXTS, sampling=An(Sampling))
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
    rule = only_tokens_of(tokenizer)
    rows = generate(model, prompts, max_new_tokens, sampling, eos_token_id=end, logits_processor=rule)
    replies = [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]
    return [tokenizer.decode([token for token in reply if token != end]) for reply in replies]
