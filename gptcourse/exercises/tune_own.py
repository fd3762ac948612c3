"""The exercises of notebook 06: decisions on the data of a run."""

from __future__ import annotations

from collections.abc import Callable

from gptcourse.clinic import HEALTHY, load_clinic
from gptcourse.exercises.exercise import Exercise, mistake

NOTEBOOK = "06 · Tune your own model"
MARGIN = 0.3  # nats
# Each an illness, and whether it shows in the two curves, on fresh text and with the future cut off.
MASK = ("leaking mask", lambda t, v, fresh, without: without - v[-1] > MARGIN)
SPLIT = ("leaking split", lambda t, v, fresh, without: fresh - v[-1] > MARGIN)
RISE = ("overfitting", lambda t, v, fresh, without: v[-1] - min(v) > MARGIN)
GAP = ("padding in the loss", lambda t, v, fresh, without: v[-1] - t[-1] > MARGIN)


def first_of(*signs: tuple[str, Callable]) -> Callable:
    """Return the function that gives the first illness whose sign shows."""

    def diagnose(training, validation, fresh, without_future):
        found = training, validation, fresh, without_future
        return next((illness for illness, shows in signs if shows(*found)), HEALTHY)

    return diagnose


def recorded(illness: str) -> tuple[list[float], list[float], float, float]:
    """Return the curves of a patient, and the losses on fresh text and with the future cut off."""
    patient = load_clinic()[illness]
    end, foreseen = patient.numbers["validation"], patient.numbers["foreseen"]
    return patient["training_loss"], patient["validation_loss"], patient["fresh_loss"], end + foreseen


class Clinic(Exercise, name="tune_own.clinic"):
    """Name the illness of a run, or say that it is healthy."""

    hint = """Which of the losses may be believed? Begin with what makes the others worthless: does the model see the
        answer, and does it know the text that it is measured on?"""

    def inputs():
        asked = (HEALTHY, MASK[0], RISE[0], GAP[0], SPLIT[0])
        return [recorded(illness) for illness in asked] + [
            ([4.3, 1.7, 1.1], [2.6, 1.8, 1.3], 1.4, 1.4),  # a gap, but a small one, on an easier text
            ([4.3, 1.2, 0.9], [2.6, 2.0, 1.9], 2.0, 1.9),  # padding in a good run
            ([4.3, 1.0, 0.2], [3.4, 2.1, 2.9], 3.0, 2.9),  # overfitting, though better than at its start
            ([4.3, 1.0, 0.2], [2.6, 1.1, 0.3], 0.3, 3.1),
            ([4.3, 1.0, 0.2], [2.6, 1.1, 0.3], 3.1, 0.4),
        ]

    reference = first_of(MASK, SPLIT, RISE, GAP)
    trusts_the_curves = mistake("""You call healthy what is too good to be true. What would a model have to know to get
        so far below every table of counts, and which of the four inputs would tell?""")(first_of(RISE, GAP))
    every_gap = mistake("""You call every gap between training and validation overfitting. What does the validation loss
        of an overfitting run do, and that of a run whose training loss merely counts something else does not?""")(
        first_of(MASK, SPLIT, (RISE[0], GAP[1]))
    )
    gap_first = mistake("""An overfitting run has two signs, a gap and a rise. Padding has one of them, and you ask for
        that one first.""")(first_of(MASK, SPLIT, GAP, RISE))
    from_the_start = mistake("""You compare the last validation loss with the first. Nearly every run ends better than
        it began: from where does the loss of an overfitting run rise?""")(
        first_of(MASK, SPLIT, (RISE[0], lambda t, v, fresh, without: v[-1] - v[0] > MARGIN), GAP)
    )
    against_training = mistake("""You hold what is measured on other text against the training loss. Which of the two
        curves is measured like it?""")(
        first_of(
            (MASK[0], lambda t, v, fresh, without: without - t[-1] > MARGIN),
            (SPLIT[0], lambda t, v, fresh, without: fresh - t[-1] > MARGIN),
            RISE,
            GAP,
        )
    )
