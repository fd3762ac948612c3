"""Wrong answers to the exercises of notebook 02."""

import math

import torch
import torch.nn.functional as F

from wrong_answers import wrong


@wrong("gpt_block.layer_norm", "divides by C - 1")
def norm_with_sample_variance(x, weight, bias, eps):
    mean, var = x.mean(-1, keepdim=True), torch.var(x, dim=-1, keepdim=True)
    return weight * (x - mean) / torch.sqrt(var + eps) + bias


@wrong("gpt_block.layer_norm", "divides by C - 1")
def norm_with_sample_deviation(x, weight, bias, eps):
    return weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + eps) + bias


@wrong("gpt_block.layer_norm", "how far its root reaches")
def norm_with_eps_outside(x, weight, bias, eps):
    std = x.std(-1, unbiased=False, keepdim=True)
    return weight * (x - x.mean(-1, keepdim=True)) / (std + eps) + bias


@wrong("gpt_block.layer_norm", "What is eps for")
def norm_without_eps(x, weight, bias, eps):
    return weight * (x - x.mean(-1, keepdim=True)) / x.std(-1, correction=0, keepdim=True) + bias


@wrong("gpt_block.layer_norm", "over the wrong dimensions")
def norm_over_the_batch(x, weight, bias, eps):
    mean, var = x.mean(0, keepdim=True), x.var(0, unbiased=False, keepdim=True)
    return (x - mean) / torch.sqrt(var + eps) * weight + bias


@wrong("gpt_block.layer_norm", "over the wrong dimensions")
def norm_over_everything(x, weight, bias, eps):
    return (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + eps) * weight + bias


@wrong("gpt_block.layer_norm", "The mean is still in there")
def norm_of_the_square(x, weight, bias, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight + bias


@wrong("gpt_block.layer_norm", "You divide by the variance")
def norm_by_variance(x, weight, bias, eps):
    var = x.var(-1, unbiased=False, keepdim=True)
    return (x - x.mean(-1, keepdim=True)) / (var + eps) * weight + bias


@wrong("gpt_block.layer_norm", "Weight and bias are not used")
def norm_alone(x, weight, bias, eps):
    return F.layer_norm(x, x.shape[-1:], eps=eps)


@wrong("gpt_block.gelu", "the exact form")
def gelu_by_error_function(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


@wrong("gpt_block.gelu", "with a sigmoid")
def gelu_by_sigmoid(x):
    return x * torch.sigmoid(1.702 * x)


@wrong("gpt_block.gelu", "the corner at zero")
def gelu_as_relu(x):
    return x.clamp(min=0)


@wrong("gpt_block.gelu", "Twice too large")
def gelu_without_half(x):
    return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@wrong("gpt_block.gelu", "How far does the root")
def gelu_with_a_short_root(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2) / math.pi * (x + 0.044715 * torch.pow(x, 3))))


@wrong("gpt_block.gelu", "should be odd in x")
def gelu_with_a_square(x):
    return 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**2)))


@wrong("gpt_block.residual", "the order of the first transformer")
def block_post_norm(x, ln_1, attn, ln_2, mlp):
    x = ln_1(x + attn(x))
    x = ln_2(x + mlp(x))
    return x


@wrong("gpt_block.residual", "the path past them is missing")
def block_without_additions(x, ln_1, attn, ln_2, mlp):
    x = attn(ln_1(x))
    x = mlp(ln_2(x))
    return x


@wrong("gpt_block.residual", "add to the normalised copy")
def block_on_the_copy(x, ln_1, attn, ln_2, mlp):
    x = ln_1(x)
    x = x + attn(x)
    x = ln_2(x)
    return x + mlp(x)


@wrong("gpt_block.residual", "before attention wrote to it")
def block_in_parallel(x, ln_1, attn, ln_2, mlp):
    a = attn(ln_1(x))
    m = mlp(ln_2(x))
    return x + a + m


@wrong("gpt_block.residual", "the same norm")
def block_with_one_norm(x, ln_1, attn, ln_2, mlp):
    x = x + attn(ln_1(x))
    return x + mlp(ln_1(x))


@wrong("gpt_block.residual", "not the end of the block")
def block_with_one_long_path(x, ln_1, attn, ln_2, mlp):
    h = x + attn(ln_1(x))
    return x + mlp(ln_2(h))


@wrong("gpt_block.init_std", "How many times does a block add")
def std_once_per_block(n_layer):
    return 0.02 / math.sqrt(n_layer)


