"""A learner goes from notebook 01 to 04: each solution is pasted in, and the GPT that comes of it writes and learns."""

import importlib.util
import inspect
import re
from importlib.resources import files

import nbformat
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from gptcourse.config import GPTConfig
from gptcourse.exercises import answers, check, mine
from gptcourse.generation import Sampling, generate
from gptcourse.model import GPT, GPTOutput
from gptcourse.pretrained import load_pretrained
from gptcourse.training import TrainingConfig, evaluate, train
from tools.notebooks import all_notebooks

PATH = all_notebooks()[:5]
BUNDLED = files("gptcourse").joinpath("assets", "shakespeare-5m")


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTCOURSE_PROGRESS", str(tmp_path / "progress"))
    monkeypatch.setattr(answers, "right", {})


def solutions(path):
    """Return (exercise, the program of its solution, the name that check gets) for each exercise of a notebook."""
    cells, found = nbformat.read(path, as_version=4).cells, []
    for cell in cells:
        for tag in cell.metadata.get("tags", []):
            kind, _, name = tag.partition(":")
            if kind == "solution":
                (program,) = re.findall(r"\n\n```python\n(.*?)```\n\n", cell.source, flags=re.DOTALL)
                (called,) = {
                    match
                    for other in cells
                    for match in re.findall(rf'check\("{re.escape(name)}", (\w+)\)', other.source)
                }
                found.append((name, program, called))
    return found


def pasted(tmp_path, name, program):
    """Return the module that a program makes, with its source in a file, as a cell's is."""
    path = tmp_path / f"{name.replace('.', '_')}.py"
    path.write_text(program, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def opens_equals_writes_and_learns(capsys):
    """Use what `mine` gives: the shipped weights, the package's logits and greedy text, and a falling loss."""
    capsys.readouterr()
    MyGPT, open_weights = mine("gpt_block.whole"), mine("gpt_block.from_gpt2")
    model, tokenizer = load_pretrained("shakespeare-5m")
    own = MyGPT(model.config)
    weights = open_weights(load_file(str(BUNDLED.joinpath("model.safetensors"))))
    missing, unexpected = own.load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected  # tied to wte, which is there
    ids = tokenizer.encode("JULIET:\n")
    with torch.inference_mode():
        torch.testing.assert_close(own.eval()(torch.tensor([ids])).logits, model(torch.tensor([ids])).logits)
    surest = generate(model, ids, 12, Sampling(temperature=0))
    assert generate(own, ids, 12, Sampling(temperature=0)) == surest
    for sampler in ("gpt_block.generate", "gpt_block.generate_cached"):
        written = mine(sampler)(own, torch.tensor([ids]), 12, 1e-4, torch.Generator().manual_seed(0))
        assert written[0].tolist() == surest, sampler
    tokens = torch.tensor(tokenizer.encode("the king loves the queen and the queen loves the king " * 40))
    torch.manual_seed(0)
    small = MyGPT(GPTConfig(tokenizer.vocab_size, 16, n_embd=32, n_layer=2, n_head=2))
    before = evaluate(small, tokens)
    optimizer = torch.optim.AdamW(small.parameters(), lr=3e-3)
    batches = [(part[None, :-1], part[None, 1:]) for part in tokens[:340].split(17)]
    mine("training.loop")(small, optimizer, batches, 1.0)
    between = mine("training.held_out_loss")(small, tokens, 16)
    assert between == pytest.approx(evaluate(small, tokens), rel=1e-4)
    train(small, tokens, TrainingConfig(30, 4, 3e-3), progress=False, device="cpu")
    assert evaluate(small, tokens) < between < before
    assert "stands in" not in capsys.readouterr().out


def test_every_solution_in_order_makes_a_gpt_that_opens_weights_writes_and_learns(tmp_path, monkeypatch, capsys):
    for path in PATH:
        monkeypatch.setattr(answers, "right", {})  # another notebook, another kernel
        for name, program, called in solutions(path):
            assert check(name, getattr(pasted(tmp_path, name, program), called)), name
    monkeypatch.setattr(answers, "right", {})
    opens_equals_writes_and_learns(capsys)


# ---- the same, by somebody who writes in another style


class LoopAttention(nn.Module):
    """One head after the other, the softmax written out, in float64."""

    def __init__(self, n_embd, n_head):
        super().__init__()
        self.heads = n_head
        self.c_attn, self.c_proj = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)

    def forward(self, x, cache=None):
        T, C = x.shape[1:]
        parts = torch.einsum("btc,dc->btd", x, self.c_attn.weight) + self.c_attn.bias
        size, heads = C // self.heads, []
        q, k, v = (torch.stack(part.split(size, -1), 1) for part in parts.split(C, -1))
        if cache:
            k, v = cache.append(k, v)
        for h in range(self.heads):
            scores = torch.einsum("btd,bsd->bts", q[:, h].double(), k[:, h].double()) / size**0.5
            weights = scores.exp() * torch.ones(T, k.shape[2], dtype=torch.bool).tril(k.shape[2] - T)
            heads.append((weights / weights.sum(-1, keepdim=True)) @ v[:, h].double())
        return self.c_proj(torch.cat(heads, -1).float())


