"""Draws: by the stated distribution, never reserved, a function of (seed, step)."""

import pytest
import torch

from recsys.models import negatives
from recsys.schema import NUM_RESERVED

COUNTS = torch.tensor([50, 9, 0, 1, 4, 16, 0, 25])  # counts at the reserved places must not matter
DRAWS = 200_000


def frequency(drawn, num_items=8):
    return torch.bincount(drawn, minlength=num_items) / len(drawn)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_popularity_draws_follow_log_q(power):
    log_q = negatives.popularity_log_q(COUNTS, power)
    expected = torch.tensor([0, 0, 0, 1, 4, 16, 0, 25.0]) ** power
    torch.testing.assert_close(log_q.exp(), expected / expected.sum())
    drawn = negatives.draw_by(negatives.cumulative(log_q), (DRAWS,), negatives.generator_at(0, 0))
    torch.testing.assert_close(frequency(drawn), log_q.exp(), atol=5e-3, rtol=0)
    assert set(drawn.tolist()) == {3, 4, 5, 7}


def test_uniform_draws_every_real_item_alike():
    log_q = negatives.uniform_log_q(6)
    drawn = negatives.draw_uniform((DRAWS,), 6, negatives.generator_at(0, 0))
    torch.testing.assert_close(log_q.exp(), torch.tensor([0, 0, 0.25, 0.25, 0.25, 0.25]))
    torch.testing.assert_close(frequency(drawn, 6), log_q.exp(), atol=5e-3, rtol=0)
    assert drawn.min() == NUM_RESERVED


def test_in_batch_draws_each_place_alike():
    batch = torch.tensor([7, 7, 7, 3])
    drawn = negatives.draw_in_batch(batch, (DRAWS,), negatives.generator_at(0, 0))
    assert frequency(drawn)[7].item() == pytest.approx(0.75, abs=5e-3)
    assert set(drawn.tolist()) == {3, 7}


def test_the_last_item_that_can_be_drawn_closes_the_distribution():
    cdf = negatives.cumulative(negatives.popularity_log_q(torch.tensor([0, 0, 3, 3, 3, 0, 0])))
    assert cdf[4] == 1
    nearly_one = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert torch.searchsorted(cdf, nearly_one, right=True).item() == 4


def test_no_positive_at_all_is_refused():
    with pytest.raises(ValueError, match="observe"):
        negatives.popularity_log_q(torch.tensor([5, 5, 0, 0]))


def test_a_generator_belongs_to_seed_and_step():
    def first(seed, step):
        return torch.randint(2**62, (1,), generator=negatives.generator_at(seed, step)).item()

    assert first(1, 2) == first(1, 2)
    assert len({first(seed, step) for seed in range(20) for step in range(20)}) == 400


def test_dropout_is_seeded_and_the_global_state_goes_on():
    torch.manual_seed(3)
    expected = torch.rand(2, 4)
    torch.manual_seed(5)
    seeded = torch.nn.functional.dropout(torch.ones(50))
    torch.manual_seed(3)
    first = torch.rand(4)
    with negatives.seeded(torch.device("cpu")) as seed:
        for _ in range(2):
            seed(5)
            assert torch.equal(torch.nn.functional.dropout(torch.ones(50)), seeded)
    assert torch.equal(torch.stack([first, torch.rand(4)]), expected)
