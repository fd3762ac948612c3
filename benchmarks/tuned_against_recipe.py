"""Train nanoGPT's CPU recipe and the tuned run of the same model once more, and print what the tuned one saves.

    python -m benchmarks tuned_against_recipe [seeds]

One seed takes some minutes on one core; the recorded comparison has three. Both runs are those of
gptcourse/assets/tuning/recipe.json, and both losses are measured on the held-out text that no setting was chosen on.
Seconds are of training alone, without evaluation, each run's own processor time.
"""

import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
from runner import ASSETS
from tuning_card import comparison
from tuning_experiments import MODEL, RECIPE, TUNED, configs, read_text, step_ratios

from gptcourse.model import GPT
from gptcourse.training import evaluate, train


def measure(text, shape, config):
    """Return (held-out loss, seconds) of one run."""
    torch.manual_seed(config.seed)
    model = GPT(shape)
    begin = time.process_time()
    train(model, text.train, config)
    seconds = time.process_time() - begin
    return evaluate(model, text.compare), seconds


def main():
    """Print a row for each seed, then the medians beside the recorded ones."""
    n_seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    torch.set_num_threads(1)
    text, recorded = read_text(), comparison(json.loads((ASSETS / "tuning" / "recipe.json").read_text()))
    settings = TUNED | {"tokens": recorded["budget"]}
    tuned_model, tuned = configs(settings)
    print(f"recipe: {RECIPE.steps:,} steps; tuned: {tuned.steps:,} steps, {recorded['steps']:.2f} of them")
    print(f"tokens: {recorded['tokens']:.2f} of the recipe's")
    print("seed  recipe's loss  tuned loss  tuned / recipe, seconds")
    ratios = []
    for seed in range(n_seeds):
        both = (MODEL, RECIPE), (tuned_model, tuned)
        runs = [measure(text, shape, replace(config, seed=seed)) for shape, config in both]
        (loss, seconds), (tuned_loss, tuned_seconds) = runs
        ratios.append(tuned_seconds / seconds)
        print(f"{seed:>4}  {loss:>13.4f}  {tuned_loss:>10.4f}  {ratios[-1]:.3f}", flush=True)
    in_turns = step_ratios({"recipe": {}, "tuned": settings}, 9, 12)["tuned"] * tuned.steps / RECIPE.steps
    print(f"median {statistics.median(ratios):.3f}; steps in turns {in_turns:.3f}; recorded {recorded['seconds']:.3f}")


if __name__ == "__main__":
    main()
