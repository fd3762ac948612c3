"""Rules made equally strict, and words that nobody wrote."""

import math

import pytest
import torch

from gptcourse.generation import Sampling
from gptcourse.strictness import ENDS, as_strict_as, invented, invented_shares, mean_entropy, words_of

LOGITS = 3 * torch.randn(40, 60, generator=torch.Generator().manual_seed(0))


def test_the_mean_entropy_is_in_bits_and_of_what_is_drawn_from():
    even, sure = torch.zeros(16), torch.tensor([100.0] + 15 * [0.0])
    assert mean_entropy(torch.stack([even, sure]), Sampling()) == pytest.approx(4 / 2)
    assert mean_entropy(even[None], Sampling(top_k=1)) == pytest.approx(4)  # equally likely ones are all kept
    distributions = torch.distributions.Categorical(logits=LOGITS / 0.7)
    assert mean_entropy(LOGITS, Sampling(temperature=0.7)) == pytest.approx(
        distributions.entropy().mean().item() / math.log(2), rel=1e-5
    )


@pytest.mark.parametrize("rule", ENDS)
def test_each_rule_is_made_as_strict_as_a_temperature(rule):
    wanted = mean_entropy(LOGITS, Sampling(temperature=0.6))
    found = as_strict_as(wanted, LOGITS, rule, seed=3)
    assert mean_entropy(LOGITS, found) == pytest.approx(wanted, abs=0.1 if rule == "top_k" else 0.02)
    assert found.seed == 3 and (rule == "temperature" or found.temperature == 1)


def test_other_settings_stay_and_the_rule_makes_up_for_them():
    wanted = mean_entropy(LOGITS, Sampling())
    found = as_strict_as(wanted, LOGITS, "min_p", temperature=1.5)
    assert found.temperature == 1.5 and found.min_p > 0
    assert mean_entropy(LOGITS, found) == pytest.approx(wanted, abs=0.02)


def test_a_rule_that_is_not_there_and_an_entropy_out_of_reach_are_refused():
    with pytest.raises(ValueError, match="no rule 'beams'"):
        as_strict_as(2.0, LOGITS, "beams")
    with pytest.raises(ValueError, match=r"With top_p the mean entropy goes from .* bits, not to 9.00"):
        as_strict_as(9.0, LOGITS, "top_p")


def test_invented_words_are_those_that_no_play_has_and_cut_ones_are_left_out():
    known = words_of("The king's daughter DOTH love, the queen.")
    assert known == {"the", "king's", "daughter", "doth", "love", "queen"}
    assert invented("ing, the queen doth grumbel the kin", known) == ["grumbel"]
    assert invented("ing, the queen doth grumbel the kin", iter(sorted(known))) == ["grumbel"]
    assert invented_shares(["a the b", "a queen b"], iter(sorted(known))) == [0, 0]
    assert invented_shares(["ing, the queen doth grumbel the kin", "king", " queen "], known) == [1 / 5, 0, 0]
