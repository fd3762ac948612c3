"""Controls above one picture that follows them: what the simpler explorers share."""

import ipywidgets as widgets


def live_picture(controls, picture):
    """Return the controls above one picture, drawn anew by ``picture()`` whenever one of them moves.

    ``controls`` is a dict from name to widget. The returned box keeps them in ``.controls`` and the drawing in
    ``.picture``.
    """
    box = widgets.VBox([*controls.values(), widgets.HTML()])
    box.controls, box.picture = controls, box.children[-1]

    def draw(_change=None):
        box.picture.value = picture()

    for control in controls.values():
        if isinstance(control, widgets.IntSlider | widgets.FloatSlider | widgets.SelectionSlider):
            control.style.description_width, control.layout.width = "120px", "440px"
        control.observe(draw, "value")
    draw()
    return box
