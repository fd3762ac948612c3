"""How long a learner waits at first: whole processes, from their start to their end, in turns.

The first picture is that of the decoding explorer on the bundled model, as in notebook 00, computed and there to be
shown; the browser's part is in `python -m benchmarks sliders`.
"""

import subprocess
import sys
import time

from benchmarks.timing import as_installed, in_turns, medians, spread

ROUNDS = 9
PICTURE = """
from gptcourse.explorers import decoding_explorer
from gptcourse.pretrained import load_pretrained
assert decoding_explorer(*load_pretrained("shakespeare-5m"), "KING:\\n").picture.value
"""
PROGRAMS = {
    "Python alone": "pass",
    "import gptcourse": "import gptcourse",
    "import torch": "import torch",
    "from gptcourse.model import GPT": "from gptcourse.model import GPT",
    "train, generate, load_pretrained": "import gptcourse.training, gptcourse.generation, gptcourse.pretrained",
    "from transformers import GPT2LMHeadModel": "from transformers import GPT2LMHeadModel",
    "the first picture of an explorer": PICTURE,
}


def measure(options, programs=PROGRAMS):
    """Return how it was measured, and the seconds of each program."""

    def job(program):
        return lambda: subprocess.run([sys.executable, "-c", program], check=True, env=as_installed())

    jobs = {name: job(program) for name, program in programs.items()}
    seconds = in_turns(jobs, options.take(ROUNDS), time.perf_counter)  # of other processes: the clock on the wall
    rows = [{"a process that does": name, "seconds": spread(values)} for name, values in seconds.items()]
    return f"{medians(options.take(ROUNDS))} All files had been read once before.", {"": rows}
