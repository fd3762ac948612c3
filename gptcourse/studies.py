"""What `search` and `tune` need of Optuna: axes as its distributions, and a study in a journal file that can go on.

Source: Akiba et al. (2019), "Optuna: A Next-generation Hyperparameter Optimization Framework".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcourse.files import expand, read_lines, reserve, signed, writing

if TYPE_CHECKING:
    import optuna


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Import Optuna, and keep its messages back meanwhile: the progress bar shows the trials. Also a decorator."""
    try:
        import optuna
    except ImportError as error:
        raise ImportError('A search needs Optuna: run pip install "gptcourse[tune]" first.') from error
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def distributions(space: Mapping[str, Any]) -> dict[str, Any]:
    """Return Optuna's distribution for each axis, of which a list is the choices. Raises ValueError for all else."""
    from optuna.distributions import BaseDistribution, CategoricalDistribution

    axes = {name: CategoricalDistribution(w) if isinstance(w, list | tuple) and w else w for name, w in space.items()}
    for name, axis in axes.items():
        if not isinstance(axis, BaseDistribution):
            raise ValueError(
                f"The space's {name!r} must be a list of choices or one of Optuna's distributions, such as "
                f"optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True), not {axis!r}."
            )
    return axes


@contextmanager
def open_study(path: str | Path | None, name: str, identity: dict) -> Iterator[optuna.Study]:
    """Give the study `name` in the file `path`, new or with its trials so far; None: in memory.

    Raises ValueError if it was begun with another `identity`, or the file is in use or no journal of Optuna's.
    """
    from optuna import create_study

    if "://" in str(path):
        raise ValueError(f"storage is {path!r}, but it must be the path of a file, or None.")
    path = path if path is None else expand(path)
    with nullcontext() if path is None else reserve(path) as lock:
        storage = None if path is None else _journal(path, lock)
        study = create_study(storage=storage, study_name=name, load_if_exists=True)
        if not study.user_attrs and not study.trials:
            study.set_user_attr(name, identity)
        before = study.user_attrs.get(name, {})
        if others := [part for part in identity if identity[part] != before.get(part)]:
            others = " and another ".join(others)
            raise ValueError(f"The {name} in {path} was begun with another {others}: choose another storage.")
        yield study


def _journal(path: Path, lock) -> optuna.storages.JournalStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    class Journal(JournalFileBackend):
        def append_logs(self, logs: list[dict]) -> None:
            with writing(path, "make room, then the same call goes on after the runs that were"):
                super().append_logs([signed(log | {"line": next(numbers)}) for log in logs])

    lines = read_lines(path, '{"op_code":', "line of Optuna's journal")
    numbers = count(len(lines))  # by which it is seen that a whole line is lost, or there twice
    if any(line.get("line", number) != number for number, line in enumerate(lines)):
        raise ValueError(f"Optuna cannot read {path}, as lines of it are lost: choose another file.")
    try:
        return JournalStorage(Journal(str(path), lock))
    except Exception as error:
        raise ValueError(f"Optuna cannot read {path}, as lines of it are lost: choose another file.") from error
