"""Pre-training on state-only pairs: the difference of the states stands in the action's place, and no label is read."""

from dataclasses import replace

from swirl_nemo.config import PretrainConfig
from swirl_nemo.data.facts import difference
from swirl_nemo.data.renaming import WORD, Renamer
from swirl_nemo.data.transition import Transition
from swirl_nemo.pretraining import StateOnlyRows
from swirl_nemo.roles import FWM, IDM

ROW = Transition("a", "cup shelf . lamp on . door open", None, "cup hand . lamp on . door shut", "w", "e", 0)
OTHER = replace(ROW, id="b", x="key red . gate wide", y="key red . gate low")


def rows(without_action: float = 0.0, renamed: float = 0.0, seed: int = 1) -> StateOnlyRows:
    cfg = PretrainConfig(without_action=without_action, renamed=renamed)
    return StateOnlyRows(cfg, [ROW, OTHER], " . ", seed)


def test_the_difference_is_what_the_idm_says_and_the_fwm_carries_out():
    (fwm, row), (idm, same) = rows().pairs([ROW], 0)
    assert (fwm, idm) == (FWM, IDM) and row == same
    assert IDM.target(row) == "cup hand . door shut" and FWM.target(row) == ROW.y and row.x == ROW.x


def test_no_label_is_read():
    labelled = replace(ROW, z="move cup to hand and set door shut")
    made = rows(without_action=0.5, renamed=0.5)
    assert made.pairs([labelled], 3) == made.pairs([ROW], 3)
    assert labelled.z == "move cup to hand and set door shut"


def test_a_share_of_the_fwms_rows_shows_no_action_and_keeps_its_words():
    batch = [replace(ROW, id=str(number)) for number in range(4)]
    pairs = rows(without_action=0.25, renamed=1.0).pairs(batch, 0)
    fwm, idm = ([row for role, row in pairs if role is kind] for kind in (FWM, IDM))
    assert [row.z == "" for row in fwm] == [True, False, False, False] and fwm[0] == replace(batch[0], z="")
    assert fwm[1:] == idm[1:] and all(row.z for row in idm)


def test_a_renamed_row_is_the_same_change_in_other_words():
    (_, row), _ = rows(renamed=0.6).pairs([ROW], 0)
    before, after = WORD.findall(f"{ROW.x} {ROW.y}"), WORD.findall(f"{row.x} {row.y}")
    names = dict(zip(before, after, strict=True))
    assert after == [names[word] for word in before], "a word has one new name wherever it stands"
    assert len(set(names.values())) == len(names), "two words stay two"
    changed = {word for word, name in names.items() if word != name}
    assert 0 < len(changed) < len(names) and {names[word] for word in changed} <= set(WORD.findall(OTHER.x + OTHER.y))
    assert row.z == difference(row.x, row.y, " . ") and len(row.z.split(" . ")) == 2


def test_names_are_fixed_by_seed_step_and_transition():
    made, again = rows(renamed=0.5), rows(renamed=0.5)
    assert [made.pairs([ROW], step) for step in range(3)] == [again.pairs([ROW], step) for step in range(3)]
    assert len({str(made.pairs([ROW], step)) for step in range(6)}) > 1
    assert [rows(renamed=0.5, seed=2).pairs([ROW], step) for step in range(3)] != [
        made.pairs([ROW], step) for step in range(3)
    ]


def test_of_a_labelled_row_what_the_action_is_done_to_is_renamed_and_the_action_stays():
    label, renamed = replace(ROW, z="move cup to hand"), Renamer([ROW, OTHER], 1.0, 1)
    row = renamed(label, 0)
    (_, one, _, other) = row.z.split()
    assert row.z == f"move {one} to {other}" and {one, other} <= set(WORD.findall(OTHER.x + OTHER.y))
    assert (row.x, row.y) == (f"{one} shelf . lamp on . door open", f"{one} {other} . lamp on . door shut")
    assert Renamer([ROW, OTHER], 0.0, 1)(label, 0) == label
