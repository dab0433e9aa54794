"""The unlearning measures on values worked out by hand, in the order their formulas give."""

import math

import numpy as np
import pytest
from scipy.stats import entropy

from eval.unlearning import consistency_kl, consistency_labels, consistency_parameters, effectiveness, efficiency, sape


def test_efficiency_is_the_mean_of_the_ratios_and_not_the_ratio_of_the_means():
    """10/2 = 5 and 8/8 = 1: mean 3; the ratio of the means would be 1.8."""
    assert efficiency([10, 8], [2, 8]) == 3.0
    assert efficiency(10.0, [2, 5]) == 3.5  # one retraining time for all requests


def test_effectiveness_is_the_gap_of_the_test_measure():
    assert effectiveness(0.97, 0.93) == pytest.approx(0.04)
    assert effectiveness([0.9, 0.5], [0.8, 0.8]) == pytest.approx(0.2)


def test_consistency_of_parameters_is_the_l2_distance():
    assert consistency_parameters([1, 2, 3], [1, 5, 7]) == 5.0
    weights = np.random.default_rng(0).normal(size=(4, 5))
    assert consistency_parameters(weights, weights) == 0.0


def test_consistency_of_labels_is_the_share_that_agrees():
    assert consistency_labels([0, 1, 2, 3], [0, 1, 2, 9]) == 0.75
    assert consistency_labels(["dog", "cat"], ["dog", "cat"]) == 1.0


def test_kl_is_of_the_unlearned_against_the_retrained():
    """.5 ln(.5/.9) + .5 ln(.5/.1) = .5108256; the other way round .9 ln 1.8 + .1 ln .2 = .3680642."""
    assert consistency_kl([0.5, 0.5], [0.9, 0.1]) == pytest.approx(0.5108256, abs=1e-7)
    assert consistency_kl([0.9, 0.1], [0.5, 0.5]) == pytest.approx(0.3680642, abs=1e-7)


def test_kl_is_the_mean_over_rows_of_scipys_relative_entropy():
    first, second = np.random.default_rng(1).dirichlet(np.ones(6), size=(2, 40))
    expected = np.mean([entropy(p, q) for p, q in zip(first, second, strict=True)])
    assert consistency_kl(first, second) == pytest.approx(expected, rel=1e-12)


def test_kl_of_a_ruled_out_class_is_infinite_and_of_an_unused_one_is_not():
    assert consistency_kl([0.5, 0.5], [1.0, 0.0]) == math.inf
    assert consistency_kl([1.0, 0.0], [0.5, 0.5]) == pytest.approx(math.log(2))


@pytest.mark.parametrize(("first", "second", "expected"), [(0, 10, 100), (80, 90, 100 * 10 / 170), (0, 0, 0), (-3, 3, 100)])
def test_sape_by_hand_and_symmetric(first, second, expected):
    assert sape(first, second) == pytest.approx(expected)
    assert sape(second, first) == sape(first, second)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: efficiency([1], [0]), "above 0"),
        (lambda: efficiency([], []), "at least one"),
        (lambda: effectiveness([1, 2], [1]), "same measures"),
        (lambda: consistency_parameters([1.0], [math.nan]), "finite"),
        (lambda: consistency_labels([1, 2], [1]), "same inputs"),
        (lambda: consistency_kl([2.0, -1.0], [0.5, 0.5]), "softmax"),
        (lambda: consistency_kl([[0.5, 0.5]], [0.2, 0.3, 0.5]), "same inputs and classes"),
        (lambda: sape(math.inf, 1), "finite"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
