"""Files and directories that are written completely or not at all, and files of lines that survive a kill."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

ASSETS = Path(str(resources.files("gptcourse") / "assets"))  # what was trained or recorded for the course

UNFINISHED = ".unfinished-"  # what is written into a directory begins so until it is whole


def expand(path: str | os.PathLike) -> Path:
    """Return a path with its "~" replaced by a home directory. Raises ValueError where there is no such directory."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path} lies in no home directory: write the path without ~.") from error
    except TypeError as error:
        raise ValueError(f"{path!r} is no path of a file or directory.") from error


def fsync(path: Path) -> None:
    """fsync a file or directory, so that a power cut cannot lose it."""
    if os.name == "nt" and path.is_dir():  # Windows opens no directories
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_directory(path: Path, write: Callable[[Path], None]) -> None:
    """Make a directory that `write(folder)` fills, in the place of any that is there.

    It is written under another name, fsynced and renamed: a rename happens completely or not at all (POSIX `rename`).
    When `write` raises, or the disk is full, nothing is left of it.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        write(unfinished)
        for part in (*sorted(unfinished.iterdir()), unfinished):
            fsync(part)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if path.exists():
        shutil.rmtree(path)
    unfinished.rename(path)
    fsync(path.parent)


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file (a text in UTF-8) under another name, fsync it, and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{uuid4().hex}.unfinished")  # of this call alone: others may write too
    try:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        fsync(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def writing(what: Path, advice: str = "make room, or choose another place") -> Iterator[None]:
    """Raise ValueError, with one sentence that names a file or directory, where it cannot be written."""
    try:
        yield
    except (OSError, ValueError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__  # of what was written inside of it
        if not isinstance(cause, OSError):
            raise
        raise ValueError(f"{what} cannot be written ({cause.strerror or cause}): {advice}.") from cause


def write_files(directory: Path, write: Callable[[Path], None], instead_of: Iterable[str] = ()) -> None:
    """Put the files that `write(folder)` makes into a directory once all of them are whole.

    They take the place of those of their names, and of the names `instead_of`. config.json goes first and comes last,
    so that a kill leaves no mixture that opens as a model. Raises ValueError if they cannot be written, or if another
    process writes there; what the directory holds is then as it was.
    """
    with _only_writer(directory), writing(directory):
        with TemporaryDirectory(dir=directory, prefix=UNFINISHED, ignore_cleanup_errors=True) as folder:
            new, old = Path(folder, "new"), Path(folder, "old")
            new.mkdir()
            old.mkdir()
            write(new)
            for path in new.iterdir():
                fsync(path)
            _exchange(directory, new, old, instead_of)
        fsync(directory)


def _exchange(directory: Path, new: Path, old: Path, instead_of: Iterable[str]) -> None:
    """Move what stands in the way of the new files out of a directory, and them in; or leave all as it was."""
    names = sorted((path.name for path in new.iterdir()), key="config.json".__eq__)
    if folders := [name for name in names if (directory / name).is_dir() > (new / name).is_dir()]:
        raise IsADirectoryError(errno.EISDIR, f"{folders[0]} is a folder")  # nobody's is removed for a file
    try:
        for name in [*names[::-1], *{*instead_of} - {*names}]:
            if (directory / name).exists():
                (directory / name).replace(old / name)
        for name in names:
            (new / name).replace(directory / name)
    except BaseException:  # Ctrl-C, too
        for name in [name for name in names if not (new / name).exists()]:
            (directory / name).replace(new / name)
        for path in old.iterdir():
            path.replace(directory / path.name)
        raise


@contextmanager
def _only_writer(directory: Path) -> Iterator[None]:
    """Make a directory and lock it; what a killed process had begun to write there is removed."""
    path = directory / ".writing"
    with lock(path, directory):
        for left in directory.glob(f"{UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes no file that is open: there it stays, and is used again
                path.unlink()


def read_json(path: Path) -> Any:
    """Return what a JSON file holds. Raises ValueError, with one sentence, if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}): save, download or install it again.") from error


def digest(value: Any) -> str:
    """Return the SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def signed(entry: dict) -> dict:
    """Return an object with its own SHA-256, by which `read_lines` sees that a line is as it was written."""
    return entry | {"sha256": digest(entry)}


def append_line(path: Path, entry: dict) -> None:
    """Append an object as one line, signed, and fsync it before anything else happens. Raises OSError if it is full."""
    with path.open("ab") as file:  # buffered: unbuffered, a full disk would take half a line without a word
        file.write(json.dumps(signed(entry)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, begin: str, kind: str) -> list[dict]:
    """Return the JSON objects in a file of lines that begin with `begin`, and cut off a last line that is half written.

    Raises ValueError for a file of another `kind` or an altered line, and leaves it as it is. Lines of earlier versions
    are not signed.
    """
    *lines, rest = path.read_bytes().split(b"\n")
    start, objects = begin.encode(), []
    for number, line in enumerate(lines, start=1):
        with suppress(ValueError, RecursionError):
            entry = json.loads(line) if line.startswith(start) else {"sha256": ""}
            objects += [entry] if entry.pop("sha256", None) in (None, digest(entry)) else []
        if len(objects) < number:
            raise ValueError(f"Line {number} of {path} is no {kind}, or was altered: choose another file.")
    if not start.startswith(rest[: len(start)]):
        raise ValueError(f"The last line of {path} is no {kind}: choose another file.")
    if rest:
        os.truncate(path, path.stat().st_size - len(rest))
    return objects


def lock(path: Path, what: Path):
    """Take the lock file `path` of a file or directory `what`; return the context that holds it. Raises ValueError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path, thread_local=False).acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"{what} is in use by another run: wait until it has ended, or choose another.") from error
    except OSError as error:
        raise ValueError(f"{what} cannot be written ({error.strerror}): choose another.") from error


def reserve(path: Path):
    """Make a file for lines, if there is none, and lock it; return the context that holds it. Raises ValueError."""
    holder = lock(path.with_name(f".{path.name}.lock"), path)
    try:
        path.open("ab").close()
    except OSError as error:
        holder.lock.release()  # or whoever mends the file finds it in use
        raise ValueError(f"{path} cannot be written ({error.strerror}): choose another file.") from error
    return holder
