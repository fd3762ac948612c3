"""Run benchmarks as a learner has them, with all cores and no variable set, and then again with one thread.

    python -m benchmarks                          generation and training
    python -m benchmarks generation [rounds]      one of them

These choose their threads themselves and run once:

    python -m benchmarks notebooks [--print]
    python -m benchmarks sliders [presses]
    python -m benchmarks site                     the page without a kernel, once tools/site.py has made it

Each setting is a process of its own, since libraries read these variables once, when they are loaded.
"""

import os
import subprocess
import sys

BOTH_WAYS = ("generation", "training")
ONE_WAY = ("sliders", "notebooks", "site")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
KERNELS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # set on some machines; a learner has none


def run(name, arguments, variables):
    """Run one benchmark in a process without the variables above, but with the given ones."""
    clean = {key: value for key, value in os.environ.items() if key not in THREADS + KERNELS}
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    return subprocess.run(command, env=clean | variables).returncode


def main(arguments):
    """Run the benchmark that is named, or generation and training."""
    names, rest = (arguments[:1], arguments[1:]) if arguments else (BOTH_WAYS, [])
    if not set(names) <= {*BOTH_WAYS, *ONE_WAY}:
        sys.exit(f"There is no benchmark {names[0]!r}: choose one of {', '.join(BOTH_WAYS + ONE_WAY)}.")
    failed = 0
    for name in names:
        failed |= run(name, rest, {})
        if name in BOTH_WAYS:
            failed |= run(name, rest, dict.fromkeys(THREADS, "1"))
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