@wrong("gpt_block.init_std", "variances add up")
def std_without_root(n_layer):
    return 0.02 / (2 * n_layer)


@wrong("gpt_block.init_std", "shrink with depth")
def std_of_other_matrices(n_layer):
    return 0.02


@wrong("gpt_block.init_std", "That is the factor")
def std_factor_alone(n_layer):
    return 1 / math.sqrt(2 * n_layer)


@wrong("gpt_block.init_std", "Look at your brackets")
def std_with_brackets_lost(n_layer):
    return 0.02 / math.sqrt(2) * n_layer


@wrong("gpt_block.parameters", "The read-out is counted apart")
def parameters_untied(vocab_size, n_positions, n_embd, n_layer):
    block = 12 * n_embd**2 + 13 * n_embd
    return 2 * vocab_size * n_embd + n_positions * n_embd + n_layer * block + 2 * n_embd


@wrong("gpt_block.parameters", "rule of thumb")
def parameters_by_rule_of_thumb(vocab_size, n_positions, n_embd, n_layer):
    return n_layer * (4 * n_embd**2 + 8 * n_embd**2)


@wrong("gpt_block.parameters", "the small ones")
def parameters_of_matrices(vocab_size, n_positions, n_embd, n_layer):
    return n_embd * (vocab_size + n_positions) + 12 * n_layer * n_embd * n_embd


@wrong("gpt_block.parameters", "it stands in no block")
def parameters_without_last_norm(vocab_size, n_positions, n_embd, n_layer):
    return n_embd * (vocab_size + n_positions) + n_layer * (12 * n_embd * n_embd + 13 * n_embd)


@wrong("gpt_block.parameters", "biases of the linear layers")
def parameters_without_biases(vocab_size, n_positions, n_embd, n_layer):
    return n_embd * (vocab_size + n_positions) + n_layer * (12 * n_embd**2 + 4 * n_embd) + 2 * n_embd


@wrong("gpt_block.parameters", "joins the heads")
def parameters_without_projection(vocab_size, n_positions, n_embd, n_layer):
    linear = 3 * n_embd * (n_embd + 1) + 4 * n_embd * (n_embd + 1) + n_embd * (4 * n_embd + 1)
    return n_embd * (vocab_size + n_positions) + n_layer * (linear + 4 * n_embd) + 2 * n_embd


@wrong("gpt_block.parameters", "a whole number (int)")
def parameters_as_a_fraction(vocab_size, n_positions, n_embd, n_layer):
    return 1.0 * n_embd * (vocab_size + n_positions + 2) + n_layer * (12 * n_embd * n_embd + 13 * n_embd)


@wrong("gpt_block.shift", "it would learn to copy")
def shift_not_at_all(tokens):
    return tokens[:, :-1], tokens[:, :-1]


@wrong("gpt_block.shift", "Time runs the other way")
def shift_backwards(tokens):
    return tokens[:, 1:], tokens[:, :-1]


@wrong("gpt_block.shift", "come round from the front")
def shift_by_rolling(tokens):
    return tokens, torch.roll(tokens, shifts=-1, dims=1)


@wrong("gpt_block.shift", "You cut along the batch")
def shift_texts(tokens):
    x = tokens[:-1]
    y = tokens[1:]
    return x, y


@wrong("gpt_block.shift", "as many as the inputs")
def shift_to_the_last_token(tokens):
    return tokens[:, :-1], tokens[:, -1]


@wrong("gpt_block.shift", "as many as the inputs")
def shift_with_all_inputs(tokens):
    return tokens, tokens[:, 1:]


@wrong("gpt_block.loss", "logarithm minus infinity")
def loss_through_probabilities(logits, targets):
    p = torch.softmax(logits, dim=-1)
    return -torch.log(p.gather(2, targets.unsqueeze(2))).mean()


@wrong("gpt_block.loss", "the softmax happens twice")
def loss_of_probabilities(logits, targets):
    B, T, V = logits.shape
    return F.cross_entropy(torch.softmax(logits, dim=-1).view(B * T, V), targets.view(B * T))


@wrong("gpt_block.loss", "the sum over all places")
def loss_as_a_sum(logits, targets):
    return -torch.log_softmax(logits, dim=-1).gather(2, targets.unsqueeze(2)).sum()


