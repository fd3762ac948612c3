"""A time machine: the same prompt at every checkpoint of one small, recorded training run.

The run was made by recipes/time_machine.py; its checkpoints lie in gptcourse/assets/time-machine, and each of them
opens with `GPT.load`. What the heads are scored by is explained in `gptcourse.explorers.heads`.
"""

from __future__ import annotations

import json
import math
import re
from functools import cache
from importlib import resources
from pathlib import Path

import ipywidgets as widgets
import torch

from gptcourse.explorers import svg
from gptcourse.explorers.decoding import prose
from gptcourse.explorers.heads import SHOWN, draw_pattern, token_label
from gptcourse.generation import Sampling, generate
from gptcourse.model import GPT
from gptcourse.tokenizers import load_tokenizer

PROMPT = "I say: jWk?zQjWk?zQj"
SAMPLING = Sampling(temperature=0.8, seed=1)  # the same draws at every step: what changes is the model
NEW_TOKENS = 120
ROWS = 8  # next tokens shown
HALF = 334  # the width of a chart: two of them stand side by side


class Recording:
    """A recorded run: `steps`, `records` (what was measured at each of them), `tokenizer` and `settings`.

    The shapes and units of a record are those of the card, README.md, in the same folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        run = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        self.settings = run["settings"]
        self.records = {record["step"]: record for record in run["checkpoints"]}
        self.tokenizer = load_tokenizer(self.folder)

    @property
    def steps(self) -> list[int]:
        """The steps that were kept, in order; step 0 is the model before training."""
        return list(self.records)

    def model(self, step: int) -> GPT:
        """Open the model as it was after `step` steps. Raises ValueError for a step that was not kept."""
        if step not in self.records:
            raise ValueError(f"Step {step} was not kept: choose one of {', '.join(map(str, self.steps))}.")
        return GPT.load(self.folder / f"step-{step:05d}")

    def series(self, name: str) -> list[float]:
        """Return one number of the records for every step, such as series("held_out_loss")."""
        return [record[name] for record in self.records.values()]

    def best_head(self) -> tuple[int, int]:
        """Return (layer, head) of the head with the highest induction score at the last step."""
        scores = torch.tensor(self.records[self.steps[-1]]["induction"])
        return divmod(int(scores.argmax()), scores.shape[1])


@cache
def time_machine() -> Recording:
    """Open the run that comes with the course."""
    return Recording(str(resources.files("gptcourse") / "assets" / "time-machine"))


def time_machine_explorer(prompt: str = PROMPT, recording: Recording | None = None) -> TimeMachineExplorer:
    """Return sliders for the training step, layer and head, with what the model of that step makes of a prompt.

    All checkpoints read the prompt and write on once, when it is typed; a slider then only draws. `recording` is the
    run to look at: the one that comes with the course, if none is given.
    """
    return TimeMachineExplorer(prompt, recording or time_machine())


class TimeMachineExplorer(widgets.VBox):
    """The widget that `time_machine_explorer` returns."""

    def __init__(self, prompt: str, recording: Recording):
        self.recording = recording
        self.models = [recording.model(step) for step in recording.steps]
        self.controls = _controls(prompt, recording, self.models[0].config)
        self.picture = widgets.HTML()
        hint = widgets.HTML(
            '<div style="padding-left:75px;font-size:12px;opacity:0.7;line-height:1.4">'
            "Type your own, then press Enter: every checkpoint reads it, which takes a moment.</div>"
        )
        grid = widgets.GridBox(
            [self.controls["layer"], self.controls["head"]],
            layout=widgets.Layout(grid_template_columns="repeat(auto-fit, 340px)"),
        )
        super().__init__([self.controls["prompt"], hint, self.controls["step"], grid, self.picture])
        self.controls["prompt"].observe(self._new_prompt, "value")
        for name in ("step", "layer", "head"):
            self.controls[name].observe(self._draw, "value")
        self._new_prompt()

    def _new_prompt(self, _change=None):
        """Let every checkpoint read the prompt and write on, once for all positions of the sliders."""
        tokenizer = self.recording.tokenizer
        try:
            ids = list(tokenizer.encode(self.controls["prompt"].value))
            if not ids:
                raise ValueError("The prompt is empty: type at least one character.")
        except ValueError as reason:  # nothing typed, or a character that the tokenizer does not know
            self.readings, self.picture.value = None, svg.paragraph(reason)
            return
        self.note = f"The first {SHOWN} of your {len(ids)} tokens are read and shown." if len(ids) > SHOWN else ""
        ids = ids[:SHOWN]
        self.prompt, self.labels = tokenizer.decode(ids), [token_label(tokenizer.decode([i])) for i in ids]
        self.readings = [_read(model, ids) for model in self.models]
        self._draw()

    def _draw(self, _change=None):
        if self.readings is None:
            return
        step, layer, head = (self.controls[name].value for name in ("step", "layer", "head"))
        patterns, probabilities, new = self.readings[self.recording.steps.index(step)]
        left = 24 + 7 * max(map(len, self.labels))
        pattern = draw_pattern(patterns[layer, head].tolist(), self.labels, f"layer {layer}, head {head}", 18, left)
        # One string, and so one message to the page.
        self.picture.value = (
            svg.paragraph(_numbers(self.recording.records[step]))
            + _side_by_side(_loss_chart(self.recording, step), _score_chart(self.recording, step, layer, head))
            + (svg.paragraph(self.note) if self.note else "")
            + _side_by_side(pattern, self._next_tokens(probabilities))
            + prose(self.prompt, self.recording.tokenizer.decode(new))
        )

    def _next_tokens(self, now):
        """Draw the likeliest next tokens of this step, over a pale bar for the last step."""
        at_the_end, top = self.readings[-1][1], now.topk(ROWS).indices.tolist()
        labels = [token_label(self.recording.tokenizer.decode([token])) for token in top]
        left, head, step, room = 16 + 8 * max(map(len, labels)), 44, 23, 130
        scale = room / max(now.max().item(), at_the_end[top].max().item())
        parts = [
            svg.text(0, 14, "next token", size=12, bold=True),
            svg.text(0, 32, "at this step", size=11, color=svg.BLUE, bold=True),
            svg.text(76, 32, "pale: after the last", size=11, opacity=0.75),
        ]
        for row, (token, label) in enumerate(zip(top, labels, strict=True)):
            y, before, after = head + step * row, at_the_end[token].item(), now[token].item()
            parts.append(svg.text(left - 8, y + 15, label, anchor="end", mono=True))
            parts.append(svg.rect(left, y + 2, before * scale, step - 5, "currentColor", 0.18))
            parts.append(svg.rect(left, y + 6, after * scale, step - 13, svg.BLUE))
            parts.append(svg.text(left + room + 60, y + 15, svg.percent(after), anchor="end", size=12))
        return svg.picture(parts, head + step * ROWS, "Likeliest next tokens at this step", left + room + 62)


def _read(model, ids):
    """Return what one checkpoint makes of a prompt: weights (L, H, T, T), next-token probabilities (V,), new ids."""
    with torch.inference_mode():
        output = model(torch.tensor([ids]), output_attentions=True)
    patterns = torch.cat(output.attentions)
    return patterns, output.logits[0, -1].softmax(-1), generate(model, ids, NEW_TOKENS, SAMPLING)[len(ids) :]


def _numbers(record):
    return (
        f"step {record['step']:,}  ·  loss in nats per token: training {record['training_loss']:.2f}, held-out "
        f"{record['held_out_loss']:.2f}  ·  random tokens, first time {record['first_copy_loss']:.1f}, repeated "
        f"{record['second_copy_loss']:.1f}  ·  best induction score {max(map(max, record['induction'])):.2f}"
    )


def _chart(recording, step, series, **options):
    """Draw curves over the kept steps, which stand side by side at equal distances."""
    places = list(range(len(recording.steps)))
    ticks = {place: svg.short(recording.steps[place]) for place in places[:: -(-len(places) // 6)]}
    options["pale"] = [(places, curve) for curve in options.get("pale", ())]
    here, value = places[recording.steps.index(step)], options.pop("value")
    return svg.line_chart(
        {name: (places, curve) for name, curve in series.items()},
        x_label="step (not to scale)",
        x_ticks=ticks,
        dot=(here, value),
        width=HALF,
        height=205,
        **options,
    )


def _loss_chart(recording, step):
    vocab_size = recording.tokenizer.vocab_size
    series = {"training": recording.series("training_loss"), "held-out": recording.series("held_out_loss")}
    value = recording.records[step]["held_out_loss"]
    return _chart(
        recording,
        step,
        series,
        value=value,
        y_label="loss",
        floor=(math.log(vocab_size), f"ln {vocab_size}"),
        description=f"Loss by step; held-out {value:.2f} at step {step}",
    )


def _score_chart(recording, step, layer, head):
    scores = torch.tensor(recording.series("induction"))  # (steps, L, H)
    value = recording.records[step]["induction"][layer][head]
    return _chart(
        recording,
        step,
        {f"layer {layer}, head {head}": scores[:, layer, head].tolist()},
        value=value,
        pale=scores.flatten(1).T.tolist(),
        y_label="induction score",
        y_range=(0.0, 1.0),
        description=f"Induction score by step; layer {layer}, head {head} has {value:.2f} at step {step}",
    )


def _side_by_side(*pictures):
    """Set pictures beside one another at their own size; what does not fit goes below."""
    widths = [re.search(r'viewBox="0 0 ([\d.]+)', picture)[1] for picture in pictures]
    columns = "".join(
        f'<div style="flex:0 0 {width}px;max-width:100%">{picture}</div>'
        for width, picture in zip(widths, pictures, strict=True)
    )
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px;max-width:{svg.WIDTH}px;margin-top:6px">{columns}</div>'


def _controls(prompt, recording, config):
    style, (layer, head) = {"description_width": "65px"}, recording.best_head()
    wide = {"layout": widgets.Layout(width="335px"), "style": style}
    full = {"layout": widgets.Layout(width="680px", max_width="98%"), "style": style}
    return {
        # Read at Enter: each reading is many forward passes.
        "prompt": widgets.Text(prompt, description="prompt", continuous_update=False, **full),
        "step": widgets.SelectionSlider(options=recording.steps, description="step", **full),
        "layer": widgets.IntSlider(layer, min=0, max=config.n_layer - 1, description="layer", **wide),
        "head": widgets.IntSlider(head, min=0, max=config.n_head - 1, description="head", **wide),
    }
