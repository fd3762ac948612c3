"""Predict, then reveal: a question that keeps its answer until the learner has committed to a guess."""

from html import escape
from string import ascii_lowercase

import ipywidgets as widgets
from IPython.display import display


def predict(question, options, answer, explanation):
    """Ask ``question`` and return a row of buttons; a click on one shows ``answer`` and ``explanation``.

    The question and its options are printed as Markdown above the buttons, so they can be read where no widget runs
    (on GitHub, on paper); math between dollar signs works in all three texts. ``options`` are two to eight strings
    and ``answer`` is one of them. Nothing of the answer is sent to the browser before the click. The returned
    ``VBox`` has ``.buttons`` and ``.reply`` (an HTML widget, empty at first).
    """
    options = _checked(options, answer)
    letters = ascii_lowercase[: len(options)]
    buttons = [
        widgets.Button(description=letter, tooltip=f"I guess {letter}", layout=widgets.Layout(width="52px"))
        for letter in letters
    ]
    reply = widgets.HTMLMath()
    right = options.index(answer)

    def reveal(button):
        """Close the question and show the answer beside the guess."""
        guess = buttons.index(button)
        for other in buttons:
            other.disabled = True
        button.button_style = "danger"
        buttons[right].button_style = "success"
        verdict = (
            f"✓ {letters[right]} it is." if guess == right else f"You guessed {letters[guess]}; it is {letters[right]}."
        )
        reply.value = (
            '<div style="line-height:1.5;max-width:680px;white-space:pre-wrap">'
            f"<b>{verdict}</b> {escape(explanation, quote=False)}</div>"
        )

    for button in buttons:
        button.on_click(reveal)
    lines = [f"({letter}) {option}" for letter, option in zip(letters, options, strict=True)]
    markdown = "**Predict.** " + question + "\n\n" + "  \n".join(lines)
    display({"text/markdown": markdown, "text/plain": "\n".join([f"Predict. {question}", *lines])}, raw=True)
    box = widgets.VBox([widgets.HBox([widgets.Label("Your guess:"), *buttons]), reply])
    box.buttons, box.reply = buttons, reply
    return box


def _checked(options, answer):
    """Return the options as strings; ValueError for too few, too many, equal ones, or none that is the answer."""
    options = [str(option) for option in options]
    if not 2 <= len(options) <= 8 or len(set(options)) < len(options):
        raise ValueError(f"predict() needs two to eight different options, not {options}.")
    if answer not in options:
        raise ValueError(
            f"predict()'s answer must be one of its options, word for word: {answer!r} is not in {options}."
        )
    return options
