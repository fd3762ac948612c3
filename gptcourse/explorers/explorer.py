"""Controls and one picture that follows them: what every explorer is."""

from collections.abc import Callable, Sequence
from numbers import Real

import ipywidgets as widgets

from gptcourse.drawings import svg
from gptcourse.explorers.panel import CHOICE, DRAWN, Panel, answer_while_busy

NAME_WIDTH = "134px"
LARGEST = 2**53 - 1  # JavaScript counts no further


class Explorer(Panel):
    """Controls beside one picture, or above it where there is no room; drawn anew whenever one of them moves.

    ``controls`` is a dict from name to widget; ``picture`` is called with their values, by name, and returns HTML. A
    ValueError is shown as its sentence in the picture's place. ``hint`` is a line under the controls, and ``below``
    what stands under the picture. The controls stay in ``.controls``, the drawing in ``.picture.value``.
    """

    def __init__(self, controls: dict[str, widgets.Widget], picture: Callable[..., str], *, hint="", below=()):
        self.controls, self.drawing, self.picture, self.moving = controls, picture, widgets.HTML(), False
        grid = widgets.GridBox(list(controls.values()))
        grid.layout.grid_template_columns = "repeat(auto-fit, minmax(min(320px, 100%), 1fr))"
        self.reset = widgets.Button(description="reset", tooltip="Put all controls back to where they stood at first")
        self.reset.layout.width, self.reset.layout.flex, self.start = "70px", "none", self.values
        hints = [widgets.HTML(f'<div style="font-size:12px;opacity:0.75">{hint}</div>')] if hint else []
        shown = [self.picture, *(part for part in below if isinstance(part, widgets.HTML))]
        sides = widgets.VBox([grid, widgets.HBox([self.reset, *hints])]), widgets.VBox([self.picture, *below])
        super().__init__(sides, shown)
        self.layout.flex_flow = "row wrap"
        for side, width in zip(sides, (330, svg.WIDTH), strict=True):
            side.layout.flex, side.layout.min_width, side.layout.max_width = f"1 1 {width}px", "0", "700px"
        sides[1].add_class(DRAWN)
        for control in controls.values():
            control.observe(self._observed, "value")
        self.reset.on_click(self._reset)
        self.draw()
        inner = [child for part in below for child in getattr(part, "children", (part,))]
        answer_while_busy(self.reset, *controls.values(), *inner)

    @property
    def values(self) -> dict:
        """Where the controls stand, by name."""
        return {name: _exact(control.value) for name, control in self.controls.items()}

    def settings(self) -> str:
        """Return where the controls stand, as a line for the still picture."""
        named = {control.description: self.values[name] for name, control in self.controls.items()}
        return svg.paragraph("  ·  ".join(f"{name} {value}" for name, value in named.items() if name), opacity=svg.PALE)

    def draw(self) -> None:
        """Show the picture for where the controls stand: one string, and so one message to the page."""
        try:
            self.picture.value = self.drawing(**self.values)
        except ValueError as reason:
            self.picture.value = svg.paragraph(reason)

    def moved(self, _control: widgets.Widget) -> None:
        """Answer the move of one control."""
        self.draw()

    def move(self, **values) -> None:
        """Move several controls, and draw once."""
        self.moving = True
        try:
            for name, value in values.items():
                self.controls[name].value = value
        finally:
            self.moving = False
        self.draw()

    def _reset(self, _button) -> None:
        for name, value in self.start.items():  # one after the other: one that chooses a model moves others
            self.controls[name].value = value

    def _observed(self, change) -> None:
        answer_while_busy(change["owner"])  # a value set by a cell has spoken from the thread of the cells
        if not self.moving:
            self.moved(change["owner"])


def _exact(value):
    """Return 1.0 for the 1.0000000000000002 that a key press may send."""
    return float(f"{value:.12g}") if isinstance(value, float) else value


def slider(description: str, value: float, low: float, high: float, step: float = 1) -> widgets.Widget:
    """Return a slider from `low` to `high`, or as far as its start value asks for. Raises ValueError."""
    if not isinstance(value, Real) or not -LARGEST <= value <= LARGEST:
        raise ValueError(f"The slider “{description}” cannot stand at {value!r}: give a number below 2**53.")
    kind = widgets.IntSlider if isinstance(step, int) else widgets.FloatSlider
    return _named(kind(value, min=min(low, value), max=max(high, value), step=step), description)


def choice(description: str, options: Sequence, value=None) -> widgets.SelectionSlider:
    """Return a slider over `options` (values, or pairs of label and value); a number that is none of them joins them.

    Raises ValueError for a start value that is neither.
    """
    known = [option[1] if isinstance(option, tuple) else option for option in options]
    if value is not None and value not in known:
        if not isinstance(value, Real):
            raise ValueError(f"The slider “{description}” cannot stand at {value!r}: choose one of {known}.")
        options = sorted([*known, value])
    return _named(widgets.SelectionSlider(options=options, value=known[0] if value is None else value), description)


def buttons(description: str, options: Sequence, value=None) -> widgets.RadioButtons:
    """Return a row of buttons of which one is chosen, the first unless `value` says which."""
    # Radio buttons that the panel's style draws as one bar: of ToggleButtons nobody hears which one is chosen.
    row = _named(widgets.RadioButtons(options=options), description)
    row.value = row.value if value is None else value
    row.add_class(CHOICE)
    return row


def text_box(description: str, text: str, rows: int = 1) -> widgets.Widget:
    """Return a box to type in, which is read at Enter or, with several rows, when the cursor leaves it."""
    options = {} if rows == 1 else {"rows": rows}
    kind = widgets.Text if rows == 1 else widgets.Textarea
    return wide(_named(kind(text, continuous_update=False, **options), description))


def _named(control, description):
    control.description, control.style.description_width = description, NAME_WIDTH
    control.layout.width, control.layout.max_width = "98%", "345px"
    return control


def wide(control):
    """Let a control have a row of the grid to itself."""
    # Not grid_column: ipywidgets' page clears grid_area after setting it, and with it the column.
    control.layout.grid_area, control.layout.max_width = "auto / 1 / auto / -1", f"{svg.WIDTH}px"
    return control
