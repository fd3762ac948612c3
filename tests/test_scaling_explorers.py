"""The sliders of notebook 10: what they say, against the functions behind them."""

import re
from itertools import pairwise

import pytest
import torch

from gptcourse.collectives import in_threads
from gptcourse.drawings import scaling as drawings
from gptcourse.drawings import svg
from gptcourse.explorers import collective_explorer, device_explorer, forecast_explorer, law_explorer, pipeline_explorer
from gptcourse.model import GPTConfig
from gptcourse.scaling import SHARDED, ScalingLaw, device_memory, interval_score, ruler

CHINCHILLA = ScalingLaw(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28)
OTHER = ScalingLaw(E=1.0, A=20.0, alpha=0.4, B=50.0, beta=0.4)


def text_of(explorer):
    return re.sub(r"<[^>]+>", " ", explorer.picture.value)


@pytest.mark.parametrize("strategy", SHARDED)
def test_every_setting_shows_what_a_device_must_hold(strategy):
    explorer = device_explorer()
    controls = explorer.controls
    for name, value in {"size": "13B", "strategy": strategy, "devices": 64, "batch": 2, "checkpointing": True}.items():
        controls[name].value = value
    memory = device_memory(GPTConfig.gpt3("13B"), 2, 64, strategy, True)
    total = sum(memory.values())
    assert f"13B on 64 devices with {strategy}: {total / 1e9:.3g} GB" in text_of(explorer)
    assert ("which fits" in text_of(explorer)) == (total <= 80e9)
    widths = [float(w) for w in re.findall(r'width="([\d.]+)" height="26.0"', explorer.picture.value)]
    assert widths == pytest.approx([size / max(total, 100e9) * 632 for size in memory.values()], abs=0.1)


def test_the_law_shows_the_best_size_of_the_budget():
    explorer = law_explorer({"Chinchilla": CHINCHILLA, "other": OTHER})
    explorer.controls["power"].value = 20.0
    for name, law in {"Chinchilla": CHINCHILLA, "other": OTHER}.items():
        explorer.controls["law"].value = name
        n, d = law.compute_optimal(1e20)
        assert f"({d / n:.3g} a parameter), loss {law.loss(n, d):.3f}" in text_of(explorer)
        assert f"floor is {law.E:.3f}" in text_of(explorer)


def test_the_dot_stands_at_the_lowest_point_of_the_curve():
    explorer = law_explorer({"Chinchilla": CHINCHILLA})
    points = [
        tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', explorer.picture.value)[1].split()
    ]
    x, y = map(float, re.search(r'<circle cx="([\d.]+)" cy="([\d.]+)"', explorer.picture.value).groups())
    lowest = max(points, key=lambda point: point[1])  # SVG counts downwards
    assert (x, y) == pytest.approx(lowest, abs=0.1)


def test_what_is_above_the_picture_is_left_out_and_no_false_plateau_is_drawn():
    explorer = law_explorer({"Chinchilla": CHINCHILLA}, powers=(10, 24))
    for power in (10.0, 17.0, 24.0):
        explorer.controls["power"].value = power
        (curve,) = re.findall(r'points="([^"]+)"', explorer.picture.value)
        heights = [float(point.split(",")[1]) for point in curve.split()]
        lowest = heights.index(max(heights))
        assert 10 < len(heights) <= 81
        down, up = heights[: lowest + 1], heights[lowest:]
        assert all(a < b for a, b in pairwise(down)) and all(a > b for a, b in pairwise(up))


@pytest.mark.parametrize("powers", [(26, 12), (12, 12)])
def test_a_range_that_is_none_is_refused(powers):
    with pytest.raises(ValueError, match="a lowest power of ten below the highest"):
        law_explorer({"Chinchilla": CHINCHILLA}, powers=powers)


# ---- A ring, a pipeline, a game


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("collective", drawings.COLLECTIVES)
def test_the_ring_drawn_ends_with_what_the_collective_promises(collective, n):
    held, _ = drawings.held_after(collective, n, drawings.ring_steps(collective, n))
    every = set(range(n))
    for rank, row in enumerate(held):
        complete = [block == every for block in row]
        assert all(complete) if collective != "reduce-scatter" else complete[rank] and sum(complete) == 1


