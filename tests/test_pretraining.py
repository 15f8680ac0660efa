"""Pre-training on state-only pairs: the difference of the states stands in the action's place, and no label is read."""

from dataclasses import replace

from swirl_nemo.data.transition import Transition
from swirl_nemo.roles import FWM, IDM
from swirl_nemo.supervised import with_differences

ROW = Transition("a", "cup shelf . lamp on . door open", None, "cup hand . lamp on . door shut", "w", "e", 0)


def test_the_difference_is_what_the_idm_says_and_the_fwm_carries_out():
    (row,) = with_differences([ROW], " . ")
    assert IDM.target(row) == "cup hand . door shut" and FWM.target(row) == ROW.y and row.x == ROW.x


def test_no_label_is_read():
    labelled = replace(ROW, z="move cup to hand and set door shut")
    assert with_differences([labelled], " . ") == with_differences([ROW], " . ")
    assert labelled.z == "move cup to hand and set door shut"
