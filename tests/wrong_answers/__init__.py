"""Wrong answers that people really give, each with words from the hint that it must get.

They are written the way a learner writes them, without a look at the formulas by which gptcourse.exercises recognises
a mistake. One file for each notebook.
"""

from collections.abc import Callable

WRONG_ANSWERS: list[tuple[str, Callable, str]] = []  # (exercise, answer, words of its hint)


def wrong(exercise: str, hint: str) -> Callable:
    """Register the decorated function as a wrong answer to `exercise`, to be met with these words."""

    def register(answer: Callable) -> Callable:
        WRONG_ANSWERS.append((exercise, answer, hint))
        return answer

    return register
