"""Faults: runs that are killed, disks that are full or cannot be written, clocks that go backwards. Nothing is lost."""

import os
import shutil

import numpy as np
import pytest
import torch

from gptcourse.model import GPT
from gptcourse.tokenizers import CharTokenizer, load_tokenizer
from tests import lives
from tests.lives import new_model

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no fork and no mount")
MANY = pytest.param(50, marks=pytest.mark.long)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Count threads as the child processes do: bits are promised for one number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- Killed


@pytest.fixture(scope="module")
def live():
    """The function that lets work be done in a process of its own, which may be killed."""
    with lives.nursery() as ask:
        yield ask


@pytest.mark.parametrize("n", [3, MANY])
@pytest.mark.parametrize("kind", [run.__name__ for run in lives.RUNS])
def test_a_run_killed_at_random_moments_and_resumed_ends_as_one_never_stopped(kind, n, live, tmp_path):
    whole, cut = live(kind, tmp_path / "whole"), tmp_path / "cut"
    assert whole["made"] is not None
    for share in np.random.default_rng(n).random(n):
        life = live(kind, cut, moment=share * whole["seconds"])
        if life["made"] is not None:  # it came to its end before: the next life begins anew
            assert life["made"] == whole["made"]
            shutil.rmtree(cut)
    assert live(kind, cut)["made"] == whole["made"]


def test_a_model_saved_over_another_is_one_of_the_two_or_refused_wherever_the_process_is_killed(live, tmp_path):
    old, new = (new_model(2), CharTokenizer("abcdefghijklmnopq")), (new_model(4, seed=4), "ABCDEFGHIJKLMNOPQ")
    found = []
    for event in range(1, 200):
        folder = tmp_path / str(event)
        old[0].save(folder, old[1])
        made = live("saving", folder, event=event)["made"]
        try:
            model = GPT.load(folder)
        except ValueError as error:
            assert "holds no config.json" in str(error)
            found.append("none")
        else:
            found.append(model.config.n_head)
            whose = {2: old, 4: new}[model.config.n_head]
            same = zip(model.parameters(), whose[0].parameters(), strict=True)
            assert all(torch.equal(a, b) for a, b in same)
            if made:
                assert "".join(load_tokenizer(folder).characters) == new[1]
                break
    print(found)
    assert found[-1] == 4 and found[0] == 2
