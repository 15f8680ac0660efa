"""recipes/annotation_quality.py on ten annotations, counted by hand."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from swirl_nemo.annotation import Annotated, write
from swirl_nemo.data.transition import Transition

LABELS = ["go north", "wait", "take lamp"]  # the last is not trained on
# true action, what was said, log P(y|x,z), log p(z); the likeliest first
SAID = [
    ("go north", "go north", -0.1, 0.0),
    ("go south", "go south", -0.2, 0.0),
    ("wait", "wait", -0.5, 0.0),
    ("take lamp", "take lamp", -0.6, 0.0),  # right, of a form that no label has
    ("go north", "go south", -1.0, 0.0),
    ("wait", "go north now", -1.5, 0.0),  # wrong, of a new form
    ("wait", "wait", -2.0, 0.0),  # just plausible
    ("go north", "go north lamp", -0.1, -5.0),  # the prior makes it implausible
    ("go west", "go west", -6.0, 0.0),
    ("go west", "go", -7.0, 0.0),
]


@pytest.fixture
def run(tmp_path) -> Path:
    rest = {"x": "a", "y": "b", "world": "w", "episode": "e", "t": 0}
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("labelled", "unlabelled", "unlabelled_actions")}
    numbered = [(str(n), *said) for n, said in enumerate(SAID)]
    rows = {
        "labelled": [rest | {"id": z, "z": z} for z in LABELS],
        "unlabelled": [rest | {"id": n, "z": None} for n, *_ in numbered],
        "unlabelled_actions": [{"id": n, "z": true} for n, true, *_ in numbered],
    }
    for name, path in files.items():
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
    folder = tmp_path / "run"
    folder.mkdir()
    OmegaConf.save({"data": files | {"max_labels": 2, "max_unlabelled": None}}, folder / "config.yaml")
    found = [Annotated(Transition(n, "a", z, "b", "w", "e", 0), -1.0, p, prior) for n, _, z, p, prior in numbered]
    write(found[::-1], folder / "annotations-1-idm.jsonl", folder / "annotation_scores-1-idm.jsonl")
    return folder


def test_annotations_are_counted(recipe, run, capsys):
    recipe.main([str(run)])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| run | 1-idm | 60.0 | 70.0 | 71.4 | 100, 100, 0, 50, 50 | 4 | 3 | 1 |"
    ]


@pytest.mark.parametrize("missing", ["annotations", "actions"])
def test_what_a_run_lacks_is_one_line(recipe, run, missing):
    if missing == "annotations":
        (run / "annotations-1-idm.jsonl").unlink()
        wanted = r"^annotation_quality: .*run: has no annotations-\*.jsonl: give the folder of a run that has begun"
    else:
        cfg = OmegaConf.load(run / "config.yaml")
        cfg.data.unlabelled_actions = None
        OmegaConf.save(cfg, run / "config.yaml")
        wanted = r"^annotation_quality: .*run: data.unlabelled_actions=null: its data have no true actions"
    with pytest.raises(SystemExit, match=wanted):
        recipe.main([str(run)])
