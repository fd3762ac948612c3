"""Predict, then reveal: a question that keeps its answer until the learner has committed to a guess."""

import os
from string import ascii_lowercase

import ipywidgets as widgets
from IPython.display import display
from IPython.utils.capture import capture_output

from gptcourse.explorers.panel import Panel
from gptcourse.images import escape

REVEAL = "GPTCOURSE_REVEAL"  # when this environment variable is set, what `reveal` shows is shown at once


def predict(question, options, answer, explanation, reveal=None):
    """Ask ``question`` and return a row of buttons; a click on one shows ``answer`` and ``explanation``.

    ``options`` are two to eight strings, one of which is ``answer``. ``reveal``, a function without arguments, computes
    after the click what proves the answer; what it prints and returns stands below the explanation. So *Run All* gives
    nothing away. Where the environment variable GPTCOURSE_REVEAL is set it is called at once, and the proof stands in a
    fold: for the tests, and for who reads without a kernel. Math between dollar signs works in all texts. The returned
    panel has ``.buttons``, ``.reply`` (an HTML widget) and ``.proof`` (an Output), both empty at first.
    """
    options = _checked(options, answer)
    letters, right = ascii_lowercase[: len(options)], options.index(answer)
    buttons = [
        widgets.Button(description=letter, tooltip=f"I guess {letter}", layout=widgets.Layout(width="52px"))
        for letter in letters
    ]
    reply, proof = widgets.HTMLMath(), widgets.Output()

    def answered(button):
        """Close the question, show the answer beside the guess, and then what proves it."""
        if reply.value:
            return
        for other in buttons:  # but the two with a colour: the focus stays where the guess was made
            other.disabled = other not in (button, buttons[right])
        button.button_style = "danger"
        buttons[right].button_style = "success"
        reply.value = _verdict(letters[buttons.index(button)], letters[right], explanation)
        if reveal is not None and REVEAL not in os.environ:
            with proof:
                _show(reveal())

    for button in buttons:
        button.on_click(answered)
    _print_question(question, dict(zip(letters, options, strict=True)))
    if reveal is not None and REVEAL in os.environ:
        _print_fold(f"({letters[right]}) {explanation}", reveal)
    box = Panel([widgets.HBox([widgets.Label("Your guess:"), *buttons]), reply, proof], [reply])
    box.buttons, box.reply, box.proof = buttons, reply, proof
    return box


def _verdict(guess, right, explanation):
    verdict = f"✓ {right} it is." if guess == right else f"You guessed {guess}; it is {right}."
    style = "line-height:1.5;max-width:680px;white-space:pre-wrap"
    return f'<div role="status" style="{style}"><b>{verdict}</b> {escape(explanation, quote=False)}</div>'


def _print_question(question, options):
    lines = [f"({letter}) {option}" for letter, option in options.items()]
    markdown = "**Predict.** " + question + "\n\n" + "  \n".join(lines)
    display({"text/markdown": markdown, "text/plain": "\n".join([f"Predict. {question}", *lines])}, raw=True)


def _show(result):
    if result is not None:
        display(result)


def _print_fold(answer, reveal):
    """Show the answer and what proves it in a fold, as one output of HTML; its plain text is what was printed."""
    with capture_output() as captured:
        _show(reveal())
    printed = f"<pre>{escape(captured.stdout)}</pre>" if captured.stdout else ""
    shown = "".join(_as_html(output.data) for output in captured.outputs)
    fold = f"<details><summary>After your guess</summary><p>{escape(answer, quote=False)}</p>{printed}{shown}</details>"
    display({"text/html": fold, "text/plain": captured.stdout}, raw=True)


def _as_html(data):
    return data.get("text/html") or f"<pre>{escape(data.get('text/plain', ''))}</pre>"


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
