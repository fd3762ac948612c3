"""The exercises of notebook 04: drawing tokens, learning from replies, and low-rank changes.

Each mistake is a formula that people really use. Its hint says what goes wrong, or asks the question that helps,
and leaves the mending to the learner.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache, partial
from itertools import count, groupby
from math import inf, sqrt
from pathlib import Path

import safetensors.torch as weight_files
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn, randint, randn, tensor

from gptcourse.exercises import Exercise, Mistake
from gptcourse.finetuning import IGNORED, LoRALinear
from gptcourse.generation import apply_repetition_penalty, apply_temperature, exponential_noise, keep_top_p, sample

NOTEBOOK = "04 · Fine-tuning and generation"
NO_RANK = "The scale of the change is off. By what is alpha divided, and how do you read that number from the shapes?"
TURNED_CHANGE = "Your change is turned: its rows and columns are exchanged. Which of the two matrices meets x first?"
MEAN_OF_MEANS = (
    "Each micro-batch has the same say, however few reply tokens it holds. Over what should the mean be taken?"
)
COUNTS_MESSAGE = "Places with target -100 have no loss, but you count them below the line. Who should be counted?"
OWN_HEAD = "One of the files has a read-out of its own, and you replace it. When is the token table to be used?"
NOT_WHAT_ARRIVED = "What you return is what was sent, and not what arrived. From where should the receiver learn it?"


# ---- From probabilities to a token


def top_p_like(logits: Tensor, p: float, drops: Callable, dim: int = -1) -> Tensor:
    """Distribution without the tokens that `drops` names, given their probability, what they hold with those before."""
    ordered, order = logits.softmax(dim).sort(dim=dim, descending=True)
    kept = ordered.masked_fill(drops(ordered, ordered.cumsum(dim), p), 0.0)
    return torch.zeros_like(kept).scatter(dim, order, kept / kept.sum(dim, keepdim=True))


def crossing(ordered: Tensor, held: Tensor, p: float) -> Tensor:
    """Drop the token with which the sum reaches p, and all after it."""
    return held > p


def crossing_but_not_the_best(ordered: Tensor, held: Tensor, p: float) -> Tensor:
    return (held > p) & (torch.arange(held.shape[-1]) > 0)


def one_too_late(ordered: Tensor, held: Tensor, p: float) -> Tensor:
    """Drop a token only if those before the one before it hold p."""
    return F.pad(held >= p, (2, 0))[..., :-2]


def enough_before(ordered: Tensor, held: Tensor, p: float) -> Tensor:
    return held - ordered > p


def published_top_p(logits: Tensor, p: float) -> Tensor:
    return keep_top_p(logits, p).softmax(-1)


def kept_by(logits: Tensor, p: float) -> Tensor:
    return keep_top_p(logits, p) > -inf


def in_order_of_size(logits: Tensor, p: float) -> Tensor:
    return published_top_p(logits, p).sort(dim=-1, descending=True).values


def penalised_each_time(logits: Tensor, previous_ids: Tensor, penalty: float) -> Tensor:
    """Penalise a token once for every time that it occurs."""
    for token in previous_ids:
        logits = apply_repetition_penalty(logits, token[None], penalty)
    return logits


def where_seen(change: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Return what changes the logits of the tokens that occurred, for a given change."""

    def changed(logits: Tensor, previous_ids: Tensor, penalty: float) -> Tensor:
        seen = torch.zeros_like(logits, dtype=torch.bool).index_fill(0, previous_ids, True)
        return torch.where(seen, change(logits, penalty), logits)

    return changed


def signs(logits: Tensor, penalty: float) -> Tensor:
    """The rule of the penalty, for tokens that have occurred."""
    return torch.where(logits < 0, logits * penalty, logits / penalty)


def drawn_rows(n: int, vocab_size: int, spread: float, p: float) -> tuple[Tensor, float, Tensor]:
    """Rows at which the model is more or less sure, and noise to draw a token from each."""
    return spread * randn(n, vocab_size), p, exponential_noise((n, vocab_size)).float()


def drawn_by(drops: Callable) -> Callable[[Tensor, float, Tensor], Tensor]:
    """Return what draws a token from each row, for a given way to drop tokens; where none is left, that is token 0."""
    return lambda logits, p, noise: sample(top_p_like(logits, p, drops), noise)


# ---- Whole texts and whole runs


def texts_with(*lengths: int, spread: float = 1.0) -> tuple[list[Tensor]]:
    return ([-spread * randn(length).abs() for length in lengths],)


def stopped(
    losses: list[float],
    patience: int,
    lower: Callable[[float, float], bool] = lambda loss, best: loss < best,
    judge: Callable[[list[float], int, int], float] = lambda losses, i, best: losses[best],
    forgives: bool = True,
) -> tuple[int, int]:
    """Where a run stops and its best place; a loss that is not lower than what `judge` gives uses up patience."""
    best = bad = 0
    for i in range(1, len(losses)):
        bad = (0 if forgives else bad) if lower(losses[i], judge(losses, i, best)) else bad + 1
        best = i if lower(losses[i], losses[best]) else best
        if bad >= patience:
            return i, best
    return len(losses) - 1, best


def stop_and_best(losses: list[float], patience: int) -> tuple[int, int]:
    return stopped(losses, patience)


# ---- What is learned from


