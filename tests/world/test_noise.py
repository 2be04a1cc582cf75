import numpy as np
import pytest
import torch
from scipy import stats

from recsys.world import noise


def splitmix64(x: int) -> int:
    """The published finaliser in unbounded integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def test_mix_is_splitmix64() -> None:
    # The first outputs of the generator seeded with 1234567, as in the reference implementation's test.
    state, outputs = 1234567, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        outputs.append(splitmix64(state))
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    values = [0, 1, -1, 2**63 - 1, -(2**63), 1234567, -987654321]
    expected = [splitmix64(value % 2**64) for value in values]
    assert [int(x) % 2**64 for x in noise.mix(torch.tensor(values))] == expected


def test_keys_depend_on_every_part_and_its_place() -> None:
    keys = [noise.key(1, 2, 3), noise.key(3, 2, 1), noise.key(1, 2), noise.key(1, 2, 3, 0), noise.key(1, 23)]
    assert len({int(key) for key in keys}) == len(keys)
    assert torch.equal(noise.key(1, torch.arange(5))[3], noise.key(1, 3))
    assert torch.equal(noise.extend(noise.key(1), 2, 3), noise.key(1, 2, 3))


def test_uniforms_are_uniform_and_inside() -> None:
    u = noise.uniform(noise.key(7, torch.arange(200_000)))
    assert u.min() > 0
    assert u.max() < 1
    counts = torch.histc(u.float(), 100, 0, 1)
    assert stats.chisquare(counts.double().numpy()).pvalue > 1e-4
    assert float(noise.uniform(torch.tensor(-1))) < 1  # all bits set
    assert float(noise.uniform(torch.tensor(0))) > 0


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1000, 4096, 4097])
def test_permute_is_a_bijection_with_its_inverse(size: int) -> None:
    x = torch.arange(size)
    shuffled = noise.permute(x, size, 5)
    assert torch.equal(shuffled.sort().values, x)
    assert torch.equal(noise.unpermute(shuffled, size, 5), x)
    if size >= 64:
        assert not torch.equal(shuffled, noise.permute(x, size, 6))
        assert abs(stats.spearmanr(x, shuffled).statistic) < 4 / size**0.5


def test_permute_of_a_huge_space() -> None:
    x = torch.randint(0, 1 << 40, (10_000,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise.unpermute(noise.permute(x, 1 << 40, 9), 1 << 40, 9), x)


@pytest.mark.parametrize("rate", [0.3, 2.0, 12.0])
def test_poisson_counts_follow_the_law(rate: float) -> None:
    n = 100_000
    counts = noise.poisson(torch.full((n,), rate, dtype=torch.float64), noise.key(3, torch.arange(n)), 63)
    observed = np.bincount(counts.numpy(), minlength=64)
    expected = stats.poisson.pmf(np.arange(64), rate) * n
    common = expected > 10
    observed = np.append(observed[common], observed[~common].sum())
    expected = np.append(expected[common], expected[~common].sum() + n * stats.poisson.sf(63, rate))
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4


def test_categories_have_their_shares() -> None:
    drawn = noise.categorical(noise.key(1, torch.arange(100_000)), (1.0, 2.0, 5.0))
    assert stats.chisquare(torch.bincount(drawn).numpy(), [12_500, 25_000, 62_500]).pvalue > 1e-4