@wrong("gpt_block.loss", "The sign")
def loss_below_zero(logits, targets):
    return torch.log_softmax(logits, dim=-1).gather(2, targets.unsqueeze(2)).mean()


@wrong("gpt_block.loss", "number of texts")
def loss_per_text(logits, targets):
    return -torch.log_softmax(logits, dim=-1).gather(2, targets.unsqueeze(2)).sum() / logits.size(0)


@wrong("gpt_block.loss", "rows and columns are mixed up")
def loss_with_dimensions_forced(logits, targets):
    B, T, V = logits.shape
    return F.cross_entropy(logits.view(B, V, T), targets)


@wrong("gpt_block.loss", "rows and columns are mixed up")
def loss_without_flattening(logits, targets):
    return F.cross_entropy(logits, targets)


@wrong("gpt_block.loss", "along the wrong dimension")
def loss_over_the_wrong_dimension(logits, targets):
    return -F.log_softmax(logits, dim=1).gather(2, targets.unsqueeze(2)).mean()


@wrong("gpt_block.loss", "One number was asked for")
def loss_of_each_place(logits, targets):
    return -torch.log_softmax(logits, dim=-1).gather(2, targets.unsqueeze(2)).squeeze(2)


@wrong("gpt_block.first_loss", "That is in bits")
def first_loss_in_bits(vocab_size):
    return math.log2(vocab_size)


@wrong("gpt_block.first_loss", "probability of each token")
def first_loss_as_a_probability(vocab_size):
    return 1.0 / vocab_size


@wrong("gpt_block.first_loss", "The sign")
def first_loss_below_zero(vocab_size):
    return math.log(1 / vocab_size)


@wrong("gpt_block.first_loss", "average over the vocabulary")
def first_loss_averaged_again(vocab_size):
    p = torch.full((vocab_size,), 1 / vocab_size)
    return -(p * p.log()).mean()


@wrong("gpt_block.mend_sure", "The mistake is still there")
def sure_as_it_stands(logits, targets):
    return F.cross_entropy(F.softmax(logits, -1).view(-1, logits.size(-1)), targets.view(-1))


@wrong("gpt_block.mend_sure", "no logarithm is taken")
def sure_without_logarithm(logits, targets):
    return F.nll_loss(F.softmax(logits, -1).view(-1, logits.size(-1)), targets.view(-1))


@wrong("gpt_block.mend_sure", "no softmax anywhere")
def sure_without_softmax(logits, targets):
    return F.nll_loss(logits.flatten(0, 1), targets.flatten())


@wrong("gpt_block.mend_sure", "A sigmoid squeezes")
def sure_with_sigmoid(logits, targets):
    return F.cross_entropy(torch.sigmoid(logits).flatten(0, 1), targets.flatten())


@wrong("gpt_block.mend_parrot", "The mistake is still there")
def parrot_as_it_stands(logits, tokens):
    return F.cross_entropy(logits.reshape(-1, logits.size(-1)), tokens.reshape(-1))


@wrong("gpt_block.mend_parrot", "the wrong way")
def parrot_shifted_backwards(logits, tokens):
    return F.cross_entropy(logits[:, 1:].flatten(0, 1), tokens[:, :-1].flatten())


@wrong("gpt_block.mend_parrot", "Nobody knows its answer")
def parrot_rolled(logits, tokens):
    return F.cross_entropy(logits.flatten(0, 1), torch.roll(tokens, -1, dims=1).flatten())


@wrong("gpt_block.mend_parrot", "after joining the texts")
def parrot_shifted_across_texts(logits, tokens):
    logits, tokens = logits.reshape(-1, logits.size(-1)), tokens.reshape(-1)
    return F.cross_entropy(logits[:-1], tokens[1:])


@wrong("gpt_block.mend_parrot", "along the batch")
def parrot_shifted_between_texts(logits, tokens):
    return F.cross_entropy(logits[:-1].flatten(0, 1), tokens[1:].flatten())


@wrong("gpt_block.mend_swing", "how much of it comes from this loss")
def swing_as_it_stands(model, optimizer, batches):
    losses = []
    for x, y in batches:
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@wrong("gpt_block.mend_swing", "how much of it comes from this loss")
def swing_cleared_once(model, optimizer, batches):
    losses = []
    optimizer.zero_grad()
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


@wrong("gpt_block.mend_swing", "gradients of the step before")
def swing_with_an_early_step(model, optimizer, batches):
    losses = []
    for x, y in batches:
        loss = F.mse_loss(model(x), y)
        optimizer.step()
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses)


