"""Measure the course side by side with what else its users could take, and write README's tables.

    python -m benchmarks                          every part, as installed first, then with one thread
    python -m benchmarks training generation      only these
    python -m benchmarks readme                   write README's tables from benchmarks/results, measure nothing

    --nanogpt PATH   a clone of nanoGPT to measure against; without, its model as rebuilt in benchmarks/peers.py
    --rounds N       rounds of each part; without, as many as the part finds enough
    --quick          the smallest sizes, one round; prints and keeps nothing: does it work?

Each run of a part is a process of its own, since libraries read their variables once, when they are loaded.
Nothing here asserts anything about time. A part that fails or misses something it needs does not stop the others.
"""

import argparse
import importlib
import subprocess
import sys
import time

from benchmarks import results
from benchmarks.timing import THREADS, Options, as_installed

INSTALLED, ONE_THREAD = "as installed", "with one thread"
BOTH_WAYS = ("generation", "training")
PARTS = ("startup", "generation", "training", "growth", "loss", "notebooks", "sliders", "site")


def here(part, way, options):
    """Measure a part in this process: show its tables, and keep them unless everything was tiny."""
    run = results.machine()  # before: what is in use then, others use
    if run["others"] > results.QUIET:
        print(f"Other processes take {run['others']:.0%} of the processors, and the numbers will show it.", flush=True)
    begin = time.perf_counter()
    how, tables = importlib.import_module(f"benchmarks.{part}").measure(options)
    run |= {"how": how, "minutes": round((time.perf_counter() - begin) / 60, 1)}
    print(results.content(part, {way: run | {"tables": tables}}), flush=True)
    if not options.quick:
        results.keep(part, way, run | {"tables": tables})


def plan(parts):
    """Return the runs to make, in order: pairs of part and way."""
    both = [part for part in parts if part in BOTH_WAYS]
    return [(part, INSTALLED) for part in parts] + [(part, ONE_THREAD) for part in both]


def run_all(parts, arguments):
    """Make each run in a process of its own, and return those that failed."""
    failed = []
    for number, (part, way) in enumerate(runs := plan(parts), 1):
        print(f"\n== {number} of {len(runs)}: {part}, {way}, {time.strftime('%H:%M')}\n", flush=True)
        variables = dict.fromkeys(THREADS, "1") if way == ONE_THREAD else {}
        command = [sys.executable, "-m", "benchmarks", part, *arguments, "--here", way]
        if subprocess.run(command, env=as_installed() | variables).returncode:
            failed.append(f"{part}, {way}")
    return failed


def main(arguments=None):
    """Run the parts that are named, or all, and write README; return 1 if one has failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        choices=[*PARTS, "readme", []],
        help=f"{', '.join(PARTS)}, readme; default: all",
    )
    parser.add_argument("--rounds", type=int, help="rounds of each part")
    parser.add_argument("--nanogpt", help="the folder of a clone of nanoGPT")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; prints and keeps nothing")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    options = Options(given.rounds, given.nanogpt, given.quick)
    if given.here:
        return here(given.parts[0], given.here, options)
    parts, rest = given.parts or list(PARTS), sys.argv[1:] if arguments is None else arguments
    failed = run_all([p for p in parts if p != "readme"], [word for word in rest if word not in (*PARTS, "readme")])
    if not given.quick:
        results.write_readme()
    if failed:
        print(f"\nFailed, with their old numbers kept: {'; '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