def test_the_ring_drawn_is_the_one_that_the_package_runs():
    """Each process marks its own numbers with a power of two; what a block holds is then read from its sum."""
    n = 4
    seen = []

    def look(values, group):
        send, blocks = group._send, []
        group._send = lambda tensor: (blocks.append(int(tensor)), send(tensor))
        group.all_reduce(values)
        return blocks

    results, _ = in_threads(look, [(2.0**r * torch.ones(n),) for r in range(n)])
    for step in range(drawings.ring_steps("all-reduce", n)):
        _, last = drawings.held_after("all-reduce", n, step + 1)
        held, _ = drawings.held_after("all-reduce", n, step)
        sent = [{r for r in range(n) if results[rank][step] >> r & 1} for rank in range(n)]
        seen.append([held[rank][last[(rank + 1) % n]] == sent[rank] for rank in range(n)])
    assert all(all(row) for row in seen)


def test_the_explorers_of_ring_and_pipeline_say_their_numbers():
    ring = collective_explorer()
    ring.move(processes=8, step=14)
    assert "64 of 64 blocks hold all" in ring.picture.value and "sent 1.75 times its vector" in ring.picture.value
    pipeline = pipeline_explorer()
    pipeline.move(stages=8, portions=21)
    assert "idle 25% of the time" in pipeline.picture.value


@pytest.mark.parametrize("stages, portions", [(1, 3), (4, 8), (3, 1)])
def test_no_gpu_of_the_pipeline_drawn_does_two_things_at_once_or_starts_before_its_input(stages, portions):
    drawing = drawings.pipeline(stages, portions)
    color = f"({re.escape(svg.BLUE)}|{re.escape(svg.PURPLE)})"
    box = rf'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"[^>]*fill="{color}"'
    boxes = re.findall(box, "".join(drawing.parts))
    assert len(boxes) == 2 * stages * portions
    rows = {}
    for x, y, width, _ in boxes:
        rows.setdefault(float(y), []).append((float(x), float(x) + float(width)))
    unit = 590 / (3 * (stages - 1 + portions))
    for number, row in enumerate(rows.values()):
        row.sort()
        assert all(a[1] <= b[0] + 0.2 for a, b in pairwise(row))
        assert row[0][0] == pytest.approx(78 + unit * number, abs=0.1)
        assert sum(end - begin for begin, end in row) == pytest.approx(3 * unit * portions, rel=0.01)
    assert max(end for row in rows.values() for _, end in row) == pytest.approx(668, abs=0.2)


def test_drawings_of_what_cannot_be_are_refused():
    for drawing in (lambda: drawings.ring("broadcast", 4, 1), lambda: drawings.ring("all-reduce", 1, 0)):
        with pytest.raises(ValueError, match="A ring of two or more"):
            drawing()
    with pytest.raises(ValueError, match="one GPU and one portion"):
        drawings.pipeline(0, 1)
    assert "3072 columns" in drawings.split_mlp(768, 3072).description


def test_the_game_takes_no_more_than_the_budget_and_scores_the_interval():
    runs = [
        {"shape": f"{n} × 16", "parameters": 1e4 * n, "tokens": d, "flops_per_token": 6e4 * n, "loss": 2 / n + 1e4 / d}
        for n in (1, 2)
        for d in (100_000, 200_000)
    ]
    hidden = runs[-1] | {"shape": "9 × 16", "parameters": 9e4, "tokens": 400_000, "flops_per_token": 5e5, "loss": 1.02}
    game = forecast_explorer(runs, hidden, share=0.2)
    assert "1.02" not in game.picture.value
    game.move(**{"1 × 16": 100_000, "2 × 16": 200_000})
    assert "That costs 42 GFLOP, and you have 40 GFLOP" in text_of(game)
    game.move(**{"1 × 16": 0, "low": 1.0, "high": 1.01, "score": True})
    assert f"Your score: {interval_score(1.0, 1.01, 1.02):.3f}" in text_of(game)
    assert "A ruler needs" in text_of(game)
    affordable = forecast_explorer(runs, hidden, share=1.0)
    affordable.move(**{"1 × 16": 200_000, "2 × 16": 200_000, "score": True})
    assert "2 × 16: 1.100, 1.050" in text_of(affordable)
    guess = ruler([(r["parameters"], r["tokens"], r["loss"]) for r in runs], 9e4, 400_000)
    assert f"A ruler along your runs says {guess:.3f}" in text_of(affordable)
