"""Every check, tried with mutants that are derived mechanically from its reference; each must be refused.

Where a class is asked for, what is spoiled is the function of the inputs that `Exercise.through` makes of it.
"""

import copy
import inspect
from unittest.mock import patch

import torch
from torch import Tensor, nn

# Mutants that do what was asked, with the reason.
EQUIVALENT = {
    ("attention.influence", "x ignored"): "which outputs depend on which tokens is a property of the layer alone",
    ("gpt_block.mend_two_words", "label_head frozen"): "the right answer does not use the head of two labels",
    ("tuning.mend_schedule", "model frozen"): "the rates do not depend on what is trained",
    ("tuning.mend_schedule", "batches ignored"): "the rates depend on the number of batches alone",
    ("tuning.mend_schedule", "gradients cleared before each step of SGD"): "the rates do not depend on what is trained",
    ("fine_tuning.mend_prompt_loss", "prompt ignored"): "the targets depend on the length of the prompt alone",
    ("scaling.compute_optimal", "E frozen"): "the least loss of all is the same for every split",
    ("scaling.compute_optimal", "E ignored"): "the least loss of all is the same for every split",
    ("fine_tuning.mend_pickle", "path frozen"): "any path will do, as long as both sides use the same",
    ("evaluation.mend_leaks", "kinds frozen"): "the right answer looks at every reply, whatever the prompt was",
    ("evaluation.mend_leaks", "kinds ignored"): "the right answer looks at every reply, whatever the prompt was",
}

OTHER_DTYPE = {
    torch.float32: torch.float64,
    torch.float64: torch.float32,
    torch.int64: torch.int32,
    torch.bool: torch.uint8,
}


def mutants(exercise):
    """Yield the name of each mutant and a function that makes one; what it remembers is its own."""
    fresh, reference = seeded(exercise.inputs), exercise.calling(exercise.reference)
    parameters = list(inspect.signature(reference).parameters)
    results = [seeded(reference, *case) for case in copy.deepcopy(fresh)]
    for place, parameter in enumerate(parameters):
        yield f"{parameter} frozen", frozen(reference, place)
        if (bland := [ignored(case[place]) for case in fresh])[0] is not None:
            yield f"{parameter} ignored", with_argument(reference, place, bland)
    yield "last answer replayed", replayed(reference, -2)
    yield "first answer repeated", replayed(reference, 0)
    whole = not isinstance(results[0], tuple)
    for part in range(1 if whole else min(map(len, results))):
        of_part = [result if whole else result[part] for result in results]
        for name, change in changes(of_part):
            yield f"part {part} {name}", changed(reference, None if whole else part, change)
    yield from with_other_torch(exercise, fresh, results)


def seeded(function, *inputs):
    torch.manual_seed(0)
    return function(*inputs)


def frozen(reference, place):
    seen = []

    def mutant(*inputs):
        seen.append(inputs[place])
        return reference(*inputs[:place], seen[0], *inputs[place + 1 :])

    return mutant


def ignored(value):
    """Return what stands in the place of an argument that is not looked at; None if there is nothing of the kind."""
    if isinstance(value, Tensor):
        return torch.zeros_like(value)
    if isinstance(value, bool | str) or not isinstance(value, int | float | list):
        return None
    return value[:1] * len(value) if isinstance(value, list) else type(value)(2 if value == 1 else 1)


def with_argument(reference, place, values):
    left = iter(values)
    return lambda *inputs: reference(*inputs[:place], copy.deepcopy(next(left)), *inputs[place + 1 :])


def replayed(reference, which):
    answers = []

    def mutant(*inputs):
        answers.append(reference(*inputs))
        return answers[which if len(answers) > 1 else 0]

    return mutant


def changed(reference, part, change):
    def mutant(*inputs):
        result = reference(*inputs)
        return change(result) if part is None else (*result[:part], change(result[part]), *result[part + 1 :])

    return mutant


