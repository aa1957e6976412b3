"""Ranks and AUROC, beside SciPy's and scikit-learn's."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from ood_audit.scoring.ranks import auroc, ranks, ranks_within

values = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=30).map(np.array)


@given(values)
def test_ranks_are_scipys(drawn):
    np.testing.assert_allclose(ranks(drawn), (rankdata(drawn) - 0.5) / len(drawn))


@given(values, values)
def test_ranks_among_others_leave_room_at_both_ends(drawn, reference):
    found = ranks_within(drawn, reference)
    assert ((found > 0) & (found < 1)).all()
    assert (np.argsort(found[np.argsort(drawn, kind="stable")], kind="stable") == np.arange(len(drawn))).all()


@given(values, values)
def test_auroc_is_scikit_learns(inside, unknown):
    is_unknown = np.arange(len(inside) + len(unknown)) >= len(inside)
    assert abs(auroc(inside, unknown) - roc_auc_score(is_unknown, np.concatenate([inside, unknown]))) < 1e-12


def test_auroc_of_one_group_tells_nothing():
    assert auroc(np.arange(3.0), np.empty(0)) == auroc(np.empty(0), np.arange(3.0)) == 0.5
