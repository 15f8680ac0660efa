"""report.html from run folders made up for the test: what it shows, and that it needs nothing but itself."""

import io
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from swirl_nemo.evaluation.pictures import pictures
from swirl_nemo.evaluation.report import held_out_rows, held_out_table, switches, write_report

CONFIG = """\
run: {name: made-up, seed: 7}
model: {weights: separate}
alternation: {iterations: 2, order: [idm, fwm]}
annotate: {certainty_ceiling: null}
phase:
  fwm: {policy_gradient: 1.0, dead_std: 0.1, replay: 1.0, mstep: 3.0, kl_beta: 0.04, group: 8, divide_by_std: true,
        plausibility_floor: -8.0, confidence_floor: null}
  idm: {policy_gradient: 0.0, dead_std: 0.0, replay: 0.0, mstep: 0.0, kl_beta: 0.0, group: 16, divide_by_std: false,
        plausibility_floor: null, confidence_floor: -0.05}
"""
ENV = {
    "started": "2026-01-01T00:00:00+00:00",
    "seed": 7,
    "layout": {"nodes": 1, "devices": 2, "backend": "gloo", "tensor": 2, "pipeline": 1, "sequence": False},
    "python": "3.11.2",
    "platform": "Linux",
    "commit": "0123456789abcdef",
    "dirty": True,
    "versions": {"torch": "2.13.0", "secret-package": "1"},
}
SUMMARY = {
    "held_out": {
        "fwm": {
            "exact_match": {"warmup": 0.4, "continued_sft": 0.45, "swirl": 0.6},
            "token_f1": {"warmup": 0.8, "continued_sft": 0.8, "swirl": 0.78},
            "gold_logprob": {"warmup": -4.0, "continued_sft": -3.5, "swirl": -1.0},
        },
        "idm": {
            "exact_match": {"warmup": 0.0, "swirl": 0.5},
            "token_f1": {"warmup": 0.7, "continued_sft": None, "swirl": 0.7},
            "gold_logprob": {"warmup": -2.0, "continued_sft": -2.0, "swirl": -3.0},
        },
    },
    "cycle_consistency": {"warmup": 0.5, "continued_sft": 0.5, "swirl": 0.55},
    "world": "household",
    "labels_used": 80,
    "seconds": 90.0,
}


def phase_line(iteration: int, role: str, step: int) -> dict:
    return {
        "iteration": iteration,
        "phase": role,
        "step": step,
        "reward/mean": -1.0 / step,
        "reward/group_std": 0.2,
        "kl/reference": None if step == 2 else 0.01 * step,
        "drift/max": 1e-6,
        "group/dead_fraction": 0.5,
        "entropy": 1.0,
    }


def held_out_line(model: str, iteration: int, split: str = "validation") -> dict:
    value = 0.45 if model == "continued_sft" else 0.4 + 0.1 * iteration
    names = [f"{role}/{metric}" for role in ("fwm", "idm") for metric in ("exact_match", "token_f1", "gold_logprob")]
    return {"eval": True, "iteration": iteration, "model": model, "split": split} | dict.fromkeys(
        [*names, "cycle_consistency"], value
    )


def metrics() -> list[dict]:
    lines = [
        {"phase": "warmup", "role": role, "step": n, "loss": 3.0 / n} for role in ("fwm", "idm") for n in range(1, 9)
    ]
    lines.append(held_out_line("warmup", 0))
    for iteration in (1, 2):
        lines += [phase_line(iteration, role, n) for role in ("idm", "fwm") for n in range(1, 9)]
        lines.append(held_out_line("swirl", iteration))
    return [*lines, held_out_line("continued_sft", 2)]


SAMPLES = [
    {
        "stage": stage,
        "role": "fwm",
        "x": "cup on table",
        "z": "take cup",
        "y": "cup in hand",
        "prompt": "<fwm> cup on table <act> take cup",
        "prediction": "the big cup on hand",
        "target": "the big cup in hand",
        "correct": False,
    }
    for stage in ("warmup, iteration 0", "test, swirl")
]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "made-up"
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "env.json").write_text(json.dumps(ENV))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics()))
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SAMPLES))
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    return folder


