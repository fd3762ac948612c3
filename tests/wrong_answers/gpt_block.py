"""Wrong answers to the exercises of notebook 02."""

import math

import torch
import torch.nn.functional as F

from wrong_answers import wrong


@wrong("gpt_block.layer_norm", "divides by C - 1")
def norm_with_sample_variance(x, weight, bias, eps):
    mean, var = x.mean(-1, keepdim=True), torch.var(x, dim=-1, keepdim=True)
    return weight * (x - mean) / torch.sqrt(var + eps) + bias


@wrong("gpt_block.layer_norm", "how far its root reaches")
def norm_with_eps_outside(x, weight, bias, eps):
    std = x.std(-1, unbiased=False, keepdim=True)
    return weight * (x - x.mean(-1, keepdim=True)) / (std + eps) + bias


@wrong("gpt_block.gelu", "the exact form")
def gelu_by_error_function(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


@wrong("gpt_block.gelu", "the corner at zero")
def gelu_as_relu(x):
    return x.clamp(min=0)


@wrong("gpt_block.residual", "the path past them is missing")
def block_without_additions(x, ln_1, attn, ln_2, mlp):
    x = attn(ln_1(x))
    x = mlp(ln_2(x))
    return x


@wrong("gpt_block.residual", "before attention wrote to it")
def block_in_parallel(x, ln_1, attn, ln_2, mlp):
    a = attn(ln_1(x))
    m = mlp(ln_2(x))
    return x + a + m


@wrong("gpt_block.init_std", "How many times does a block add")
def std_once_per_block(n_layer):
    return 0.02 / math.sqrt(n_layer)


@wrong("gpt_block.init_std", "That is the factor")
def std_factor_alone(n_layer):
    return 1 / math.sqrt(2 * n_layer)


@wrong("gpt_block.parameters", "The read-out is counted apart")
def parameters_untied(vocab_size, n_positions, n_embd, n_layer):
    block = 12 * n_embd**2 + 13 * n_embd
    return 2 * vocab_size * n_embd + n_positions * n_embd + n_layer * block + 2 * n_embd


@wrong("gpt_block.parameters", "joins the heads")
def parameters_without_projection(vocab_size, n_positions, n_embd, n_layer):
    linear = 3 * n_embd * (n_embd + 1) + 4 * n_embd * (n_embd + 1) + n_embd * (4 * n_embd + 1)
    return n_embd * (vocab_size + n_positions) + n_layer * (linear + 4 * n_embd) + 2 * n_embd


@wrong("gpt_block.mend_swing", "how much of it comes from this loss")
def swing_as_it_stands(model, optimizer, batches):
    losses = []
    for x, y in batches:
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@wrong("gpt_block.mend_swing", "the optimizer moves nothing")
def swing_cleared_after_backward(model, optimizer, batches):
    losses = []
    for x, y in batches:
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.zero_grad()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def train(model, optimizer, x, y, steps, *, before=(), after=()):
    """Carry out the named actions before and after the loss of each step is computed."""
    losses = []
    for _ in range(steps):
        for action in before:
            action()
        loss = F.mse_loss(model(x), y)
        for action in after:
            action(loss)
        losses.append(loss.detach())
    return torch.stack(losses)


@wrong("gpt_block.mend_standstill", "the optimizer moves nothing")
def standstill_cleared_after_backward(model, optimizer, x, y, steps):
    return train(
        model,
        optimizer,
        x,
        y,
        steps,
        after=[lambda loss: loss.backward(), lambda _: optimizer.zero_grad(), lambda _: optimizer.step()],
    )


@wrong("gpt_block.mend_standstill", "does not require grad")
def standstill_with_a_detached_loss(model, optimizer, x, y, steps):
    return train(
        model, optimizer, x, y, steps, before=[optimizer.zero_grad], after=[lambda loss: loss.detach().backward()]
    )


@wrong("gpt_block.mend_twice", "The switch has to come before")
def twice_switched_inside_the_loop(model, batches):
    losses = []
    for x, y in batches:
        losses.append(F.cross_entropy(model(x), y, reduction="none"))
        model.eval()
    return torch.cat(losses).mean().item()


@wrong("gpt_block.mend_twice", "a small last batch")
def twice_with_a_mean_of_means(model, batches):
    model.eval()
    return sum(F.cross_entropy(model(x), y).item() for x, y in batches) / len(batches)


@wrong("gpt_block.mend_percent", "a small last batch")
def percent_with_a_mean_of_means(model, batches):
    shares = [(model(x).argmax(dim=-1) == y).float().mean() for x, y in batches]
    return torch.stack(shares).mean().item()


@wrong("gpt_block.mend_percent", "an answer at every place")
def percent_per_text(model, batches):
    correct, count = 0, 0
    for x, y in batches:
        correct += (model(x).argmax(dim=-1) == y).sum().item()
        count += y.size(0)
    return correct / count


@wrong("gpt_block.mend_two_words", "You average over the text")
def two_words_from_the_mean(hidden, token_embedding, label_head):
    return F.linear(hidden.mean(dim=1), token_embedding).argmax(dim=-1)


@wrong("gpt_block.mend_two_words", "Which token wins")
def two_words_as_scores(hidden, token_embedding, label_head):
    return F.linear(hidden[:, -1], token_embedding)
