"""Losses against float64 NumPy, their gradients against differences, sampled against exact."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.evaluation import calibration
from recsys.models import losses

seeds = st.integers(0, 2**31 - 1)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    weight = np.exp(x - x.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


def tensor(x):
    return torch.tensor(x, dtype=torch.float64)


@settings(deadline=None, max_examples=20)
@given(seeds, st.integers(1, 6), st.integers(1, 5))
def test_pairwise_and_pointwise_equal_their_definitions(seed, B, N):
    rng = np.random.default_rng(seed)
    positive, negative = rng.normal(size=B), rng.normal(size=(B, N))
    bpr = [np.mean([-np.log(sigmoid(p - n)) for n in row]) for p, row in zip(positive, negative, strict=True)]
    bce = [
        -np.log(sigmoid(p)) - sum(np.log(1 - sigmoid(n)) for n in row)
        for p, row in zip(positive, negative, strict=True)
    ]
    np.testing.assert_allclose(losses.bpr(tensor(positive), tensor(negative)), bpr, rtol=1e-12)
    np.testing.assert_allclose(losses.bce(tensor(positive), tensor(negative)), bce, rtol=1e-12)


@settings(deadline=None, max_examples=20)
@given(seeds, st.integers(1, 6), st.integers(2, 7))
def test_full_softmax_equals_its_definition(seed, B, items):
    rng = np.random.default_rng(seed)
    logits, target = rng.normal(size=(B, items)), rng.integers(items, size=B)
    expected = -np.log(softmax(logits)[np.arange(B), target])
    np.testing.assert_allclose(losses.full_softmax(tensor(logits), torch.tensor(target)), expected, rtol=1e-12)


@settings(deadline=None, max_examples=20)
@given(seeds, st.integers(1, 5), st.integers(1, 6))
def test_sampled_softmax_equals_its_definition(seed, B, N):
    rng = np.random.default_rng(seed)
    positive, negative = rng.normal(size=B), rng.normal(size=(B, N))
    q, hit = rng.uniform(0.01, 0.5, size=N), rng.random((B, N)) < 0.3
    expected = []
    for b in range(B):
        others = sum(np.exp(negative[b, n]) / (N * q[n]) for n in range(N) if not hit[b, n])
        expected.append(-np.log(np.exp(positive[b]) / (np.exp(positive[b]) + others)))
    got = losses.sampled_softmax(tensor(positive), tensor(negative), tensor(np.log(q)), torch.tensor(hit))
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


def test_in_batch_softmax_masks_accidental_hits():
    rng = np.random.default_rng(0)
    item, logits = np.array([4, 7, 4, 9]), rng.normal(size=(4, 4))
    q = {4: 0.5, 7: 0.3, 9: 0.2}
    expected = []
    for b in range(4):
        others = sum(np.exp(logits[b, j]) / (3 * q[item[j]]) for j in range(4) if item[j] != item[b])
        expected.append(-np.log(np.exp(logits[b, b]) / (np.exp(logits[b, b]) + others)))
    log_q = torch.tensor([q[i] for i in item], dtype=torch.float64).log()
    got = losses.in_batch_softmax(tensor(logits), torch.tensor(item), log_q)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("N", [1, 3])
def test_all_negatives_masked_is_zero_with_a_finite_gradient(N):
    positive = torch.zeros(2, requires_grad=True)
    negative = torch.zeros(2, N, requires_grad=True)
    loss = losses.sampled_softmax(positive, negative, torch.zeros(N), torch.ones(2, N, dtype=torch.bool))
    loss.sum().backward()
    assert loss.tolist() == [0, 0]
    assert positive.grad.tolist() == [0, 0]
    assert not negative.grad.any()


def test_a_batch_of_one_has_no_in_batch_negatives():
    logits = torch.zeros(1, 1, requires_grad=True)
    loss = losses.in_batch_softmax(logits, torch.tensor([5]), torch.zeros(1))
    loss.sum().backward()
    assert loss.item() == 0
    assert logits.grad.item() == 0


def exact_gradient(score_I, target):
    gradient = softmax(score_I.numpy())
    gradient[target] -= 1
    return gradient


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_sampled_softmax_gradient_tends_to_the_full_one(power):
    """One large sample: the gradient by item, summed over its draws, is the full softmax's."""
    generator = torch.Generator().manual_seed(3)
    items, draws, target = 12, 400_000, 5
    score_I = torch.randn(items, generator=generator, dtype=torch.float64)
    q_I = torch.rand(items, generator=generator, dtype=torch.float64) ** power
    q_I /= q_I.sum()
    drawn = torch.multinomial(q_I, draws, replacement=True, generator=generator)
    leaf = score_I.clone().requires_grad_()
    loss = losses.sampled_softmax(leaf[target, None], leaf[None, drawn], q_I.log()[drawn], (drawn == target)[None])
    loss.sum().backward()
    np.testing.assert_allclose(leaf.grad, exact_gradient(score_I, target), atol=4e-3)


