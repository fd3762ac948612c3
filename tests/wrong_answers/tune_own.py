"""Wrong answers to the exercises of notebook 06."""

from wrong_answers import wrong


@wrong("tune_own.clinic", "too good to be true")
def diagnosed_by_the_curves_alone(training, validation, fresh, without_future):
    best = min(validation)
    if validation[-1] > best + 0.3:
        return "overfitting"
    if training[-1] < validation[-1] - 0.3:
        return "padding in the loss"
    return "healthy"


@wrong("tune_own.clinic", "every gap between training and validation")
def diagnosed_by_the_gap(training, validation, fresh, without_future):
    end = validation[-1]
    if without_future > end + 0.3:
        return "leaking mask"
    if fresh > end + 0.3:
        return "leaking split"
    return "overfitting" if end - training[-1] > 0.3 else "healthy"