def replies_in_parts(*shapes: tuple[int, int, int]) -> tuple[list[tuple[Tensor, Tensor]]]:
    """Micro-batches of (rows, places, reply tokens at the end of the first row); each row after it has one more."""
    parts = []
    for n_rows, n_places, n_reply in shapes:
        lengths = (torch.arange(n_rows) + n_reply) * (n_reply > 0)
        hidden = torch.arange(n_places) < n_places - lengths[:, None]  # (B, T)
        targets = randint(5, (n_rows, n_places)).masked_fill(hidden, IGNORED)
        parts.append((randn(n_rows, n_places, 5), targets))
    return (parts,)


def sum_of_losses(logits: Tensor, targets: Tensor) -> float:
    return F.cross_entropy(logits.mT, targets, reduction="sum").item()


def mean_loss(logits: Tensor, targets: Tensor) -> float:
    return F.cross_entropy(logits.mT, targets).item()


def n_learned(targets: Tensor) -> int:
    return (targets != IGNORED).sum().item()


def loss_over(below: Callable[[list[Tensor]], int]) -> Callable[[list], float]:
    """Return what divides the sum of all losses by a given number, taken from all targets."""
    return lambda micro_batches: (
        sum(sum_of_losses(*part) for part in micro_batches) / below([targets for _, targets in micro_batches])
    )


def mean_of_all_replies(micro_batches: list) -> float:
    return loss_over(lambda targets: sum(map(n_learned, targets)))(micro_batches)


def weighted_means(weight: Callable[[Tensor], float]) -> Callable[[list], float]:
    """Return what takes the mean of the parts' means, each with a given weight."""

    def loss(micro_batches: list) -> float:
        weights = [weight(targets) for _, targets in micro_batches]
        means = [mean_loss(*part) for part in micro_batches]
        return sum(w * mean for w, mean in zip(weights, means, strict=True)) / sum(weights)

    return loss


def with_replies(micro_batches: list) -> list:
    return [part for part in micro_batches if n_learned(part[1])]


def rows_of(micro_batches: list) -> list[tuple[Tensor, Tensor]]:
    pairs = [zip(logits[:, None], targets[:, None], strict=True) for logits, targets in micro_batches]
    return [row for rows in pairs for row in rows]


