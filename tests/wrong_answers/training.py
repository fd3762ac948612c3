"""Wrong answers to the exercises of notebook 04."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from wrong_answers import wrong


@wrong("training.loop", "how much of it comes from this loss")
def loop_that_never_clears(model, optimizer, batches, max_grad_norm):
    losses = []
    for ids, targets in batches:
        loss = model(ids, targets).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@wrong("training.loop", "Where between the backward pass and the step")
def loop_that_never_clips(model, optimizer, batches, max_grad_norm):
    losses = torch.zeros(len(batches))
    for i, (ids, targets) in enumerate(batches):
        optimizer.zero_grad()
        loss = model(ids, targets).loss
        loss.backward()
        optimizer.step()
        losses[i] = loss.item()
    return losses


@wrong("training.clip", "you make them longer")
def clip_always(gradients, max_norm):
    length = sum((g**2).sum() for g in gradients) ** 0.5
    return max_norm / length.item()


@wrong("training.clip", "two sides of a right angle")
def clip_by_the_sum(gradients, max_norm):
    length = 0.0
    for g in gradients:
        length += g.norm().item()
    return 1.0 if length <= max_norm else max_norm / length


@wrong("training.adamw", "what makes up for it in early steps")
def adamw_without_correction(w, gradient, m, v, step, lr, weight_decay):
    m = 0.9 * m + 0.1 * gradient
    v = 0.95 * v + 0.05 * gradient * gradient
    w = w * (1 - lr * weight_decay)
    return w - lr * m / (v.sqrt() + 1e-8), m, v


@wrong("training.adamw", "goes through the averages")
def adam_with_l2(w, gradient, m, v, step, lr, weight_decay):
    gradient = gradient + weight_decay * w
    m = 0.9 * m + 0.1 * gradient
    v = 0.95 * v + 0.05 * gradient.square()
    return w - lr * (m / (1 - 0.9**step)) / (torch.sqrt(v / (1 - 0.95**step)) + 1e-8), m, v


@wrong("training.adamw", "moved already")
def adamw_that_shrinks_last(w, gradient, m, v, step, lr, weight_decay):
    m = 0.9 * m + 0.1 * gradient
    v = 0.95 * v + 0.05 * gradient**2
    w = w - lr * m / (1 - 0.9**step) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
    return w - lr * weight_decay * w, m, v


@wrong("training.adamw", "as they were before that")
def adamw_that_keeps_the_correction(w, gradient, m, v, step, lr, weight_decay):
    m = (0.9 * m + 0.1 * gradient) / (1 - 0.9**step)
    v = (0.95 * v + 0.05 * gradient**2) / (1 - 0.95**step)
    return w * (1 - lr * weight_decay) - lr * m / (v**0.5 + 1e-8), m, v


@wrong("training.held_out_loss", "get more say")
def held_out_mean_of_windows(model, tokens, length):
    was_training, losses = model.training, []
    model.eval()
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, length):
            piece = tokens[start : start + length + 1][None]
            losses.append(model(piece[:, :-1], piece[:, 1:]).loss)
    model.train(was_training)
    return torch.stack(losses).mean().item()


@wrong("training.held_out_loss", "its dropout draws dice")
def held_out_as_it_comes(model, tokens, length):
    total, mode = 0.0, model.training
    model.train()
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, length):
            piece = tokens[start : start + length + 1][None]
            total += model(piece[:, :-1], piece[:, 1:]).loss.item() * (piece.shape[1] - 1)
    model.train(mode)
    return total / (len(tokens) - 1)


@wrong("training.induction", "The head should look at what came after it")
def induction_to_the_same(weights, n):
    scores = []
    for head in weights:
        scores.append(sum(head[i, i - n] for i in range(n, 2 * n)) / n)
    return torch.stack(scores)


@wrong("training.induction", "yours are exchanged")
def induction_transposed(weights, n):
    return torch.stack([weights[:, i - n + 1, i] for i in range(n, 2 * n)]).mean(0)


@wrong("training.resume", "reads the first batches again")
class CheckpointLikeNanoGPTs:
    """The number of the step comes back, and the batches are drawn from the seed anew."""

    def __init__(self, model, optimizer, step):
        self.model, self.step = copy.deepcopy(model.state_dict()), step
        self.optimizer = copy.deepcopy(optimizer.state_dict())

    def restore(self, model, optimizer):
        model.load_state_dict(self.model)
        optimizer.load_state_dict(self.optimizer)
        self.reached = self.step


@wrong("training.resume", "that the new one lacks")
class CheckpointOfWeights:
    def __init__(self, model, optimizer, step):
        self.weights = [w.detach().clone() for w in model.parameters()]
        self.step = step

    def restore(self, model, optimizer):
        with torch.no_grad():
            for w, kept in zip(model.parameters(), self.weights, strict=True):
                w.copy_(kept)
        return self.step


@wrong("training.resume", "it is the run's own tensors")
class CheckpointOfReferences:
    """A plain copy of a dict holds the same tensors."""

    def __init__(self, model, optimizer, step):
        self.state = dict(model.state_dict()), dict(optimizer.state_dict()), step

    def restore(self, model, optimizer):
        model.load_state_dict(self.state[0])
        optimizer.load_state_dict(self.state[1])
        return self.state[2]


@wrong("training.mend_swing", "how much of it comes from this loss")
def swing_as_it_stands(model, optimizer, batches):
    losses = []
    for x, y in batches:
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@wrong("training.mend_swing", "the optimizer moves nothing")
def swing_cleared_after_backward(model, optimizer, batches):
    losses = []
    for x, y in batches:
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.zero_grad()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@wrong("training.mend_twice", "The switch has to come before")
def twice_switched_inside_the_loop(model, batches):
    losses = []
    for x, y in batches:
        losses.append(F.cross_entropy(model(x), y, reduction="none"))
        model.eval()
    return torch.cat(losses).mean().item()


@wrong("training.mend_twice", "a small last batch")
def twice_with_a_mean_of_means(model, batches):
    model.eval()
    return sum(F.cross_entropy(model(x), y).item() for x, y in batches) / len(batches)


@wrong("training.mend_percent", "a small last batch")
def percent_with_a_mean_of_means(model, batches):
    shares = [(model(x).argmax(dim=-1) == y).float().mean() for x, y in batches]
    return torch.stack(shares).mean().item()


@wrong("training.mend_percent", "an answer at every place")
def percent_per_text(model, batches):
    correct, count = 0, 0
    for x, y in batches:
        correct += (model(x).argmax(dim=-1) == y).sum().item()
        count += y.size(0)
    return correct / count
