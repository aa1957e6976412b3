"""ΔEnergy against its definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from ood_audit.scoring.scores.delta_energy import delta_energy

CASES = settings(max_examples=150, deadline=None)
temperatures = st.sampled_from([0.01, 0.015, 0.07, 0.3, 1.0, 5.0])


@st.composite
def cosines(draw, max_classes=40):
    classes = draw(st.integers(1, max_classes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    centre, spread = draw(st.sampled_from([(0.1, 0.03), (0.2, 0.2), (0.0, 0.5), (-0.3, 0.3), (0.9, 0.1)]))
    return np.clip(rng.normal(centre, spread, (3, classes)), -1, 1).astype(np.float32)


def slow(row, temperature, top_c, reset_to):
    """The definition, one reset at a time, in float64."""
    row = np.asarray(row, np.float64)
    base = -logsumexp(row / temperature)
    total = 0.0
    for index in np.argsort(-row, kind="stable")[:top_c]:
        edited = row.copy()
        edited[index] = reset_to
        total += -logsumexp(edited / temperature) - base
    return total


@CASES
@given(cosines(), temperatures, st.integers(1, 6), st.sampled_from([0.0, 0.1, -0.2]))
def test_agrees_with_the_definition_in_float32(s, temperature, top_c, reset_to):
    got = delta_energy(torch.from_numpy(s), temperature=temperature, top_c=top_c, reset_to=reset_to)
    expected = [slow(row, temperature, top_c, reset_to) for row in s]
    # float32 cosines over τ have a rounding of s/τ · 6e-8 to begin with
    np.testing.assert_allclose(got.numpy(), expected, rtol=2e-5, atol=4e-7 / temperature)


@CASES
@given(cosines(), temperatures, st.sampled_from([0.0, 0.1]))
def test_identity_with_the_softmax(s, temperature, reset_to):
    """E_1 − E_0 = −log(1 − p_1 (1 − exp((v − s_1)/τ)))."""
    s64 = torch.from_numpy(s.astype(np.float64))
    got = delta_energy(s64, temperature=temperature, top_c=1, reset_to=reset_to).numpy()
    largest = s64.max(dim=1).values.numpy()
    p = np.exp(largest / temperature - logsumexp(s64.numpy() / temperature, axis=1))
    inside = 1 - p * (1 - np.exp((reset_to - largest) / temperature))
    usable = inside > 1e-8  # where 1 − p itself still has digits
    np.testing.assert_allclose(got[usable], -np.log(inside[usable]), rtol=1e-6, atol=1e-9)


@CASES
@given(cosines(), temperatures, st.integers(1, 4), st.randoms(use_true_random=False))
def test_order_of_the_classes_does_not_matter(s, temperature, top_c, random):
    order = list(range(s.shape[1]))
    random.shuffle(order)
    settings_ = {"temperature": temperature, "top_c": top_c, "reset_to": 0.0}
    torch.testing.assert_close(
        delta_energy(torch.from_numpy(s), **settings_), delta_energy(torch.from_numpy(s[:, order]), **settings_)
    )


@pytest.mark.parametrize("classes", [1, 2, 20_000])
@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_finite_for_any_number_of_classes(classes, temperature):
    s = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (4, classes)).astype(np.float32))
    got = delta_energy(s, temperature=temperature, top_c=2, reset_to=0.0)
    assert torch.isfinite(got).all()
    np.testing.assert_allclose(got, [slow(row, temperature, 2, 0.0) for row in s.numpy()], rtol=3e-5, atol=1e-5)


def slow_beside(row, background, temperature, top_c, reset_to):
    """With a background: the energies run over both, and similarities to classes alone are reset."""
    row, background = np.asarray(row, np.float64), np.asarray(background, np.float64)
    base = -logsumexp(np.concatenate([row, background]) / temperature)
    total = 0.0
    for index in np.argsort(-row, kind="stable")[:top_c]:
        edited = row.copy()
        edited[index] = reset_to
        total += -logsumexp(np.concatenate([edited, background]) / temperature) - base
    return total


@CASES
@given(cosines(), cosines(300), temperatures, st.integers(1, 6), st.sampled_from([0.0, 0.1, -0.2]))
def test_agrees_with_the_definition_beside_a_background(s, b, temperature, top_c, reset_to):
    settings_ = {"temperature": temperature, "top_c": top_c, "reset_to": reset_to}
    expected = [slow_beside(row, beside, **settings_) for row, beside in zip(s, b, strict=True)]
    got = delta_energy(torch.from_numpy(s), background=torch.from_numpy(b), **settings_)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected, rtol=2e-5, atol=4e-7 / temperature)
    in_float64 = delta_energy(torch.from_numpy(s).double(), background=torch.from_numpy(b).double(), **settings_)
    np.testing.assert_allclose(in_float64.numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [1e-4, 0.01, 1.0, 1e4])
@pytest.mark.parametrize("classes", [1, 2, 50])
def test_finite_beside_a_background_far_above_and_far_below(classes, temperature):
    s = torch.linspace(-1, 1, classes).repeat(3, 1)
    b = torch.stack([torch.full((45_000,), v) for v in (-1.0, 0.0, 1.0)])
    got = delta_energy(s, temperature=temperature, top_c=5, reset_to=0.0, background=b)
    assert torch.isfinite(got).all()
    expected = [slow_beside(*pair, temperature, 5, 0.0) for pair in zip(s.numpy(), b.numpy(), strict=True)]
    np.testing.assert_allclose(got, expected, rtol=3e-5, atol=2e-6)


def test_what_resembles_another_thing_more_has_less_energy_to_lose():
    s = torch.tensor([[0.30, 0.10], [0.30, 0.10]])
    b = torch.tensor([[0.10, 0.05], [0.40, 0.05]])
    got = delta_energy(s, temperature=0.01, top_c=1, reset_to=0.0, background=b)
    assert got[0] > 10 * got[1] > 0
    p = torch.softmax(torch.cat([s, b], dim=1).double() / 0.01, dim=1)[:, 0]
    np.testing.assert_allclose(got, -torch.log1p(-p), rtol=1e-4)  # as the docstring has it


def test_resolves_where_the_softmax_is_one_in_float32():
    s = torch.tensor([[0.40, 0.1, 0.1], [0.45, 0.1, 0.1], [0.50, 0.1, 0.1]])
    assert (torch.softmax(s / 0.01, dim=1)[:, 0] == 1).all()
    got = delta_energy(s, temperature=0.01, top_c=1, reset_to=0.0)
    assert got[0] < got[1] < got[2]
    assert math.isclose(got[1] - got[0], 5.0, rel_tol=1e-4)


def test_resolves_small_changes_among_many_classes():
    """At τ = 1 and K = 20,000 the change is 1e-5 of an energy of 10: a difference of log-sum-exps would lose it."""
    s = torch.full((2, 20_000), 0.1)
    s[0, 0], s[1, 0] = 0.300, 0.301
    got = delta_energy(s, temperature=1.0, top_c=1, reset_to=0.0)
    np.testing.assert_allclose(got, [slow(row, 1.0, 1, 0.0) for row in s.numpy()], rtol=1e-5)


def test_bound_of_the_paper():
    """A masked similarity s' with v ≤ s' gives E_2 − E_0 ≤ E_1 − E_0, as energy falls when a logit rises."""
    s = torch.tensor([[0.3, 0.2, 0.1]], dtype=torch.float64)
    changes = [delta_energy(s, temperature=0.1, top_c=1, reset_to=v).item() for v in (0.0, 0.1, 0.2, 0.3)]
    assert changes == sorted(changes, reverse=True)
    assert abs(changes[-1]) < 1e-12