def test_in_batch_softmax_gradient_tends_to_the_full_one():
    """Columns are items drawn by popularity; the mean gradient of the rows of one target is the full one."""
    generator = torch.Generator().manual_seed(4)
    items, B = 9, 4000
    score_I = torch.randn(items, generator=generator, dtype=torch.float64)
    q_I = torch.rand(items, generator=generator, dtype=torch.float64) + 0.1
    q_I /= q_I.sum()
    item_B = torch.multinomial(q_I, B, replacement=True, generator=generator)
    target = int(item_B[0])
    rows = item_B == target
    leaf = score_I.clone().requires_grad_()
    loss_B = losses.in_batch_softmax(leaf[item_B].expand(B, B), item_B, q_I.log()[item_B])
    (loss_B * rows).sum().backward()
    np.testing.assert_allclose(leaf.grad / rows.sum(), exact_gradient(score_I, target), atol=2e-2)


def test_without_the_correction_the_gradient_would_be_another():
    """The tolerance above separates: logQ left out is far outside it."""
    generator = torch.Generator().manual_seed(3)
    items, draws, target = 12, 400_000, 5
    score_I = torch.randn(items, generator=generator, dtype=torch.float64)
    q_I = torch.rand(items, generator=generator, dtype=torch.float64)
    q_I /= q_I.sum()
    drawn = torch.multinomial(q_I, draws, replacement=True, generator=generator)
    leaf = score_I.clone().requires_grad_()
    flat = torch.full((draws,), -np.log(items))
    losses.sampled_softmax(leaf[target, None], leaf[None, drawn], flat, (drawn == target)[None]).sum().backward()
    assert np.abs(leaf.grad.numpy() - exact_gradient(score_I, target)).max() > 4e-2


# --- of rows with labels ---


def naive_focal(x, y, gamma):
    p = sigmoid(x) if y else 1 - sigmoid(x)
    return -((1 - p) ** gamma) * np.log(p)


@settings(deadline=None, max_examples=20)
@given(seeds, st.integers(1, 9), st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]))
def test_log_loss_and_focal_equal_their_definitions(seed, B, gamma):
    rng = np.random.default_rng(seed)
    logits, label = rng.normal(size=B) * 3, rng.integers(2, size=B)
    plain = [naive_focal(x, y, 0) for x, y in zip(logits, label, strict=True)]
    focal = [naive_focal(x, y, gamma) for x, y in zip(logits, label, strict=True)]
    np.testing.assert_allclose(losses.log_loss(tensor(logits), tensor(label)), plain, rtol=1e-10)
    np.testing.assert_allclose(losses.focal(tensor(logits), tensor(label), gamma), focal, rtol=1e-10)


def test_log_loss_takes_shares():
    share, x = 0.3, 0.7
    expected = -share * np.log(sigmoid(x)) - (1 - share) * np.log(1 - sigmoid(x))
    assert losses.log_loss(tensor([x]), tensor([share])).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_gradient_equals_differences(gamma):
    logits, label, h = tensor([-4.0, -0.3, 0.0, 2.0, 5.0]), tensor([1.0, 0.0, 1.0, 1.0, 0.0]), 1e-6
    leaf = logits.clone().requires_grad_()
    losses.focal(leaf, label, gamma).sum().backward()
    difference = (losses.focal(logits + h, label, gamma) - losses.focal(logits - h, label, gamma)) / (2 * h)
    np.testing.assert_allclose(leaf.grad, difference, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", [losses.log_loss, losses.focal])
def test_certain_logits_have_a_finite_loss_and_gradient(loss):
    logits = torch.tensor([200.0, -200.0, 200.0, -200.0], requires_grad=True)
    loss_B = loss(logits, torch.tensor([1.0, 0.0, 0.0, 1.0]))
    loss_B.sum().backward()
    assert loss_B.tolist() == [0, 0, 200, 200]
    assert logits.grad.isfinite().all()


# --- of rows in groups ---

OF_GROUPS = [losses.pairwise, losses.listwise]


def naive_pairwise(x, y, group):
    pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if group[i] == group[j] and y[i] and not y[j]]
    return np.mean([-np.log(sigmoid(x[i] - x[j])) for i, j in pairs]) if pairs else 0


