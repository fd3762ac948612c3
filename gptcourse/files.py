"""Files and directories that are written completely or not at all, and files of lines that survive a kill."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path


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
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write(unfinished)
    for part in (*sorted(unfinished.iterdir()), unfinished):
        fsync(part)
    if path.exists():
        shutil.rmtree(path)
    unfinished.rename(path)
    fsync(path.parent)


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file (a text in UTF-8) under another name, fsync it, and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    fsync(unfinished)
    unfinished.replace(path)


def append_line(path: Path, line: str) -> None:
    """Append one line in one piece, and fsync it before anything else happens."""
    with path.open("ab", buffering=0) as file:
        file.write(line.encode() + b"\n")
        os.fsync(file.fileno())


def whole_lines(path: Path) -> list[str]:
    """Return the lines of a file that `append_line` has written, and cut off a last one whose writer was killed."""
    if not path.exists():
        return []
    *lines, rest = path.read_bytes().split(b"\n")
    if rest:
        os.truncate(path, sum(len(line) + 1 for line in lines))
    return [line.decode() for line in lines]
