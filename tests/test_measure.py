"""Intervals against scipy, and the shares on readings made by hand."""

import json
import math

import pytest
from scipy.stats import binomtest

from erase.concepts import Concept, Prompt
from eval.detectors import Reading
from eval.measure import Share, measure


@pytest.mark.parametrize("n", [1, 2, 7, 96, 138, 5000])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.9, 1])
def test_the_interval_is_wilsons(share: float, n: int) -> None:
    count = round(share * n)
    expected = binomtest(count, n).proportion_ci(method="wilson")
    assert Share(count, n).interval() == pytest.approx((expected.low, expected.high), abs=1e-7)
    record = Share(count, n).record()
    assert record["low"] - 1e-12 <= record["value"] <= record["high"] + 1e-12 and record["n"] == n


def test_another_confidence() -> None:
    expected = binomtest(3, 20).proportion_ci(0.99, method="wilson")
    assert Share(3, 20).interval(2.5758293) == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_no_trial_at_all() -> None:
    assert math.isnan(Share(0, 0).value) and Share(0, 0).interval() == (0, 1)


def test_shares_add_up() -> None:
    assert Share(1, 3) + Share(2, 5) == Share(3, 8)


def asked(concept: str, style: str | None) -> Prompt:
    return Prompt("", concept, style)


def test_an_object_by_hand() -> None:
    """Dog: 1 of 4 pictures still shows it, whatever its style. Kept: 2 of 4 objects (IRA), 2 of 3 named styles (CRA)."""
    forget = [
        (asked("dog", "3d"), Reading("dog", "neon")),
        (asked("dog", "3d"), Reading("cat", "3d")),
        (asked("dog", None), Reading(None, "3d")),
        (asked("dog", "neon"), Reading("cat", "neon")),
    ]
    retain = [
        (asked("cat", "3d"), Reading("cat", "3d")),
        (asked("cat", "neon"), Reading("dog", "neon")),
        (asked("car", "neon"), Reading(None, "3d")),
        (asked("car", None), Reading("car", "neon")),
    ]
    measured = measure(Concept("dog", "object", object="dog"), forget, retain)
    assert (measured.forget, measured.ira, measured.cra) == (Share(1, 4), Share(2, 4), Share(2, 3))
    assert (measured.none_forget, measured.none_retained) == (Share(1, 4), Share(1, 4))
    assert measured.by_name == {"cat": Share(1, 2), "car": Share(1, 2), "3d": Share(1, 1), "neon": Share(1, 2)}


def test_a_style_by_hand() -> None:
    """Neon: 2 of 3 pictures still show it, whatever their object. Kept: 1 of 2 styles (IRA), 2 of 2 objects (CRA)."""
    forget = [
        (asked("dog", "neon"), Reading("cat", "neon")),
        (asked("car", "neon"), Reading(None, "neon")),
        (asked("cat", "neon"), Reading("cat", "3d")),
    ]
    retain = [(asked("cat", "3d"), Reading("cat", "neon")), (asked("car", "3d"), Reading("car", "3d"))]
    measured = measure(Concept("neon", "style", style="neon"), forget, retain)
    assert (measured.forget, measured.ira, measured.cra) == (Share(2, 3), Share(1, 2), Share(2, 2))


def test_a_pair_by_hand() -> None:
    """A dog in neon is shown only where both are: 1 of 3. Kept: 2 of 2 objects (IRA), 1 of 2 styles (CRA)."""
    forget = [
        (asked("dog", "neon"), Reading("dog", "neon")),
        (asked("dog", "neon"), Reading("dog", "3d")),
        (asked("dog", "neon"), Reading("cat", "neon")),
    ]
    retain = [(asked("dog", "3d"), Reading("dog", "3d")), (asked("cat", "neon"), Reading("cat", "3d"))]
    measured = measure(Concept("dog, neon style", "composition", "dog", "neon"), forget, retain)
    assert (measured.forget, measured.ira, measured.cra) == (Share(1, 3), Share(2, 2), Share(1, 2))


def test_the_record_has_the_shares_and_their_intervals_and_is_json() -> None:
    forget = [(asked("dog", "3d"), Reading("dog", "3d"))] * 3 + [(asked("dog", "3d"), Reading(None, "3d"))]
    retain = [(asked("cat", "3d"), Reading("cat", "3d"))] * 2
    record = json.loads(json.dumps(measure(Concept("dog", "object", object="dog"), forget, retain).record()))
    assert (record["forget_accuracy"], record["ira"], record["cra"], record["n"]) == (0.75, 1, 1, 6)
    low, high = binomtest(3, 4).proportion_ci(method="wilson")
    expected = {"value": 0.75, "low": pytest.approx(low, abs=1e-6), "high": pytest.approx(high, abs=1e-6), "n": 4}
    assert record["intervals"]["forget"] == expected
    assert record["none_forget"] == 0.25


def test_what_is_in_no_style_counts_as_none_and_as_no_style_asked_for() -> None:
    """A style erased into a mush is forgotten, and the record says that it became nothing."""
    style = Concept("neon", "style", style="neon")
    forget = [(asked("dog", "neon"), Reading("dog", None)), (asked("dog", "neon"), Reading("dog", "3d"))]
    found = measure(style, forget, [(asked("dog", "3d"), Reading("dog", None)), (asked("cat", "3d"), Reading("cat", "3d"))])
    assert (found.forget.value, found.ira.value, found.cra.value) == (0, 0.5, 1)
    assert found.none_forget.value == 0.5 and found.none_retained.value == 0.5
