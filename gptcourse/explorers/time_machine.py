"""A time machine: the same prompt at every checkpoint of one small, recorded training run.

The checkpoints are those of `gptcourse.recordings`; what the heads are scored by is in `gptcourse.interpretability`.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from gptcourse.drawings import svg
from gptcourse.explorers.explorer import Explorer, choice, slider, text_box, wide
from gptcourse.explorers.heads import SHOWN, draw_pattern, token_label
from gptcourse.explorers.text_panel import prose
from gptcourse.generation import Sampling, generate
from gptcourse.recordings import Recording, time_machine

PROMPT = "I say: jWk?zQjWk?zQj"
SAMPLING = Sampling(temperature=0.8, seed=1)  # the same draws at every step: what changes is the model
NEW_TOKENS = 120
ROWS = 8  # next tokens shown


def time_machine_explorer(prompt: str = PROMPT, recording: Recording | None = None) -> Explorer:
    """Return sliders for the training step, layer and head, with what the model of that step makes of a prompt.

    All checkpoints read the prompt and write on once, when it is typed; a slider then only draws. `recording` is the
    run to look at: the one that comes with the course, if none is given.
    """
    recording = recording or time_machine()
    models = [recording.model(step) for step in recording.steps]
    read = lru_cache(1)(lambda ids: [_read(model, list(ids)) for model in models])
    layer, head = recording.best_head()
    controls = {
        "prompt": text_box("prompt", prompt),
        "step": wide(choice("step", recording.steps)),
        "layer": slider("layer", layer, 0, models[0].config.n_layer - 1),
        "head": slider("head", head, 0, models[0].config.n_head - 1),
    }

    def picture(prompt, step, layer, head):
        """Draw what the checkpoint of one step does."""
        tokenizer = recording.tokenizer
        typed = tuple(tokenizer.encode(prompt))
        if not typed:
            raise ValueError("The prompt is empty: type at least one character.")
        ids, labels = typed[:SHOWN], [token_label(tokenizer.decode([i])) for i in typed[:SHOWN]]
        readings = read(ids)
        patterns, probabilities, new = readings[recording.steps.index(step)]
        return (
            svg.paragraph(_numbers(recording.records[step]))
            + _charts(recording, step, layer, head)
            + svg.cut_note(SHOWN, len(typed), "tokens")
            + svg.side_by_side(
                draw_pattern(patterns[layer, head].tolist(), labels, layer, head, room=240),
                f'<div style="width:{svg.HALF}px">{_next_tokens(tokenizer, readings[-1][1], probabilities)}'
                f"{prose(tokenizer.decode(ids), tokenizer.decode(new))}</div>",
            )
        )

    hint = "Type your own, then press Enter: every checkpoint reads it, which takes a moment."
    return Explorer(controls, picture, hint=hint)


def _read(model, ids):
    """Return what one checkpoint makes of a prompt: weights (L, H, T, T), next-token probabilities (V,), new ids."""
    with torch.inference_mode():
        output = model(torch.tensor([ids]), output_attentions=True)
    patterns = torch.cat(output.attentions)
    return patterns, output.logits[0, -1].softmax(-1), generate(model, ids, NEW_TOKENS, SAMPLING)[len(ids) :]


def _next_tokens(tokenizer, at_the_end, now):
    """Draw the likeliest next tokens of this step, over a pale bar for the last step."""
    top = now.topk(ROWS).indices.tolist()
    rows = [(token_label(tokenizer.decode([i])), at_the_end[i].item(), now[i].item()) for i in top]
    headings = ("after the last", "at this step")
    return svg.bars(rows, description="Likeliest next tokens", headings=headings, left=60, width=svg.HALF)


def _numbers(record):
    return (
        f"step {record['step']:,}  ·  loss in nats per token: training {record['training_loss']:.2f}, held-out "
        f"{record['held_out_loss']:.2f}  ·  random tokens, first time {record['first_copy_loss']:.1f}, repeated "
        f"{record['second_copy_loss']:.1f}  ·  best induction score {max(map(max, record['induction'])):.2f}"
    )


def _charts(recording, step, layer, head):
    """Draw the losses and the induction scores over the kept steps, which stand side by side at equal distances."""
    steps, now, x_label = recording.steps, recording.records[step], "step (not to scale)"
    places, here = list(range(len(steps))), steps.index(step)
    ticks = {place: svg.short(steps[place]) for place in places[:: -(-len(places) // 6)]}
    frame = {"x_ticks": ticks, "width": svg.HALF, "height": 160}
    losses = {"random, repeated": recording.series("second_copy_loss"), "plays": recording.series("held_out_loss")}
    floor = math.log(recording.tokenizer.vocab_size), f"ln {recording.tokenizer.vocab_size}"
    scores = torch.tensor(recording.series("induction"))  # (steps, L, H)
    return svg.side_by_side(
        svg.line_chart(
            {name: (places, curve) for name, curve in losses.items()},
            labels=(x_label, "loss"),
            floor=floor,
            dot=(here, now["held_out_loss"]),
            **frame,
        ),
        svg.line_chart(
            {f"layer {layer}, head {head}": (places, scores[:, layer, head].tolist())},
            pale={"": (places, *scores.flatten(1).T.tolist())},
            labels=(x_label, "induction score"),
            y_range=(0.0, 1.0),
            dot=(here, now["induction"][layer][head]),
            **frame,
        ),
    )