def filled_rows(*lengths: int, places: int, vocab_size: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, replies that end in the last token and are filled up with it, and their lengths with the end."""
    lengths, end = tensor(lengths), vocab_size - 1
    targets = randint(end, (len(lengths), places))
    targets = targets.masked_fill(torch.arange(places) >= lengths[:, None] - 1, end)
    return randn(len(lengths), places, vocab_size), targets, lengths


def losses_and_mask(logits: Tensor, targets: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    losses = F.cross_entropy(logits.mT, targets, reduction="none")  # (B, T)
    return losses, torch.arange(targets.shape[1]) < lengths[:, None]


def reply_mean(logits: Tensor, targets: Tensor, lengths: Tensor) -> float:
    losses, real = losses_and_mask(logits, targets, lengths)
    return losses[real].mean().item()


def mean_of_rows(logits: Tensor, targets: Tensor, lengths: Tensor) -> float:
    losses, real = losses_and_mask(logits, targets, lengths)
    return ((losses * real).sum(1) / lengths).mean().item()


def masked_sum(logits: Tensor, targets: Tensor, lengths: Tensor) -> float:
    losses, real = losses_and_mask(logits, targets, lengths)
    return losses[real].sum().item()


def targets_like(before: Callable[[Tensor], Tensor], after: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    """Return what joins targets for the message to targets of the reply."""
    return lambda prompt, reply: torch.cat([before(prompt), after(prompt, reply)])


def ignored(n: int) -> Tensor:
    return torch.full((n,), IGNORED)


def reply_targets(prompt: Tensor, reply: Tensor) -> Tensor:
    return torch.cat([ignored(len(prompt) - 1), reply, ignored(1)])


def in_phrasings(*numbers: int) -> list[tuple[str, str]]:
    """Dialogues with these phrasings, each with an order number of its own; the names are not in order."""
    names = [
        "Where is {}?",
        "Cancel {}.",
        "Any news of {}?",
        "Send {} back.",
        "Has {} left?",
        "Pay for {}.",
        "Is {} in?",
    ]
    return [(names[n], names[n].format(4000 + 7 * i)) for i, n in enumerate(numbers)]


def chosen_phrasings(dialogues: list, phrasings: list) -> Tensor:
    chosen = set(phrasings)
    return tensor([i for i, (phrasing, _) in enumerate(dialogues) if phrasing in chosen])


def phrasings_of(dialogues: list) -> list[str]:
    return list(dict.fromkeys(phrasing for phrasing, _ in dialogues))


def held_out(dialogues: list, every: int) -> Tensor:
    return chosen_phrasings(dialogues, phrasings_of(dialogues)[every - 1 :: every])


def all_others(dialogues: list, every: int) -> Tensor:
    chosen = set(held_out(dialogues, every).tolist())
    return tensor([i for i in range(len(dialogues)) if i not in chosen])


def only_first_of_each(dialogues: list, every: int) -> Tensor:
    phrasings = [phrasing for phrasing, _ in dialogues]
    return tensor([phrasings.index(phrasing) for phrasing in phrasings_of(dialogues)[every - 1 :: every]])


def neighbours(dialogues: list, every: int) -> Tensor:
    """Take a phrasing for a new one whenever it differs from the one before."""
    runs = [list(run) for _, run in groupby(range(len(dialogues)), key=lambda i: dialogues[i][0])]
    return tensor([i for run in runs[every - 1 :: every] for i in run])


# ---- Low-rank changes and files


def low_rank(n_out: int, n_in: int, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    return randn(n_out, n_in), randn(rank, n_in), randn(n_out, rank)


def lora_layer(W: Tensor, A: Tensor, B: Tensor, alpha: float) -> LoRALinear:
    """The package's own layer with these weights."""
    base = nn.Linear(W.shape[1], W.shape[0], bias=False)
    layer = LoRALinear(base, len(A), alpha).requires_grad_(False)
    for parameter, value in ((base.weight, W), (layer.lora_A, A), (layer.lora_B, B)):
        parameter.copy_(value)
    return layer


def lora_forward(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    return lora_layer(W, A, B, alpha)(x)


def merged_weight(W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    layer = lora_layer(W, A, B, alpha)
    layer.merge()
    return layer.base_layer.weight


def scaled_lora(scale: Callable[[float, int, int], float]) -> Callable[..., Tensor]:
    """Return LoRA's forward with another scale, given alpha, the rank and the number of inputs."""
    return lambda x, W, A, B, alpha: x @ W.T + scale(alpha, *A.shape) * x @ A.T @ B.T


def scaled_merge(scale: Callable[[float, int, int], float]) -> Callable[..., Tensor]:
    return lambda W, A, B, alpha: W + scale(alpha, *A.shape) * B @ A


def file_of(*names: str, vocab_size: int, n_embd: int) -> dict[str, Tensor]:
    """Weights as a file may hold them: a token table, and those of the parts that are named."""
    shapes = {"lm_head.weight": (vocab_size, n_embd), "ln_f.weight": (n_embd,), "ln_f.bias": (n_embd,)}
    extra = {"h.0.attn.bias": (2, 2)}  # old files of GPT-2 hold the causal mask
    return {"wte.weight": randn(vocab_size, n_embd)} | {name: randn((shapes | extra)[name]) for name in names}


def opened_by(fill: Callable[[dict], dict], tally: Callable[..., int], strict: bool = False) -> Callable:
    """Return what opens a file, for given ways to fill up its weights and to count those that are missing."""

    def logits_and_missing(weights: dict, hidden: Tensor) -> tuple[Tensor, int]:
        """Build the model, fill it and read out what it makes of hidden."""
        vocab_size, n_embd = weights["wte.weight"].shape
        model = nn.ModuleDict()
        model["wte"] = nn.Embedding(vocab_size, n_embd)
        model["ln_f"] = nn.LayerNorm(n_embd)
        model["lm_head"] = nn.Linear(n_embd, vocab_size, bias=False)
        found = model.load_state_dict(fill(weights), strict=strict)
        return model["lm_head"](model["ln_f"](hidden)), tally(found, weights)

    return logits_and_missing


def as_it_is(weights: dict) -> dict:
    return weights


def tied(weights: dict) -> dict:
    return {"lm_head.weight": weights["wte.weight"]} | weights


def always_tied(weights: dict) -> dict:
    return weights | {"lm_head.weight": weights["wte.weight"]}


def n_missing(found, weights: dict) -> int:
    return len(found.missing_keys)


def n_unexpected(found, weights: dict) -> int:
    return len(found.unexpected_keys)


def n_missing_in_file(found, weights: dict) -> int:
    return len(found.missing_keys) + ("lm_head.weight" not in weights)


@cache
def own_folder() -> str:
    """A folder for the files of answers, deleted when the kernel stops."""
    folder = tempfile.mkdtemp(prefix="gptcourse-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class FreshPath(str):
    """A path at which there is no file yet. Each copy is another one: whoever is tried writes a file of its own.

    Weights that were read from a file may still lie in it, so that writing over it would pull them away.
    """

    numbers = count()

    def __new__(cls):
        return super().__new__(cls, Path(own_folder(), f"weights-{next(cls.numbers)}"))

    def __deepcopy__(self, memo: dict) -> FreshPath:
        return FreshPath()


def send(path: str) -> None:
    """Let pass what is safe to open. In what arrives each number is larger by 1, to see that it was read at all."""
    try:
        weights = weight_files.load(Path(path).read_bytes())
    except SafetensorError:
        raise ValueError("what was sent is no safetensors file") from None
    Path(path).unlink()  # and not written over, see FreshPath
    Path(path).write_bytes(weight_files.save({name: weight + 1 for name, weight in weights.items()}))


class Tied(nn.Module):
    """A token table that is the read-out as well: one tensor under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.lm_head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.lm_head.weight = self.wte.weight


def turned_linear() -> nn.Linear:
    """A linear map whose weight lies in memory column by column."""
    linear = nn.Linear(5, 3)
    linear.weight = nn.Parameter(randn(5, 3).T)
    return linear


def to_send() -> list[tuple]:
    kinds = (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), Tied, turned_linear)
    return [(kind(), kind(), FreshPath(), send) for kind in kinds]


def sent_and_opened(model: nn.Module, receiver: nn.Module, path: str, send: Callable) -> tuple[Tensor, ...]:
    weight_files.save_model(model, path)
    send(path)
    weight_files.load_model(receiver, path)
    return tuple(parameter.detach() for parameter in receiver.parameters())


def sent_with(prepare: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """Return what sends every tensor under its name, after preparing it in a given way."""

    def sent(model: nn.Module, receiver: nn.Module, path: str, send: Callable) -> tuple[Tensor, ...]:
        weight_files.save_file({name: prepare(weight) for name, weight in model.state_dict().items()}, path)
        send(path)
        receiver.load_state_dict(weight_files.load_file(path))
        return tuple(parameter.detach() for parameter in receiver.parameters())

    return sent


def sent_as_something_else(model: nn.Module, receiver: nn.Module, path: str, send: Callable) -> None:
    Path(path).write_bytes(b"PK")  # so begins what torch saves by itself
    send(path)


EXERCISES = (
    Exercise(
        name="fine_tuning.top_p",
        asks="Keep the fewest best tokens that together hold at least p, and return a distribution over them.",
        inputs=lambda: [
            (randn(12), 0.9),
            (tensor([0.5, 6.0, 1.0, 2.0, -1.0]), 0.5),
            (2 * randn(3, 10), 0.7),
            (randn(2, 6), 0.0),
        ],
        reference=published_top_p,
        hint=(
            "Write down the probabilities of five tokens, the best one first, and add them up one by one. "
            "With which token do you have enough, and where does that token belong?"
        ),
        mistakes=(
            Mistake(
                partial(top_p_like, drops=crossing),
                "Where the best token alone holds more than p, nothing is left, and you divide 0 by 0. "
                "Is the token with which the sum reaches p needed or not?",
            ),
            Mistake(
                partial(top_p_like, drops=crossing_but_not_the_best),
                "What you keep holds less than p: you stop one token too early.",
            ),
            Mistake(
                partial(top_p_like, drops=one_too_late),
                "You keep one token too many: did the others not hold p already?",
            ),
            Mistake(
                partial(top_p_like, drops=lambda ordered, held, p: held - ordered >= p),
                "Very close. With p at 0 yours keeps nothing at all. Who should always stay?",
            ),
            Mistake(
                lambda logits, p: logits.softmax(-1) * kept_by(logits, p),
                "The right tokens are left, but their probabilities add up to less than one.",
            ),
            Mistake(
                in_order_of_size,
                "Your probabilities stand in the order of their size. To which token does each of them belong?",
            ),
            Mistake(
                lambda logits, p: logits.masked_fill(logits.softmax(-1) < p, -inf).softmax(-1),
                "You hold each token against p on its own. What together should reach p?",
            ),
            Mistake(
                lambda logits, p: logits.masked_fill(
                    logits.softmax(-1) < p * logits.softmax(-1).amax(-1, keepdim=True), -inf
                ).softmax(-1),
                "That is min-p: each token is held against the best one. Top-p looks at a sum.",
            ),
            Mistake(
                lambda logits, p: logits.softmax(-1).masked_fill(~kept_by(logits, p), -inf).softmax(-1),
                "The right tokens are left, but they are all nearly even: a softmax of probabilities. "
                "What keeps the ratios as they were?",
            ),
            Mistake(
                partial(top_p_like, drops=enough_before, dim=0),
                "Right for a single row. In a batch, who competes with whom?",
            ),
        ),
    ),
    Exercise(
        name="fine_tuning.repetition_penalty",
        asks="Make the tokens that have occurred less likely, each of them once, whatever the sign of its logit.",
        inputs=lambda: [
            (tensor([2.0, -1.0, 0.5, -3.0, 4.0]), tensor([0, 1, 0, 3]), 1.5),
            (3 * randn(20), randint(20, (12,)), 2.0),
            (randn(6), tensor([5, 5, 5, 2, 2]), 1.2),
        ],
        reference=apply_repetition_penalty,
        hint="Take a logit of 2 and one of -2, and a penalty of 1.5. In which direction should each of them move?",
        mistakes=(
            Mistake(
                where_seen(lambda logits, penalty: logits / penalty),
                "A negative logit that you divide comes nearer to zero, so its token becomes more likely. "
                "What should be done to it instead?",
            ),
            Mistake(
                where_seen(lambda logits, penalty: torch.where(logits < 0, logits / penalty, logits * penalty)),
                "The other way round: now the model repeats itself more.",
            ),
            Mistake(
                where_seen(lambda logits, penalty: logits * penalty),
                "A positive logit that you multiply grows, and its token becomes more likely.",
            ),
            Mistake(
                penalised_each_time,
                "A token that has occurred three times is penalised three times. Here once is enough.",
            ),
            Mistake(
                lambda logits, previous_ids, penalty: signs(logits, penalty),
                "All tokens are penalised, those that have never occurred included.",
            ),
            Mistake(
                lambda logits, previous_ids, penalty: where_seen(lambda p, penalty: p / penalty)(
                    logits.softmax(-1), previous_ids, penalty
                ),
                "These are probabilities, which no longer add up to one. The rule works on logits.",
            ),
        ),
    ),
    Exercise(
        name="fine_tuning.perplexity",
        asks="Return the perplexity of all texts together, given the log-probability of each of their tokens.",
        inputs=lambda: [texts_with(2, 9, 4), texts_with(1, 30), texts_with(*(40, 6) * 13, spread=2.0)],
        reference=lambda log_probs: torch.cat(log_probs).mean().neg().exp().item(),
        hint=(
            "A model that gives each token one chance in seven has perplexity 7, in however many texts they come. "
            "What do you get for it?"
        ),
        mistakes=(
            Mistake(
                lambda log_probs: torch.stack([text.mean().neg().exp() for text in log_probs]).mean().item(),
                "That is the mean of the texts' perplexities, in which one strange short text can drown all others. "
                "What should be joined before anything else?",
            ),
            Mistake(
                lambda log_probs: torch.stack([text.mean() for text in log_probs]).mean().neg().exp().item(),
                "Each text has the same say, however short it is. Over what should the mean be taken?",
            ),
            Mistake(
                lambda log_probs: torch.cat(log_probs).exp().prod().pow(-1 / sum(map(len, log_probs))).item(),
                "Right for short texts. A product of hundreds of probabilities is too small for the computer: "
                "what did you turn the logarithms back for?",
            ),
            Mistake(
                lambda log_probs: torch.cat(log_probs).mean().exp().item(),
                "Yours lies below one. A perplexity says among how many tokens the model is as good as guessing.",
            ),
            Mistake(
                lambda log_probs: torch.cat(log_probs).mean().neg().item(),
                "That is the mean loss. One step is missing from it to the perplexity.",
            ),
            Mistake(
                lambda log_probs: 2 ** torch.cat(log_probs).mean().neg().item(),
                "You raise 2 to a power, but these logarithms are natural ones. Of which number are they the powers?",
            ),
            Mistake(
                lambda log_probs: torch.cat(log_probs).sum().neg().exp().item(),
                "Yours grows with the length of the texts. Is a long text harder for each of its tokens?",
            ),
        ),
    ),
    Exercise(
        name="fine_tuning.masked_loss",
        asks="Return the mean loss of all reply tokens in all micro-batches, as one number.",
        inputs=lambda: [replies_in_parts((2, 6, 2), (1, 9, 8)), replies_in_parts((3, 7, 1), (2, 5, 0), (2, 8, 5))],
        reference=mean_of_all_replies,
        hint="How many reply tokens are there in all, and what is the sum of their losses? Count by hand once.",
        mistakes=(
            Mistake(weighted_means(lambda targets: 1), MEAN_OF_MEANS),
            Mistake(
                lambda micro_batches: weighted_means(lambda targets: 1)(with_replies(micro_batches)), MEAN_OF_MEANS
            ),
            Mistake(
                weighted_means(n_learned),
                "Very close. A micro-batch without any reply token has no mean: 0 divided by 0. "
                "Is there something that you can add up even then?",
            ),
            Mistake(loss_over(lambda targets: sum(t.numel() for t in targets)), COUNTS_MESSAGE),
            Mistake(weighted_means(Tensor.numel), COUNTS_MESSAGE),
            Mistake(loss_over(len), "You divide by the number of micro-batches. How many losses did you add up?"),
            Mistake(
                loss_over(lambda targets: 1), "That is the sum of all losses, which grows with the number of tokens."
            ),
            *(
                Mistake(
                    lambda micro_batches, keep=keep: weighted_means(lambda targets: 1)(keep(rows_of(micro_batches))),
                    "Each dialogue has the same say, however short its reply. Over what should the mean be taken?",
                )
                for keep in (lambda rows: rows, with_replies)
            ),
            Mistake(
                lambda micro_batches: mean_of_all_replies([(x, y.clamp(min=0)) for x, y in micro_batches]),
                "The places of the message have a loss as well, against a token that nobody asked for. "
                "What does -100 stand for?",
            ),
        ),
    ),
    Exercise(
        name="fine_tuning.stop_rule",
        asks="Return the evaluation at which the run stops, and the best one up to there; both count from 0.",
        inputs=lambda: [
            ([3.0, 2.5, 2.2, 2.3, 2.25, 2.4, 2.45, 2.0, 1.9], 3),
            ([3.0, 2.5, 2.6, 2.4, 2.3], 2),
            ([2.0, 2.0, 1.9, 1.9, 1.9, 1.5], 2),
            ([2.0, 2.1, 1.0], 1),
            ([3.0, 3.1, 2.9, 3.0, 2.8, 2.9, 2.7], 2),
            ([3.0, 2.0, 2.5], 3),
            ([1.0], 5),
        ],
        reference=stop_and_best,
        hint="Go through the losses one by one with a finger on the best so far. For how many was there no lower one?",
        mistakes=(
            Mistake(
                lambda losses, patience: (stop_and_best(losses, patience)[0], losses.index(min(losses))),
                "You look into a future that the run has not seen: after its stop nothing more is measured.",
            ),
            Mistake(
                lambda losses, patience: (len(losses) - 1, losses.index(min(losses))),
                "Yours never stops before the end of the list. When has the patience been used up?",
            ),
            Mistake(
                lambda losses, patience: stopped(losses, patience + 1),
                "You wait for one evaluation too many. How many in a row without a lower loss are allowed?",
            ),
            Mistake(
                lambda losses, patience: stopped(losses, patience - 1),
                "You stop one evaluation too early. How many in a row without a lower loss are allowed?",
            ),
            Mistake(
                partial(stopped, judge=lambda losses, i, best: losses[i - 1]),
                "You hold each loss against the one before it, so a small dip on the way up looks like a success. "
                "Against which should it be held?",
            ),
            Mistake(
                partial(stopped, forgives=False),
                "Your patience is never renewed. What should a new best loss do to it?",
            ),
            Mistake(
                partial(stopped, lower=lambda loss, best: loss <= best),
                "You take an equal loss for a better one. To count as a success, how should a loss be?",
            ),
            Mistake(
                lambda losses, patience: (stop_and_best(losses, patience)[0],) * 2,
                "The stop is right. The weights to keep are not those of the moment at which the run gave up.",
            ),
            Mistake(
                lambda losses, patience: (
                    stop_and_best(losses, patience)[0],
                    stop_and_best(losses, patience)[0] - patience,
                ),
                "Right for a run that stops early. Where is the best of a run that goes on to its end?",
            ),
        ),
    ),
    Exercise(
        name="fine_tuning.lora",
        asks="Return what a linear map with a low-rank change beside it makes of x.",
        inputs=lambda: [
            (randn(2, 3, 6), *low_rank(6, 6, 2), 16.0),
            (randn(4, 5), *low_rank(5, 5, 1), 8.0),
            (randn(5), *low_rank(3, 5, 2), 0.5),
        ],
        reference=lora_forward,
        hint="Follow the shapes from x outwards: through which matrix does it go first, and which size comes out?",
        mistakes=(
            Mistake(scaled_lora(lambda alpha, rank, n_in: 1.0), "The change is not scaled yet. What is alpha for?"),
            Mistake(scaled_lora(lambda alpha, rank, n_in: alpha), NO_RANK),
            Mistake(scaled_lora(lambda alpha, rank, n_in: alpha / n_in), NO_RANK),
            Mistake(
                scaled_lora(lambda alpha, rank, n_in: alpha / sqrt(rank)),
                "You divide by a root. A later paper proposes that; in this one there is no root.",
            ),
            Mistake(
                lambda x, W, A, B, alpha: lora_forward(x, 0 * W, A, B, alpha),
                "That is the change alone. What does the frozen weight say?",
            ),
            Mistake(
                lambda x, W, A, B, alpha: alpha / len(A) * (x @ W.T + x @ A.T @ B.T),
                "You scale the frozen weight, too. At the start the layer should do just what it did before.",
            ),
            Mistake(lambda x, W, A, B, alpha: x @ W.T + alpha / len(A) * x @ B @ A, TURNED_CHANGE),
            Mistake(
                lambda x, W, A, B, alpha: x @ W + alpha / len(A) * x @ A.T @ B.T,
                "The change is right. The frozen weight is turned: are its rows outputs or inputs?",
            ),
        ),
    ),
    Exercise(
        name="fine_tuning.merge",
        asks="Return one matrix that does what the frozen weight and its change do together.",
        inputs=lambda: [(*low_rank(6, 6, 2), 16.0), (*low_rank(5, 5, 1), 8.0), (*low_rank(3, 4, 2), 3.0)],
        reference=merged_weight,
        hint="One matrix for all x. Which product of the two small ones has the shape of W?",
        mistakes=(
            Mistake(scaled_merge(lambda alpha, rank, n_in: 1.0), "The change is not scaled. What is alpha for?"),
            Mistake(scaled_merge(lambda alpha, rank, n_in: alpha), NO_RANK),
            Mistake(scaled_merge(lambda alpha, rank, n_in: alpha / n_in), NO_RANK),
            Mistake(
                lambda W, A, B, alpha: merged_weight(0 * W, A, B, alpha),
                "That is the change alone. The model still needs what it knew before.",
            ),
            Mistake(
                lambda W, A, B, alpha: alpha / len(A) * (W + B @ A),
                "You scale the frozen weight, too. With B at zero the result should be W itself.",
            ),
            Mistake(lambda W, A, B, alpha: W + alpha / len(A) * (B @ A).T, TURNED_CHANGE),
            Mistake(
                lambda W, A, B, alpha: W + alpha / len(A) * A @ B,
                "Your product has the size of the rank, and not that of W. (At rank 1 it is a single number, "
                "which is added everywhere without an error.) In which order should the two stand?",
            ),
        ),
    ),
    Exercise(
        name="fine_tuning.mend_temperature",
        asks="Mend the temperature so that a low one sharpens the distribution and a high one flattens it.",
        inputs=lambda: [(2 * randn(8), 0.5), (2 * randn(3, 6), 1.7), (100 * randn(2, 7), 0.3)],
        reference=lambda logits, temperature: apply_temperature(logits, temperature).softmax(-1),
        hint="At temperature 1 nothing should change; at 0.01 the best token should get almost everything.",
        mistakes=(
            Mistake(
                lambda logits, temperature: logits.softmax(-1),
                "The mistake is still there: every temperature gives the same distribution. "
                "You divide, and then you divide by the sum: what is left of the temperature?",
                untouched=True,
            ),
            Mistake(
                lambda logits, temperature: (logits.softmax(-1) / temperature).softmax(-1),
                "Now the temperature does something, but all tokens are nearly even: a softmax of probabilities. "
                "Numbers of which kind is it made for?",
            ),
            Mistake(
                lambda logits, temperature: logits.softmax(-1) / temperature,
                "Your numbers do not add up to one any more.",
            ),
            Mistake(
                lambda logits, temperature: (logits * temperature).softmax(-1),
                "The wrong way round: with yours a high temperature makes the model surer.",
            ),
            Mistake(
                lambda logits, temperature: (
                    (logits / temperature).exp() / (logits / temperature).exp().sum(-1, keepdim=True)
                ),
                "Right for small logits. The exponential of a large one is infinite. "
                "What may you subtract from all logits without changing any probability?",
            ),
        ),
    ),
    Exercise(
        name="fine_tuning.mend_top_p",
        asks="Mend the draw so that it chooses among the fewest best tokens that together hold at least p.",
        inputs=lambda: [drawn_rows(64, 8, 3.0, 0.6), drawn_rows(128, 12, 1.5, 0.8)],
        reference=lambda logits, p, noise: sample(keep_top_p(logits, p).softmax(-1), noise),
        hint="Print, for one row, which tokens are left and how much they hold together. Is it at least p?",
        mistakes=(
            Mistake(
                drawn_by(crossing),
                "The mistake is still there: where one token holds more than p, token 0 is drawn instead of it. "
                "How many tokens are left at such a place?",
                untouched=True,
            ),
            Mistake(
                drawn_by(crossing_but_not_the_best),
                "The best token is always there now. At the other places the token with which the sum reaches p "
                "is still missing.",
            ),
            Mistake(drawn_by(one_too_late), "Now you keep one token too many: did the others not hold p already?"),
            Mistake(
                lambda logits, p, noise: sample(logits.softmax(-1), noise),
                "Now any token can be drawn: nothing is cut.",
            ),
            Mistake(
                lambda logits, p, noise: sample(in_order_of_size(logits, p), noise),
                "Your numbers count from the best token on. Which token stands at that place?",
            ),
        ),
    ),
    Exercise(
        name="fine_tuning.mend_padding",
        asks="Mend the loss so that the filling has no say, and the end of each reply is learned.",
        inputs=lambda: [filled_rows(3, 7, places=9), filled_rows(2, 5, 4, 8, places=8)],
        reference=reply_mean,
        hint="Count the places that are to be learned, row by row, and take the mean of their losses and of no others.",
        mistakes=(
            Mistake(
                lambda logits, targets, lengths: mean_loss(logits, targets),
                "The mistake is still there: fill the same rows up further, and the loss changes. "
                "Which places have a say in the mean?",
                untouched=True,
            ),
            Mistake(
                lambda logits, targets, lengths: reply_mean(logits, targets, lengths - 1),
                "Now the end of each reply is left out, too, and a model that never learns it never stops. "
                "The filling and the end have the same number: by what else can they be told apart?",
            ),
            Mistake(
                lambda logits, targets, lengths: reply_mean(logits, targets, lengths + 1),
                "Very close: of each row that is filled, one filled place still counts.",
            ),
            Mistake(
                lambda logits, targets, lengths: masked_sum(logits, targets, lengths) / targets.numel(),
                "The losses of the filling are gone, but its places are still counted below the line.",
            ),
            Mistake(
                mean_of_rows,
                "Each row has the same say, so a token of a short reply weighs more than one of a long reply.",
            ),
            Mistake(masked_sum, "That is the sum. The mean of a token's loss does not grow with the batch."),
        ),
    ),
    Exercise(
        name="fine_tuning.mend_prompt_loss",
        asks="Mend the targets so that only the reply is learned, from its first token to its end.",
        inputs=lambda: [(randint(50, (n,)), randint(50, (m,))) for n, m in ((5, 4), (1, 3), (9, 1))],
        reference=reply_targets,
        hint="Write ids and targets one above the other: below each token stands the one to follow it, or -100.",
        mistakes=(
            Mistake(
                targets_like(lambda prompt: prompt[1:], lambda prompt, reply: torch.cat([reply, ignored(1)])),
                "The mistake is still there: the model learns to write the customer's messages, too. "
                "At which places should nothing be learned?",
                untouched=True,
            ),
            Mistake(
                targets_like(
                    lambda prompt: ignored(len(prompt)), lambda prompt, reply: torch.cat([reply[1:], ignored(1)])
                ),
                "The first token of the reply is never learned. After which token is it to be said, "
                "and which target stands at that place?",
            ),
            Mistake(
                targets_like(lambda prompt: ignored(len(prompt)), lambda prompt, reply: reply),
                "Each token of the reply stands as the target of its own place: that teaches the model to say again "
                "what it has just read. (Some libraries shift the targets by themselves; this model does not.)",
            ),
            Mistake(
                targets_like(lambda prompt: ignored(len(prompt) - 1), lambda prompt, reply: reply),
                "You return fewer targets than there are tokens. What is the target of the very last place?",
            ),
            *(
                Mistake(
                    targets_like(
                        lambda prompt: ignored(len(prompt) - 1),
                        lambda prompt, reply, last=last: torch.cat([reply, last(prompt, reply)]),
                    ),
                    "All is right but the last place. The text is over there: is anything left to learn?",
                )
                for last in (lambda prompt, reply: prompt[:1], lambda prompt, reply: reply[-1:])
            ),
            Mistake(
                targets_like(
                    lambda prompt: ignored(len(prompt) - 1), lambda prompt, reply: torch.cat([reply[:-1], ignored(2)])
                ),
                "The end of the reply is not learned: this model will never stop.",
            ),
            Mistake(
                targets_like(lambda prompt: 0 * prompt[1:], lambda prompt, reply: torch.cat([reply, 0 * reply[:1]])),
                "Zero is a token like any other, and the model would learn to say it. Which number does the loss skip?",
            ),
        ),
    ),
    Exercise(
        name="fine_tuning.mend_new_head",
        asks="Mend the loading so that the read-out comes from the file, and what is really missing is counted.",
        inputs=lambda: [
            (file_of("ln_f.weight", "ln_f.bias", vocab_size=9, n_embd=6), randn(2, 3, 6)),
            (file_of("ln_f.weight", "ln_f.bias", "lm_head.weight", vocab_size=7, n_embd=4), randn(1, 4, 4)),
            (file_of("h.0.attn.bias", vocab_size=8, n_embd=4), randn(2, 2, 4)),
            (file_of("ln_f.weight", "ln_f.bias", "h.0.attn.bias", vocab_size=8, n_embd=4), randn(2, 2, 4)),
        ],
        reference=opened_by(tied, n_missing),
        hint=(
            "Two questions. Which weights of the model are random after the loading? "
            "And which of them should have been those of the token table?"
        ),
        mistakes=(
            Mistake(
                opened_by(as_it_is, n_unexpected),
                "The mistake is still there: two loads of one file give different logits. "
                "Which part is new each time, and why does nobody complain?",
                untouched=True,
            ),
            Mistake(
                opened_by(as_it_is, n_missing),
                "Now it is said that a weight is missing. But the read-out is still random: "
                "from where does a model with tied weights take it?",
            ),
            Mistake(
                opened_by(tied, n_unexpected),
                "The logits are right. You count what the file holds too much. What does it hold too little?",
            ),
            *(Mistake(opened_by(always_tied, tally), OWN_HEAD) for tally in (n_missing, n_unexpected)),
            Mistake(
                opened_by(tied, n_missing_in_file),
                "The logits are right. But a read-out that is filled from the token table is not missing any more.",
            ),
            Mistake(
                opened_by(as_it_is, n_missing, strict=True),
                "Now nothing goes by in silence, and nothing is opened either: "
                "the file lacks a weight that is there under another name.",
            ),
        ),
    ),
    Exercise(
        name="fine_tuning.mend_split",
        asks="Mend the split so that no phrasing is on both sides; return the numbers of the test dialogues.",
        inputs=lambda: [
            (in_phrasings(3, 0, 3, 1, 0, 4, 1, 1, 3, 2, 4, 0, 2, 5), 3),
            (in_phrasings(1, 1, 0, 1, 2, 0, 6, 2, 2, 6, 5, 5), 2),
        ],
        reference=held_out,
        hint="List the phrasings in the order in which they first appear. Which of them go to the test, and with whom?",
        mistakes=(
            Mistake(
                lambda dialogues, every: torch.arange(every - 1, len(dialogues), every),
                "The mistake is still there: a phrasing of the test stands in the training part as well. "
                "What should be counted off, if not the dialogues?",
                untouched=True,
            ),
            Mistake(
                lambda dialogues, every: chosen_phrasings(
                    dialogues, sorted(phrasings_of(dialogues))[every - 1 :: every]
                ),
                "No phrasing is on both sides now, but you count them in the order of the alphabet. "
                "In which order should they be?",
            ),
            Mistake(
                lambda dialogues, every: chosen_phrasings(dialogues, phrasings_of(dialogues)[::every]),
                "No phrasing is on both sides now, but you begin with the very first. Which is the one to begin with?",
            ),
            Mistake(
                only_first_of_each,
                "One dialogue of each test phrasing is in the test. Where are its sisters with the same phrasing?",
            ),
            Mistake(all_others, "These are the numbers of the training dialogues. The others were asked for."),
            Mistake(
                neighbours,
                "You see that two neighbours share a phrasing. What if they stand far from each other?",
            ),
        ),
    ),
    Exercise(
        name="fine_tuning.mend_pickle",
        asks="Mend the sending so that what travels is a safetensors file, for every model, and nothing in it can run.",
        inputs=to_send,
        reference=sent_and_opened,
        hint=(
            "Take the cases one by one: a plain model, one with a tensor under two names, one with a tensor that lies "
            "turned in memory. Who writes each of them, and who opens what has arrived?"
        ),
        mistakes=(
            Mistake(
                sent_as_something_else,
                "The mistake is still there: what you send is not a safetensors file. A pickle may run code in "
                "whatever program opens it, also in one less careful than yours. Which format holds only numbers?",
                untouched=True,
            ),
            Mistake(
                sent_with(lambda weight: weight),
                "A plain model passes. But one tensor may have two names, and another may lie turned in memory. "
                "What does the error ask for?",
            ),
            Mistake(
                sent_with(Tensor.clone),
                "Two names for one tensor are no problem now. But a copy lies in memory as its original does, "
                "also when that is turned.",
            ),
            Mistake(
                sent_with(Tensor.contiguous),
                "A turned tensor is no problem now. But there is a tensor with two names, which this format refuses.",
            ),
            Mistake(
                lambda model, receiver, path, send: tuple(parameter.detach() for parameter in model.parameters()),
                NOT_WHAT_ARRIVED,
            ),
            Mistake(
                lambda model, receiver, path, send: tuple(parameter.detach() for parameter in receiver.parameters()),
                "The receiver is as it was before: nothing has been put into it.",
            ),
        ),
    ),
)
