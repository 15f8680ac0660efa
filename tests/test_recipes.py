"""What the small scripts of recipes/ say to a wrong folder: one line of what, where and how to mend it."""

import runpy
from pathlib import Path

import pytest

RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.fixture
def begun(tmp_path) -> Path:
    """The folder of a run that has not trained in a phase."""
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    return tmp_path / "begun"


def said(name: str, *arguments: str | Path, monkeypatch, capsys) -> str:
    """The last line that the script ends with, in error."""
    monkeypatch.syspath_prepend(str(RECIPES))
    monkeypatch.setattr("sys.argv", [f"{name}.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1].removeprefix(f"{name}.py: error: ")


@pytest.mark.parametrize(
    ("name", "arguments", "wanted"),
    [
        ("table", ["{begun}"], "none of these folders has a summary.json: give a run that is finished"),
        ("curves", ["{begun}", "out"], "has no reward of a phase: give the folder of a run that has trained in one"),
        ("curves", ["no/such", "out"], "no/such/metrics.jsonl: has no reward of a phase"),
        ("same_metrics", ["{begun}", "no/such"], "no/such/metrics.jsonl: no such file"),
        ("same_metrics", ["{begun}"], "the following arguments are required: other"),
        ("annotation_quality", [], "the following arguments are required: runs"),
        ("evidence_pictures", ["no_such"], "docs/evidence/no_such: nothing to draw: run python recipes/evidence.py"),
    ],
)
def test_a_wrong_folder_is_one_line(name, arguments, wanted, begun, monkeypatch, capsys):
    arguments = [text.format(begun=begun) for text in arguments]
    assert wanted in said(name, *arguments, monkeypatch=monkeypatch, capsys=capsys)


def test_same_metrics_of_two_runs_that_agree(begun, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["same_metrics.py", str(begun), str(begun)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(RECIPES / "same_metrics.py"), run_name="__main__")
    assert ended.value.code is None
    assert capsys.readouterr().out == "the same: 1 lines\n"