def changes(results):
    """Yield ways to spoil an answer, by the kind of its values."""
    if isinstance(results[0], str):
        yield "twice", lambda text: 2 * text
        yield "in capitals", str.swapcase
        return
    if not isinstance(results[0], Tensor):
        yield "plus one", lambda x: x + 1
        yield "scaled", lambda x: x * 1.01
        yield "with its sign flipped", lambda x: -x
        yield "of another type", complex if isinstance(results[0], float) else float
        return
    yield "of another type", lambda x: x.to(OTHER_DTYPE[x.dtype])
    if results[0].dtype == torch.bool:
        yield "negated", lambda x: ~x
    else:
        yield "plus one", lambda x: x + 1
        yield "scaled", lambda x: x * 1.01
        yield "with its sign flipped", lambda x: -x
    for dim in range(min(result.ndim for result in results)):
        if any(result.shape[dim] > 1 for result in results):
            yield f"rolled along {dim}", lambda x, dim=dim: x.roll(1, dim)
            yield f"turned round along {dim}", lambda x, dim=dim: x.flip(dim)
    if results[0].ndim:
        yield "shuffled", lambda x: x.flatten()[torch.randperm(x.numel())].view(x.shape)


def with_other_torch(exercise, fresh, results):
    """Yield the reference with a part of torch exchanged, where it uses that part."""

    def sampled(x, dim=None, keepdim=False):
        rows = x.flatten()[None] if dim is None else x.movedim(dim, -1)
        drawn = torch.multinomial(rows.float().softmax(-1).flatten(0, -2), 1)
        return drawn.view(rows.shape[:-1]) if dim is not None else drawn[0, 0]

    def clears_and_steps(optimizer, *_):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    reference = exercise.calling(exercise.reference)
    exchanged = (
        ("an arg-max drawn", Tensor, "argmax", sampled),
        ("gradients never cleared", torch.optim.Optimizer, "zero_grad", lambda *_, **__: None),
        ("gradients of a model never cleared", nn.Module, "zero_grad", lambda *_, **__: None),
        ("gradients cleared before each step of SGD", torch.optim.SGD, "step", clears_and_steps),
        ("gradients cleared before each step of AdamW", torch.optim.AdamW, "step", clears_and_steps),
    )
    for name, owner, function, other in exchanged:
        if calls(reference, fresh, owner, function):
            yield name, patched(reference, owner, function, other)
    carries_gradients = any(isinstance(result, Tensor) and result.requires_grad for result in results)
    if carries_gradients or calls(reference, fresh, Tensor, "backward"):
        yield "under no_grad", torch.no_grad()(reference)
    for place, value in enumerate(fresh[0]):
        parameter = list(inspect.signature(reference).parameters)[place]
        if parameter not in exercise.trains:
            for name, damage in damages(value, parameter in exercise.differentiates):
                yield f"{parameter} left {name}", damaging(reference, place, damage)


def calls(reference, fresh, owner, function):
    """Say whether the reference uses a function of torch."""
    called, original = [], getattr(owner, function)

    def counting(*arguments, **options):
        called.append(True)
        return original(*arguments, **options)

    with patch.object(owner, function, counting):
        for case in copy.deepcopy(fresh):
            seeded(reference, *case)
    return bool(called)


def patched(reference, owner, function, other):
    def mutant(*inputs):
        with patch.object(owner, function, other):
            return reference(*inputs)

    return mutant


def damages(value, may_differentiate):
    """Yield ways to change an input in place."""
    if isinstance(value, Tensor):
        yield "changed", lambda x: x.detach().add_(1)
    elif isinstance(value, nn.Module):
        yield "trained", lambda model: next(model.parameters()).data.add_(1)
        yield "in another mode", lambda model: model.train(not model.training)
        if not may_differentiate:
            yield (
                "with gradients",
                lambda model: setattr(next(model.parameters()), "grad", torch.ones_like(next(model.parameters()))),
            )
    elif isinstance(value, list):
        yield "shorter", list.pop
        yield "with another end", lambda values: values.__setitem__(-1, values[-1] * 2)
        if isinstance(value[-1], tuple) and isinstance(value[-1][0], Tensor):
            yield "with a changed tensor", lambda values: values[-1][0].add_(1)
    elif isinstance(value, dict):
        yield "shorter", dict.popitem
        if isinstance(next(iter(value.values())), Tensor):
            yield "with a changed tensor", lambda values: next(iter(values.values())).add_(1)
        if isinstance(next(iter(value.values())), list):
            yield "with a shorter list", lambda values: next(iter(values.values())).pop()


def damaging(reference, place, damage):
    def mutant(*inputs):
        result = reference(*copy.deepcopy(inputs))
        damage(inputs[place])
        return result

    return mutant
