"""One runner for all recipes: pieces of work that are kept as soon as they are made, then the asset and its card.

    python recipes/NAME.py [PART …] [--processes N] [--work FOLDER]

A recipe has parts, each a function of a `Work`. What takes long in a part is a *piece*: a function of plain values,
whose result becomes a line of FOLDER/pieces.jsonl when it is made (default: recipes/work, which git ignores). Killed
and started again, a recipe makes only the missing pieces; after a change of its settings, give it another folder.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, StrictUndefined
from tqdm.auto import tqdm

from gptcourse.files import append_line, read_lines, reserve, write_file
from gptcourse.training import History

RECIPES = Path(__file__).parent
ASSETS = RECIPES.parent / "gptcourse" / "assets"
STOPPED = "Not all of it was made. Start the recipe again, and it goes on."


def tables(recipe: str, *names: str) -> list[Any]:
    """Return tables of settings out of recipes/settings/RECIPE.toml, in the order of their names."""
    found = tomllib.loads((RECIPES / "settings" / f"{recipe}.toml").read_text(encoding="utf-8"))
    return [found[name] for name in names]


def completed(history: History) -> History:
    """Return the history of a run that Ctrl-C has not stopped: half a run is no result. Raises SystemExit."""
    if history.stopped == "interrupted":
        raise SystemExit(STOPPED)
    return history


# ---- Pieces of work


@dataclass(frozen=True)
class Work:
    """Where a recipe keeps its pieces and writes its asset, and how many processes make pieces at once."""

    folder: Path
    asset: Path
    processes: int | None = None  # None: one for each core

    def piece(self, function: Callable, *inputs) -> Any:
        """Return what function(*inputs) returned the first time."""
        return self.pieces([(function, *inputs)])[0]

    def pieces(self, tasks: Iterable[tuple], record: Path | None = None) -> list:
        """Return the results of tasks (function, *inputs), in their order; those on record are not made again.

        Inputs and results are values that JSON can hold. `record` is another file than the folder's pieces.jsonl.
        Raises ValueError for a record whose lines are no pieces, and for one that another run is writing.
        """
        record = record or self.folder / "pieces.jsonl"
        todo = {json.dumps([function.__name__, *inputs]): (function, *inputs) for function, *inputs in tasks}
        with reserve(record):
            lines = read_lines(record, '{"piece": [', "piece of a recipe")
            found = {json.dumps(line["piece"]): line["result"] for line in lines}
            missing = {key: task for key, task in todo.items() if key not in found}
            for key, result in tqdm(self._made(missing), total=len(missing), unit="piece", disable=not missing):
                append_line(record, {"piece": json.loads(key), "result": result})
                found[key] = json.loads(json.dumps(result))  # as it will be read back
        return [found[key] for key in todo]

    def _made(self, tasks: dict[str, tuple]) -> Iterator[tuple[str, Any]]:
        """Yield the key and the result of each task when it ends, each made by one thread."""
        if self.processes == 1 or len(tasks) <= 1:
            n_threads = torch.get_num_threads()
            torch.set_num_threads(1)
            yield from ((key, function(*inputs)) for key, (function, *inputs) in tasks.items())
            torch.set_num_threads(n_threads)
            return
        pool = ProcessPoolExecutor(self.processes, get_context("spawn"), torch.set_num_threads, (1,))
        try:
            keys = {pool.submit(*task): key for key, task in tasks.items()}
            yield from ((keys[future], future.result()) for future in as_completed(keys))
        finally:
            pool.shutdown(cancel_futures=True)


def run(
    name: str,
    parts: Mapping[str, Callable[[Work], dict | None]],
    card: Callable[[dict[str, dict]], str] | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Make the parts that the command line names, or all of them, for the asset `name`.

    What a part returns becomes a JSON file of the asset, and `card` gets what all of these files hold. A part that
    returns None has written its own files.
    """
    parser = argparse.ArgumentParser(description=f"Make gptcourse/assets/{name}. Killed and started again, it goes on.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"out of {', '.join(parts)} (default: all)")
    parser.add_argument("--processes", type=int, help="runs made at once, one thread each (default: one for each core)")
    parser.add_argument("--work", type=Path, default=RECIPES / "work" / name, help="the folder of what is made already")
    options = parser.parse_args(argv)
    if unknown := set(options.parts) - set(parts):
        parser.error(f"there is no part {min(unknown)!r}: choose out of {', '.join(parts)}")
    work = Work(options.work, ASSETS / name, options.processes)
    for part in options.parts or parts:
        began = time.perf_counter()
        if (data := parts[part](work)) is not None:
            write_file(work.asset / f"{part}.json", json.dumps(data, ensure_ascii=False) + "\n")
        if card is not None:
            write_file(work.asset / "README.md", card(recorded(work.asset)))
        print(f"{part}: {time.perf_counter() - began:.0f} s", flush=True)


# ---- Cards


def recorded(asset: Path) -> dict[str, dict]:
    """Return what the JSON files of an asset hold, by their names."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(asset.glob("*.json"))}


def constants(names: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constants among the names of a recipe, such as globals(): the settings that its card tells."""
    return {name: value for name, value in names.items() if name.isupper()}


def fill(name: str, parts: Sequence[str] = (), **fields) -> str:
    """Return a card: recipes/cards/NAME.md, a Jinja template, filled with the fields and the functions below.

    With `parts`, each has a section, which is filled with the field of its name, a dict; or says that it is missing.
    """
    engine = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    engine.filters["f"] = format
    engine.globals |= {f.__name__: f for f in (finite, grouped, losses_by, ranked, spread, statistics.median)}
    head, *sections = (RECIPES / "cards" / f"{name}.md").read_text(encoding="utf-8").split("\n## ")
    for i, part in enumerate(parts):
        if part in fields:
            sections[i] = engine.from_string(sections[i]).render(fields | fields[part] | {"data": fields[part]})
        else:
            sections[i] = sections[i].partition("\n\n")[0] + "\n\nNot recorded.\n"
    if not parts:
        return engine.from_string("\n## ".join([head, *sections])).render(fields)
    return "\n## ".join([engine.from_string(head).render(fields), *sections])


def grouped(records: Iterable[dict], *columns: str) -> dict[Any, list[dict]]:
    """Return the records under each value of a column, or under each tuple of values of several, in their order."""
    groups: dict[Any, list[dict]] = {}
    for record in records:
        key = tuple(record[column] for column in columns)
        groups.setdefault(key if len(columns) > 1 else key[0], []).append(record)
    return groups


def losses_by(records: Iterable[dict], *columns: str) -> dict[Any, list[float]]:
    """Return the losses of all seeds for each value of the columns; a run without one diverged, and counts as inf."""
    return {key: [finite(run["loss"]) for run in runs] for key, runs in grouped(records, *columns).items()}


def ranked(records: Iterable[dict], loss: str = "loss") -> list[dict]:
    """Return the records with the lowest loss first, and those that diverged last."""
    return sorted(records, key=lambda record: finite(record[loss]))


def finite(value: float | None) -> float:
    """Return a number, inf for None: JSON knows no infinity."""
    return math.inf if value is None else value


def rounded(value):
    """Return numbers, and lists of them, to four decimals: the file stays small."""
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return round(value, 4) if isinstance(value, float) else value


def rounded_rows(rows: list[dict]) -> list[dict]:
    """Return rows whose numbers have four significant digits."""
    return [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def spread(values: Iterable[float | None], form: str = ".3f") -> str:
    """Return "median (lowest–highest)"; None is a run that diverged, or did not arrive."""
    numbers = sorted(map(finite, values))
    shown = (statistics.median(numbers), numbers[0], numbers[-1])
    middle, low, high = ("none" if value == math.inf else format(value, form) for value in shown)
    return f"{middle} ({low}–{high})" if len(numbers) > 1 else middle