class Page(HTMLParser):
    """Elements still open, addresses, table rows and text, as a browser would find them."""

    VOID = {"meta", "path", "use", "rect", "br", "image", "input"}

    def __init__(self, html: str):
        super().__init__()
        self.open, self.addresses, self.ids, self.rows, self.text = [], [], [], [], ""
        self.feed(html)

    def handle_startendtag(self, tag, attributes):
        self._read(attributes)

    def handle_starttag(self, tag, attributes):
        self._read(attributes)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def _read(self, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")]
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text += data
        if "td" in self.open:
            self.rows[-1].append(data)


def test_page_is_well_formed_and_fetches_nothing(folder):
    """Every element closed; no address leaves the page, in attributes or styles; no script."""
    html = write_report(folder).read_text()
    page = Page(html)
    assert not page.open
    assert all(address.startswith("#") for address in page.addresses)
    assert "<script" not in html and "url(http" not in html and "@import" not in html


def test_held_out_table_and_gains_by_hand(folder):
    """0.4 to 0.6 is +50 %; a log-prob from -4 to -1 has lost 75 % of its distance; from 0 there is no relative gain."""
    rows = Page(write_report(folder).read_text()).rows
    assert ["FWM", "exact match", "40.0 %", "45.0 %", "60.0 %", "+50.0 %"] in rows
    assert ["FWM", "token F1", "80.0 %", "80.0 %", "78.0 %", "-2.5 %"] in rows
    assert ["FWM", "gold log-prob", "-4.000", "-3.500", "-1.000", "+75.0 %"] in rows
    assert ["IDM", "exact match", "0.0 %", "–", "50.0 %", "–"] in rows
    assert ["IDM", "gold log-prob", "-2.000", "-2.000", "-3.000", "-50.0 %"] in rows
    assert ["both", "cycle consistency", "50.0 %", "50.0 %", "55.0 %", "+10.0 %"] in rows


def test_terminal_table_has_the_same_figures():
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(held_out_table(SUMMARY))
    text = console.export_text()
    for row in held_out_rows(SUMMARY):
        line = next(line for line in text.splitlines() if row.role in line and row.metric in line)
        assert [cell.strip() for cell in line.strip("│ ").split("│")] == [row.role, row.metric, *row.figures, row.gain]


def test_pictures_of_every_kind_with_ids_of_their_own(folder):
    """Curves need two iterations: the test split, read once, has none. Clip paths of one page do not share a name."""
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(held_out_line("swirl", 2, "test")) + "\n")
    page = Page(write_report(folder).read_text())
    for title in (
        "Reward, FWM phase",
        "Reward, IDM phase",
        "KL to reference",
        "Drift",
        "Dead groups",
        "Held out (validation): exact match",
        "Held out (validation): gold log-prob",
        "Supervised loss",
    ):
        assert title in page.text
    assert "Held out (test): exact match" not in page.text
    clips = [name for name in page.ids if re.match("p[0-9a-f]{10}$", name)]
    assert len(clips) >= 10 and len(clips) == len(set(clips))


def test_a_phase_without_rollouts_has_no_picture_of_rewards():
    """As with the policy gradient off: the lines hold losses alone."""
    lines = [{"iteration": 1, "phase": "fwm", "step": n, "loss": 1.0} for n in (1, 2)]
    assert pictures(lines) == []


def test_curves_hold_the_values_of_the_lines(folder):
    """The reward curve's SVG path has a point a step of both iterations; an unknown KL is bridged, not a gap."""
    html = write_report(folder).read_text()

    def points(title: str) -> int:
        figure = html[html.index(f"<figcaption>{title}") :]
        axes = figure[figure.index('id="line2d_', figure.index('id="axes_1"')) : figure.index("</figure>")]
        path = max(re.findall(r'<path d="([^"]*)"', axes), key=lambda path: len(re.findall("[ML] ", path)))
        assert path.count("M") == 1
        return len(re.findall("[ML] ", path))

    assert points("Reward, FWM phase") == 16
    assert points("KL to reference") == 14
    assert points("Held out (validation): exact match") == 3


def test_switches_say_what_was_on():
    import yaml

    shown = {name: values for name, *values in switches(yaml.safe_load(CONFIG))}
    assert shown["phase order"][0] == "IDM (Phase II) → FWM (Phase I), 2 times"
    assert shown["policy gradient"] == ["weight 1", "off"]
    assert shown["dead groups"] == ["std under 0.1 dropped", "none dropped for a small std"]
    assert shown["labelled replay"] == ["weight 1", "off"] and shown["M-step"] == ["weight 3", "off"]
    assert shown["plausibility floor"][0] == "log P(y|x,z) ≥ -8" and shown["certainty ceiling"][0] == "off"
    assert shown["KL"] == ["β 0.04", "off"]


def test_predictions_are_escaped_and_their_wrong_words_marked(folder):
    html = write_report(folder).read_text()
    assert "&lt;fwm&gt; cup on table &lt;act&gt; take cup" in html and "<fwm>" not in html
    assert html.count('<span class="off">on</span>') == html.count('class="off"') == len(SAMPLES)
    assert "0 of 1 right" in html


def test_an_unfinished_run_reports_what_it_has(folder):
    """Latest figures of each model on the split that it has; a line being written right now is left out."""
    (folder / "summary.json").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"eval": true, "iter')
    page = Page(write_report(folder).read_text())
    assert "not finished" in page.text and "Held out, validation split" in page.text
    assert ["FWM", "exact match", "40.0 %", "45.0 %", "60.0 %", "+50.0 %"] in page.rows


def test_a_run_that_has_just_begun_reports_its_configuration(folder):
    for name in ("summary.json", "metrics.jsonl", "samples.jsonl"):
        (folder / name).unlink()
    page = Page(write_report(folder).read_text())
    assert "plausibility_floor" in page.text and "0123456789ab + changes" in page.text
    assert ["FWM", "exact match", "–", "–", "–"] in page.rows


def test_only_packages_of_the_stack_are_named(folder):
    text = Page(write_report(folder).read_text()).text
    assert "torch 2.13.0" in text and "secret-package" not in text


def test_a_folder_that_is_no_run_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="config.yaml: give the folder of a run") as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)