def naive_listwise(x, y, group):
    found = []
    for g in np.unique(group):
        log_p, label = np.log(softmax(x[group == g])), y[group == g]
        if 0 < label.sum() < len(label):
            found.append(-(label / label.sum() * log_p).sum())
    return np.mean(found) if found else 0


def grouped_rows(seed, B, groups):
    rng = np.random.default_rng(seed)
    return rng.normal(size=B) * 3, rng.integers(2, size=B), rng.integers(-groups, groups, size=B)


def value_and_gradient(loss, logits, label, group):
    leaf = tensor(logits).requires_grad_()
    found = loss(leaf, tensor(label), torch.tensor(group))
    found.backward()
    return found.item(), leaf.grad.numpy()


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(0, 25), st.integers(1, 5))
def test_losses_of_groups_equal_their_definitions(seed, B, groups):
    rows = grouped_rows(seed, B, groups)
    for loss, naive in ((losses.pairwise, naive_pairwise), (losses.listwise, naive_listwise)):
        assert value_and_gradient(loss, *rows)[0] == pytest.approx(naive(*rows), rel=1e-10)


@pytest.mark.parametrize("loss", OF_GROUPS)
def test_gradients_of_groups_equal_differences(loss):
    logits, label, group = grouped_rows(1, 12, 2)
    _, gradient = value_and_gradient(loss, logits, label, group)
    for b, step in enumerate(1e-6 * np.eye(12)):
        ends = [value_and_gradient(loss, logits + sign * step, label, group)[0] for sign in (1, -1)]
        assert gradient[b] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-8)


@pytest.mark.parametrize("loss", OF_GROUPS)
@settings(deadline=None, max_examples=20)
@given(seed=seeds, B=st.integers(1, 25))
def test_only_the_order_within_groups_counts(loss, seed, B):
    """Not a constant added to a group, not the names of groups, not the order of the rows."""
    logits, label, group = grouped_rows(seed, B, 2)
    rng = np.random.default_rng(seed)
    found, gradient = value_and_gradient(loss, logits, label, group)
    shifted = logits + rng.normal(size=4)[group]
    renamed, order = 1000 * rng.permutation(4)[group], rng.permutation(B)
    for same in ((shifted, label, group), (logits, label, renamed)):
        np.testing.assert_allclose(value_and_gradient(loss, *same)[1], gradient, atol=1e-12)
        assert value_and_gradient(loss, *same)[0] == pytest.approx(found, rel=1e-10)
    again = value_and_gradient(loss, logits[order], label[order], group[order])
    assert again[0] == pytest.approx(found, rel=1e-10)
    np.testing.assert_allclose(again[1], gradient[order], atol=1e-12)
    for g in np.unique(group):
        assert gradient[group == g].sum() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("loss", OF_GROUPS)
@pytest.mark.parametrize("B", [0, 3])
def test_groups_of_one_class_are_zero_with_a_gradient(loss, B):
    found, gradient = value_and_gradient(loss, np.ones(B), np.array([1, 1, 0])[:B], np.array([4, 4, 7])[:B])
    assert found == 0
    assert gradient.tolist() == [0] * B


@pytest.mark.parametrize("loss", OF_GROUPS)
def test_certain_orders_have_a_finite_loss_and_gradient(loss):
    logits = torch.tensor([1000.0, 0.0, -1000.0, 0.0], requires_grad=True)
    found = loss(logits, torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([0, 0, 1, 1]))
    found.backward()
    assert found.item() == 500
    assert logits.grad.tolist() == [0, 0, -0.5, 0.5]


@pytest.mark.parametrize("loss", OF_GROUPS)
def test_gradients_of_many_pairs_are_the_same_bits(loss):
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(0), requires_grad=True)
    label, group = (torch.arange(1000) % 2).float(), torch.zeros(1000, dtype=torch.int64)
    gradients = [torch.autograd.grad(loss(logits, label, group), logits)[0] for _ in range(5)]
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


# --- of amounts ---


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
def test_pinball_equals_the_metric(quantile):
    prediction, target = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss_B = losses.pinball(prediction, target, quantile)
    assert loss_B.shape == (50,)
    assert float(loss_B.mean()) == pytest.approx(calibration.pinball(prediction, target, quantile), rel=1e-12)


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
def test_pinball_is_least_at_the_quantile(quantile):
    target = torch.rand(999, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    constant = target.quantile(quantile)
    least = losses.pinball(constant, target, quantile).mean()
    for other in (constant - 0.01, constant + 0.01):
        assert losses.pinball(other, target, quantile).mean() > least