class Part(nn.Module):
    def __init__(self, n_embd):
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(n_embd, 4 * n_embd), nn.Linear(4 * n_embd, n_embd)

    def forward(self, x):
        h = self.c_fc(x)
        return self.c_proj(h * torch.sigmoid(1.5957691216 * (h + 0.044715 * h**3)))  # tanh by way of the sigmoid


class LoopBlock(nn.Module):
    def __init__(self, n_embd, n_head):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.attn, self.mlp = LoopAttention(n_embd, n_head), Part(n_embd)

    def forward(self, x):
        for norm, part in zip((self.ln_1, self.ln_2), (self.attn, self.mlp), strict=True):
            x = torch.add(x, part(norm(x)))
        return x


class LoopGPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd, _weight=self.lm_head.weight)
        self.wte.weight = self.lm_head.weight
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(LoopBlock(config.n_embd, config.n_head) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        with torch.no_grad():
            for weight in self.parameters():
                if weight.dim() == 2:
                    weight.copy_(0.02 * torch.randn_like(weight))

    def forward(self, ids, targets=None):
        places = torch.arange(ids.shape[-1]).expand_as(ids)
        x = nn.Sequential(*self.h)(self.wte(ids) + self.wpe(places))
        logits = torch.einsum("btc,vc->btv", self.ln_f(x), self.wte.weight)
        loss = None
        if targets is not None:
            loss = -F.log_softmax(logits, -1).gather(-1, targets[..., None]).mean()
        return GPTOutput(logits, loss)


def opened(weights):
    found = {}
    for name, value in weights.items():
        parts = name.split(".")[1:]
        turned = value.dim() == 2 and parts[0] == "h"
        found[".".join(parts)] = value.transpose(0, 1).contiguous() if turned else value
    return found


def test_right_answers_in_another_style_make_one_too(capsys):
    for name, answer in {
        "attention.multi_head": LoopAttention,
        "gpt_block.block": LoopBlock,
        "gpt_block.whole": LoopGPT,
        "gpt_block.from_gpt2": opened,
    }.items():
        assert check(name, answer), name
    for name in ("gpt_block.generate", "gpt_block.generate_cached", "training.loop", "training.held_out_loss"):
        path = PATH[3] if name.startswith("gpt_block") else PATH[4]
        (program, called) = next((p, c) for n, p, c in solutions(path) if n == name)
        namespace = {}
        exec(program, namespace)
        assert check(name, namespace[called]), name
    assert inspect.isclass(mine("gpt_block.whole")) and mine("gpt_block.whole") is LoopGPT
    opens_equals_writes_and_learns(capsys)


def test_the_packages_own_gpt_is_a_right_answer_as_well():
    assert check("gpt_block.whole", GPT)
