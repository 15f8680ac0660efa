"""Which annotations a phase trains on, worked out by hand."""

from types import SimpleNamespace

import pytest

from swirl_nemo.annotation import Annotated, select, uncertain_first
from swirl_nemo.data.transition import Transition
from swirl_nemo.roles import FWM, IDM


def annotated(name: str, idm: float, fwm: float) -> Annotated:
    return Annotated(Transition(id=name, x="x", z="z", y="y", world="w", episode="e", t=0), idm, fwm)


ROWS = [
    *(annotated("a", -0.01, -9.0), annotated("b", -0.02, -0.02)),
    *(annotated("c", -3.0, -0.01), annotated("d", -0.5, -2.0)),
]


def chosen(rows: list[Transition]) -> str:
    return "".join(row.id for row in rows)


@pytest.mark.parametrize(
    ("plausible", "confident", "kept"),
    [(None, None, "abcd"), (-2.0, None, "bcd"), (None, -0.02, "ab"), (-4.0, -1.0, "bd")],
)
def test_annotations_pass_both_floors(plausible, confident, kept):
    phase = SimpleNamespace(plausibility_floor=plausible, confidence_floor=confident)
    assert chosen(select(ROWS, IDM, phase, None)) == kept


@pytest.mark.parametrize(("role", "order"), [(FWM, "adbc"), (IDM, "acdb")])
def test_what_the_trained_role_knows_comes_last(role, order):
    """The IDM does not know what it is sure of where the FWM disagrees: that is what it has to learn."""
    assert chosen(uncertain_first(ROWS, role, -0.05)) == order
    assert chosen(uncertain_first(ROWS, role, None)) == "abcd"


def test_nothing_left_is_one_line():
    phase = SimpleNamespace(plausibility_floor=0.0, confidence_floor=None)
    with pytest.raises(ValueError, match=r"phase\.fwm: none of 4 annotations passes") as error:
        select(ROWS, FWM, phase, None)
    assert "\n" not in str(error.value)
