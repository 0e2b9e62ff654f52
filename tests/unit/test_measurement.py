"""Laws of measurements."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import InvalidInput
from autocompress.measurement import (
    BETWEEN_PROCESSES,
    DISTURBED,
    Blocks,
    Measurement,
    Samples,
    disturbance,
    ratio_interval,
    repeatable,
    undisturbed,
)
from autocompress.profile import Protocol
from autocompress.serialization import from_data, from_json, to_json

TIMES = st.lists(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=5).map(tuple), min_size=1, max_size=6).map(tuple)


@given(TIMES, TIMES)
def test_the_interval_holds_the_ratio(candidate: Blocks, reference: Blocks) -> None:
    ratio, (low, high) = ratio_interval(candidate, reference, resamples=20)
    assert 0 < low <= ratio <= high


@given(TIMES, TIMES)
def test_the_interval_does_not_depend_on_chance(candidate: Blocks, reference: Blocks) -> None:
    first = ratio_interval(candidate, reference, resamples=20)
    assert first == ratio_interval(candidate, reference, resamples=20)


@given(TIMES)
def test_twice_the_time_is_twice_the_ratio(times: Blocks) -> None:
    doubled = tuple(tuple(2 * time for time in block) for block in times)
    assert ratio_interval(doubled, times, resamples=20)[0] == pytest.approx(2)


@given(TIMES, TIMES, st.floats(0.01, 100.0))
def test_a_machine_that_is_slower_for_both_finds_the_same_ratio(
    candidate: Blocks, reference: Blocks, factor: float
) -> None:
    slower = (tuple(tuple(factor * time for time in block) for block in times) for times in (candidate, reference))
    assert ratio_interval(*slower, resamples=20)[0] == pytest.approx(ratio_interval(candidate, reference)[0])


@given(TIMES, TIMES, st.randoms())
def test_the_order_of_blocks_is_of_no_matter(candidate: Blocks, reference: Blocks, chance: Random) -> None:
    mixed = (tuple(chance.sample(times, len(times))) for times in (candidate, reference))
    assert ratio_interval(*mixed, resamples=20) == ratio_interval(candidate, reference, resamples=20)


DELAYS = st.lists(st.floats(0.0, 1000.0), max_size=80)
"""What other work adds to some times, at most 80 of 100."""


def delayed(times: Blocks, delays: list[float], chance: Random) -> Blocks:
    """Times of which some, chosen at random, took longer."""
    extra = [*delays, *[0.0] * (sum(map(len, times)) - len(delays))]
    chance.shuffle(extra)
    return tuple(tuple(time + extra.pop() for time in block) for block in times)


@given(DELAYS, DELAYS, st.randoms())
def test_what_disturbs_up_to_four_of_five_inferences_hardly_changes_the_ratio(
    of_candidate: list[float], of_reference: list[float], chance: Random
) -> None:
    quiet = tuple(tuple(1 + 0.001 * chance.random() for _ in range(10)) for _ in range(10))
    candidate, reference = delayed(quiet, of_candidate, chance), delayed(quiet, of_reference, chance)
    assert undisturbed(candidate) >= undisturbed(quiet)
    assert ratio_interval(candidate, reference, resamples=20)[0] == pytest.approx(1, abs=0.002)


def test_steady_times_have_an_interval_without_width() -> None:
    assert ratio_interval(((3.0, 3.0),) * 4, ((2.0,),) * 5) == (1.5, (1.5, 1.5))


@given(TIMES)
def test_of_a_single_block_nothing_can_be_drawn_anew(times: Blocks) -> None:
    one = times[:1]
    ratio, interval = ratio_interval(one, ((1.0,),), resamples=20)
    assert interval == pytest.approx((ratio, ratio))


def test_more_noise_gives_a_wider_interval() -> None:
    reference = ((1.0,),) * 8
    _, (low, high) = ratio_interval(tuple((time,) for time in (1.0, 1.01) * 4), reference)
    _, (lower, higher) = ratio_interval(tuple((time,) for time in (1.0, 1.5) * 4), reference)
    assert higher - lower > high - low


def test_a_measurement_survives_json() -> None:
    samples = Samples(((1.0, 1.25), (1.5,)), ((1.1, 1.3), (1.6,)))
    measurement = Measurement(1.25, 0.5, (0.4, 0.6), 1.3, 1.6, 1.07, 4096, 2, 7, "machine", Protocol(), samples)
    assert from_json(Measurement, to_json(measurement)) == measurement


def test_a_record_from_before_loading_and_energy_were_measured_is_read() -> None:
    measurement = Measurement(1.25, 0.5, (0.4, 0.6), 1.3, 1.6, 1.07, 4096, 2, 7, "machine")
    data = json.loads(to_json(measurement))
    del data["wall_p99_ms"], data["session_ms"], data["energy_mj"], data["disturbance"]
    assert from_data(Measurement, data) == measurement


@pytest.mark.parametrize(
    "wrong",
    [
        {"warmup_runs": 0},
        {"interval": 0.0},
        {"patience": 0.5},
        {"patience": float("inf")},
        {"min_cpu_s": 2.0, "max_cpu_s": 1.0},
    ],
)
def test_a_protocol_that_can_not_be_carried_out_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInput):
        from_data(Protocol, wrong)


@given(st.floats(0.05, 5.0), st.floats(0.0, 0.2), st.floats(0.0, 0.2))
def test_what_other_processes_find_varies_more_than_the_blocks_of_one(ratio: float, below: float, above: float) -> None:
    own = ratio * (1 - below), ratio * (1 + above)
    low, high = repeatable(ratio, own)
    assert low <= own[0] + 1e-12
    assert high >= own[1] - 1e-12
    assert high - low >= 2 * 1.96 * BETWEEN_PROCESSES * ratio * (1 - 1e-9)


@given(st.floats(0.05, 5.0), st.floats(0.0, 0.99), st.floats(0.0, 5.0))
def test_a_reference_that_was_clearly_disturbed_leaves_the_ratio_open_by_half_and_more_but_above_0(
    ratio: float, below: float, above: float
) -> None:
    low, high = repeatable(ratio, (ratio * (1 - below), ratio * (1 + above)), disturbance=0.1)
    assert 0 < low < ratio * (1 - 0.38)
    assert high > ratio * (1 + 0.47)


@given(st.floats(0.0, 0.5), st.floats(0.0, 0.5))
def test_the_more_a_reference_was_disturbed_the_wider_is_the_interval(one: float, other: float) -> None:
    less, more = sorted((one, other))
    (low, high), (lower, higher) = (repeatable(0.5, (0.49, 0.51), disturbance=each) for each in (less, more))
    assert lower <= low
    assert higher >= high


@given(st.floats(0.01, 100.0), st.floats(0.01, 100.0), st.floats(0.0, 1.0))
def test_a_disturbance_is_told_from_3_percent_on(known: float, unknown: float, excess: float) -> None:
    found = disturbance(known * (1 + excess), known)
    assert found == (pytest.approx(excess) if found else 0)
    assert bool(found) == (excess > DISTURBED) or excess == pytest.approx(DISTURBED)
    assert disturbance(unknown, 0.0) == 0
