"""Costs from the shape alone, against what torch really computes and keeps."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from gptcourse.model import GPT, GPTConfig
from gptcourse.scaling import flops_per_token, training_memory

SHAPES = [
    GPTConfig(vocab_size=512, n_positions=128, n_embd=128, n_layer=4, n_head=4),
    GPTConfig(vocab_size=76, n_positions=64, n_embd=96, n_layer=3, n_head=4),
]


@pytest.mark.parametrize("config", SHAPES, ids=lambda config: f"{config.n_layer}x{config.n_embd}")
def test_a_third_of_the_flops_is_what_torch_counts_forward(config):
    ids = torch.zeros(2, config.n_positions, dtype=torch.long)
    # Of the attention kernels, torch counts only the plain one on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        GPT(config)(ids)
    assert_close(float(counter.get_total_flops()), ids.numel() * flops_per_token(config) / 3, rtol=1e-6, atol=0)


@pytest.mark.parametrize("config", SHAPES, ids=lambda config: f"{config.n_layer}x{config.n_embd}")
def test_activations_are_what_autograd_keeps_for_the_backward_pass(config):
    model, ids = GPT(config), torch.zeros(2, config.n_positions, dtype=torch.long)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}  # the tensors themselves, so that no memory is used twice

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(ids, targets=ids)
    saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    logits_and_gradient = 2 * output.logits.untyped_storage().nbytes()
    assert_close(
        float(saved + logits_and_gradient), float(training_memory(config, 2)["activations"]), rtol=0.02, atol=0
    )


def test_weights_gradients_and_averages_are_what_training_holds():
    model = GPT(SHAPES[0])
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.zeros(1, 8, dtype=torch.long)
    model(ids, targets=ids).loss.backward()
    optimizer.step()
    memory = training_memory(SHAPES[0])
    assert sum(p.nbytes for p in model.parameters()) == memory["weights"]
    assert sum(p.grad.nbytes for p in model.parameters()) == memory["gradients"]
    averages = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert sum(average.nbytes for average in averages) == memory["optimizer"]