@wrong("gpt_block.mend_swing", "it should return a tensor")
def swing_mended_with_a_list(model, optimizer, batches):
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


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
def standstill_as_it_stands(model, optimizer, x, y, steps):
    return train(model, optimizer, x, y, steps, before=[optimizer.zero_grad], after=[lambda _: optimizer.step()])


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


@wrong("gpt_block.mend_standstill", "the optimizer moves nothing")
def standstill_with_a_late_backward(model, optimizer, x, y, steps):
    return train(
        model,
        optimizer,
        x,
        y,
        steps,
        before=[optimizer.zero_grad],
        after=[lambda _: optimizer.step(), lambda loss: loss.backward()],
    )


@wrong("gpt_block.mend_standstill", "how much of it comes from this loss")
def standstill_with_clearing_replaced(model, optimizer, x, y, steps):
    return train(model, optimizer, x, y, steps, after=[lambda loss: loss.backward(), lambda _: optimizer.step()])


@wrong("gpt_block.mend_standstill", "does not require grad")
def standstill_with_a_detached_loss(model, optimizer, x, y, steps):
    return train(
        model, optimizer, x, y, steps, before=[optimizer.zero_grad], after=[lambda loss: loss.detach().backward()]
    )


def summed_loss(model, batches):
    total, count = 0.0, 0
    with torch.no_grad():
        for x, y in batches:
            total += F.cross_entropy(model(x), y, reduction="sum").item()
            count += len(y)
    return total / count


@wrong("gpt_block.mend_twice", "The mistake is still there")
def twice_as_it_stands(model, batches):
    return summed_loss(model, batches)


@wrong("gpt_block.mend_twice", "The mistake is still there")
def twice_switched_too_late(model, batches):
    result = summed_loss(model, batches)
    model.eval()
    return result


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


@wrong("gpt_block.mend_twice", "the last batch alone")
def twice_with_one_batch(model, batches):
    model.eval()
    for x, y in batches:
        loss = F.cross_entropy(model(x), y)
    return loss.item()


@wrong("gpt_block.mend_percent", "The mistake is still there")
def percent_as_it_stands(model, batches):
    return sum((model(x).argmax(dim=-1) == y).sum().item() for x, y in batches) / len(batches)


@wrong("gpt_block.mend_percent", "a small last batch")
def percent_with_a_mean_of_means(model, batches):
    shares = [(model(x).argmax(dim=-1) == y).float().mean() for x, y in batches]
    return torch.stack(shares).mean().item()


@wrong("gpt_block.mend_percent", "as large as the first")
def percent_with_equal_batches(model, batches):
    correct = sum((model(x).argmax(dim=-1) == y).sum().item() for x, y in batches)
    return correct / (len(batches) * batches[0][1].numel())


@wrong("gpt_block.mend_percent", "an answer at every place")
def percent_per_text(model, batches):
    correct, count = 0, 0
    for x, y in batches:
        correct += (model(x).argmax(dim=-1) == y).sum().item()
        count += y.size(0)
    return correct / count


@wrong("gpt_block.mend_percent", "between 0 and 1")
def percent_in_percent(model, batches):
    correct = sum((model(x).argmax(dim=-1) == y).sum().item() for x, y in batches)
    return 100.0 * correct / sum(y.numel() for _, y in batches)


@wrong("gpt_block.mend_two_words", "The mistake is still there")
def two_words_as_they_stand(hidden, token_embedding, label_head):
    return label_head(hidden[:, -1, :]).argmax(dim=-1)


@wrong("gpt_block.mend_two_words", "the first place")
def two_words_from_the_first_place(hidden, token_embedding, label_head):
    return (hidden[:, 0] @ token_embedding.T).argmax(dim=-1)


@wrong("gpt_block.mend_two_words", "You average over the text")
def two_words_from_the_mean(hidden, token_embedding, label_head):
    return F.linear(hidden.mean(dim=1), token_embedding).argmax(dim=-1)


@wrong("gpt_block.mend_two_words", "Only one is new")
def two_words_at_every_place(hidden, token_embedding, label_head):
    return F.linear(hidden, token_embedding).argmax(dim=-1)


@wrong("gpt_block.mend_two_words", "Which token wins")
def two_words_as_scores(hidden, token_embedding, label_head):
    return F.linear(hidden[:, -1], token_embedding)
