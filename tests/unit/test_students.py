"""Students with ranges: which architectures they give, by which names, in which order."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autocompress.errors import InvalidInput, TaskFailed, UnknownName
from autocompress.plan import Scalar
from autocompress.space import Choice, Float, Int, Knob
from autocompress.student import MOST_VARIANTS, Student
from tests.unit.test_task import a_task


def build(width: int = 2, depth: int = 1) -> nn.Module:
    inner = [nn.Linear(width, width) for _ in range(depth - 1)]
    return nn.Sequential(nn.Linear(2, width), *inner, nn.Linear(width, 2))


STUDENT = Student(build, width=Int(2, 6, step=2), depth=Choice((1, 3)))
RANGES = st.dictionaries(
    st.sampled_from(("width", "depth", "kind")),
    st.one_of(
        st.integers(1, 4).map(lambda count: Int(8, 8 * count, step=8)),
        st.integers(1, 3).map(lambda count: Float(0.1, 0.1 * count, step=0.1)),
        st.just(Choice(("relu", "gelu"))),
        st.just(Choice((True, False))),
    ),
    max_size=3,
)


def test_every_combination_is_an_architecture_by_a_name_that_says_it() -> None:
    assert STUDENT.variants("small") == {
        f"small(depth={depth},width={width})": {"depth": depth, "width": width}
        for depth in (1, 3)
        for width in (2, 4, 6)
    }


def test_a_student_without_ranges_is_one_architecture_by_its_own_name() -> None:
    assert Student(build).variants("small") == {"small": {}}


@given(RANGES)
def test_names_are_the_same_whatever_the_order_of_the_ranges(ranges: dict[str, Knob]) -> None:
    turned = Student(build, **dict(reversed(ranges.items())))
    assert list(turned.variants("a")) == list(Student(build, **ranges).variants("a"))


@given(RANGES)
def test_no_two_combinations_share_a_name(ranges: dict[str, Knob]) -> None:
    variants = Student(build, **ranges).variants("a")
    assert len({tuple(answers.items()) for answers in variants.values()}) == len(variants)
    assert all(set(answers) == set(ranges) for answers in variants.values())


@pytest.mark.parametrize("count", [2, 3, 5, 9])
def test_the_first_few_variants_lie_far_apart(count: int) -> None:
    def place(answers: dict[str, Scalar]) -> tuple[float, float]:
        return float(answers["width"]) / 56, float(answers["depth"]) / 7

    variants = list(Student(build, width=Int(0, 56, step=8), depth=Int(0, 7)).variants("a").values())
    nearest = min(math.dist(place(one), place(other)) for one, other in combinations(variants[:count], 2))
    assert nearest >= 0.6 / math.sqrt(count), "of points on a square that keep apart as well as they can"


def test_the_values_of_a_float_range_are_those_written_down() -> None:
    values = [answers["rate"] for answers in Student(build, rate=Float(0.1, 0.5, step=0.1)).variants("a").values()]
    assert sorted(values) == [0.1, 0.2, 0.3, 0.4, 0.5]


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"rate": Float(0.1, 0.5)}, "expected a Choice, an Int or a Float, with a step above 0"),
        ({"width": Int(8, 64, step=0)}, "with a step above 0"),
        ({"width": (8, 16)}, "expected a Choice"),
        ({"width": Int(8, 4)}, "expected at least one value"),
        ({"kind": Choice(("a/b",))}, "words of letters, digits"),
        ({"kind": Choice((1, 1))}, "different ones"),
        ({"width": Int(1, 40), "depth": Int(1, 2)}, "40 of width × 2 of depth make 80 combinations; .* coarser steps"),
    ],
)
def test_a_range_that_cannot_be_searched_is_refused(ranges: dict[str, Knob], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Student(build, **ranges)


def test_as_many_combinations_as_are_allowed_are_allowed() -> None:
    assert len(Student(build, width=Int(1, MOST_VARIANTS)).variants("a")) == MOST_VARIANTS


def test_what_is_not_callable_builds_nothing() -> None:
    with pytest.raises(InvalidInput, match=r"Sequential can't build|dict can't build"):
        Student({})  # type: ignore[arg-type]


def test_a_task_builds_a_student_by_the_name_of_its_architecture() -> None:
    task = a_task(students={"small": STUDENT, "plain": build})
    assert task.student_variants["plain"] == ("plain",)
    assert task.student_variants["small"] == tuple(STUDENT.variants("small"))
    model = task.build_student("small(depth=3,width=4)")
    assert [part.out_features for part in model.children()] == [4, 4, 4, 2]
    with pytest.raises(UnknownName, match=r"did you mean 'small\(depth=3,width=\d\)'"):
        task.build_student("small(depth=3,width=5)")


def test_a_builder_that_does_not_take_its_ranges_is_the_users_failure() -> None:
    task = a_task(students={"small": Student(build, height=Int(1, 2))})
    with pytest.raises(TaskFailed, match=r"building the student 'small\(height=1\)' raised TypeError"):
        task.build_student("small(height=1)")
