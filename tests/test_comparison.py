"""comparison.html of runs made up for the test: its figures by hand, and both pages in a real browser."""

import copy
import json
import os
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from test_report import CONFIG, ENV, SUMMARY, Page, held_out_line, phase_line

from swirl_nemo import cli
from swirl_nemo.evaluation.comparison import Group, cells, differences, flat, grouped, held_out, write_comparison
from swirl_nemo.evaluation.curves import DASHES, PALETTE, Stroke, curves, stroke, trailing_mean
from swirl_nemo.evaluation.report import read_run, write_report

NASTY = "a <b> & \"c'"


def make(
    root: Path, name: str, seed: int, lift: float = 0.0, *, finished: bool = True, logged: bool = True, **fwm: float
) -> Path:
    """A run's folder; SWIRL's exact match of the FWM is 0.6 + `lift`, `fwm` are settings of its phase.

    `logged`: it has lines of metrics, which take seconds to draw.
    """
    folder = root / name
    folder.mkdir(parents=True)
    config = yaml.safe_load(CONFIG)
    config["run"] = {"name": name, "seed": seed}
    config["phase"]["fwm"] |= fwm
    lines = [{"phase": "warmup", "role": role, "step": n, "loss": 3.0 / n} for role in ("fwm", "idm") for n in (1, 2)]
    lines.append(held_out_line("warmup", 0))
    for iteration in (1, 2):
        lines += [phase_line(iteration, role, n) for role in ("idm", "fwm") for n in range(1, 5)]
        lines.append(held_out_line("swirl", iteration))
    summary = copy.deepcopy(SUMMARY)
    summary["held_out"]["fwm"]["exact_match"]["swirl"] += lift
    summary["further"] = {"test_combinations": {"fwm": {"exact_match": {"swirl": 0.25}}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "env.json").write_text(json.dumps({**ENV, "seed": seed}))
    if logged:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture(scope="module")
def six(tmp_path_factory) -> list[Path]:
    """Three seeds of one configuration against three of another."""
    root = tmp_path_factory.mktemp("six")
    return [
        make(root, f"{name}-{seed}", seed, lift + 0.01 * seed, kl_beta=beta)
        for name, lift, beta in (("low", 0.0, 0.0), ("high-0.04", 0.1, 0.04))
        for seed in (1, 2, 3)
    ]


@pytest.fixture(scope="module")
def html(six) -> str:
    return write_comparison(six).read_text()


def test_page_is_well_formed_and_fetches_nothing(html):
    """Nor do lines share an id with those of another picture: they have classes."""
    page = Page(html)
    assert not page.open and all(address.startswith("#") for address in page.addresses)
    assert not any(re.match(r"run\d", name) for name in page.ids) and html.count('<g class="run5">') > 10
    assert not re.search(r"https?://(?!www\.w3\.org/)", html) and "@import" not in html and " src=" not in html


def test_three_seeds_against_three_are_two_groups_with_mean_and_range(six):
    """0.61, 0.62 and 0.63 have the mean 0.62; 0.71, 0.72 and 0.73 have 0.72, the best of the row."""
    runs = [read_run(folder) for folder in six]
    groups = grouped(runs, [folder.name for folder in six])
    assert groups == [Group("low", [0, 1, 2]), Group("high-0.04", [3, 4, 5])]
    (split, rows), (further, combinations) = held_out(runs, groups)
    assert (split, further) == ("test split", "test_combinations")
    assert [row.name for row in rows][::6] == ["FWM exact match", "cycle consistency"] and len(rows) == 7
    low, high = rows[0].cells
    assert [cell.figure for cell in low] == ["40.0 %", "45.0 %", "62.0 %"]
    assert (low[-1].spread, low[-1].best) == (["61.0 to 63.0"], False)
    assert (high[-1].figure, high[-1].spread, high[-1].best) == ("72.0 %", ["71.0 to 73.0"], True)
    assert [row.name for row in combinations] == ["FWM exact match"]
    assert [[cell.figure for cell in group] for group in combinations[0].cells] == [["–", "–", "25.0 %"]] * 2


def test_the_best_is_the_highest_of_what_is_shown():
    """Log-probs are best near 0; what differs beyond the third decimal is one; a figure alone is no best."""
    assert [c.best for [c] in cells("gold_logprob", [[[-3.0]], [[-1.0]], [[None]]])] == [False, True, False]
    assert [c.best for [c] in cells("exact_match", [[[0.7321]], [[0.7324]], [[0.731]]])] == [True, True, False]
    assert [c.best for [c] in cells("exact_match", [[[0.7]], [[None]]])] == [False, False]


def test_a_mean_says_of_how_many_runs_it_is():
    [[cell]] = cells("exact_match", [[[0.5, None, 0.6]]])
    assert (cell.figure, cell.spread) == ("55.0 %", ["50.0 to 60.0", "2 of 3 runs"])
    [[cell]] = cells("gold_logprob", [[[-2.0, -1.0]]])
    assert (cell.figure, cell.spread) == ("-1.500", ["-2.000 to -1.000"])


def test_names_of_groups_do_not_cut_numbers_and_differ(tmp_path):
    def names(*of_runs: tuple[str, float]) -> list[str]:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        runs = [read_run(make(root, name, seed, kl_beta=beta)) for seed, (name, beta) in enumerate(of_runs)]
        return [group.name for group in grouped(runs, [name for name, _ in of_runs])]

    assert names(("seed-11", 0.0), ("seed-12", 0.0), ("other", 0.1)) == ["seed", "other"]
    assert names(("a-1", 0.0), ("a-2", 0.0), ("a-3", 0.1), ("a-4", 0.1)) == ["a-1, a-2", "a-3, a-4"]
    assert names(("x", 0.0), ("y", 0.0)) == ["x, y"]


def test_differences_are_those_of_values_alone():
    """Nested keys are dotted, lists whole; a key that a run has not is told from null; the name is no difference."""
    one = {
        "run": {"name": "a", "seed": 1},
        "phase": {"fwm": {"kl": 0.1, "on": True}},
        "order": ["fwm", "idm"],
        "x": None,
    }
    other = {"run": {"name": "b", "seed": 1}, "phase": {"fwm": {"kl": 0.2, "on": 1}}, "order": ["idm"], "x": "null"}
    assert flat(one)["phase.fwm.kl"] == 0.1
    assert differences([one, other]) == [
        ("order", ['["fwm", "idm"]', '["idm"]']),
        ("phase.fwm.kl", ["0.1", "0.2"]),
        ("phase.fwm.on", ["true", "1"]),
        ("x", ["null", "null"]),
    ]
    assert differences([{"a": {}, "b": 1}, {"a": {"c": None}, "b": 1}]) == [
        ("a", ["{}", "(no such key)"]),
        ("a.c", ["(no such key)", "null"]),
    ]


def test_page_shows_differences_and_facts(html):
    page = Page(html)
    assert ["0.0", "0.0", "0.0", "0.04", "0.04", "0.04"] in page.rows and list("123123") in page.rows
    assert ["household", "1", "0123456789ab + changes", "1.5 min", "finished"] in page.rows
    assert "run.name" not in page.text and "mean of 3 runs, seeds 1, 2, 3" in page.text


def test_an_unfinished_run_is_compared_on_the_validation_split(tmp_path):
    """What all have; and its state names the last line. One that has just begun has no figures."""
    folders = [make(tmp_path, "done", 1), make(tmp_path, "half", 2, finished=False, kl_beta=0.5)]
    begun = make(tmp_path, "begun", 3, finished=False, logged=False, kl_beta=0.7)
    with (folders[1] / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(phase_line(3, "idm", 1)) + '\n{"iter')
    runs = [read_run(folder) for folder in (*folders, begun)]
    sections = dict(held_out(runs, [Group("", [number]) for number in range(3)]))
    assert list(sections) == ["test split", "validation split", "test_combinations"]
    shown = [[cell.figure for cell in group][-1] for group in sections["validation split"][0].cells]
    assert shown == ["60.0 %", "60.0 %", "–"]
    assert [group[-1].figure for group in sections["test split"][0].cells] == ["60.0 %", "–", "–"]
    text = Page(write_comparison([*folders, begun]).read_text()).text
    assert "not finished: idm, iteration 3, step 1" in text and "not finished: no line yet" in text


def test_runs_that_have_only_begun_still_make_a_page(tmp_path):
    settings = (("a", 0.0), ("b", 0.1))
    folders = [make(tmp_path, name, 1, finished=False, logged=False, kl_beta=beta) for name, beta in settings]
    text = Page(write_comparison(folders).read_text()).text
    assert "No run has been evaluated yet" in text and "phase.fwm.kl_beta" in text


def test_names_and_values_are_escaped(tmp_path):
    one, other = make(tmp_path, NASTY, 1, logged=False), make(tmp_path, "plain", 2, logged=False, kl_beta=0.1)
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["data"] = {"<key>": "<value>", "world": "<world>"}
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    with (one / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"phase": 'p"<', "role": "fwm", "step": n, "loss": 1.0}) + "\n" for n in (1, 2))
    html = write_comparison([one, other]).read_text()
    assert "a &lt;b&gt; &amp; &#34;c&#39;" in html and "&lt;value&gt;" in html
    assert not re.search(r"<(b|value|key|world)>", html) and 'p"<' not in html
    assert Page(html).rows


def test_where_the_page_goes(tmp_path):
    """Into the common parent; runs of other folders are told apart by them; a run given twice is shown once."""
    one = make(tmp_path / "x", "same", 1, logged=False)
    other = make(tmp_path / "y", "same", 2, logged=False, kl_beta=0.1)
    (tmp_path / "latest").symlink_to(one)
    path = write_comparison([one, other, tmp_path / "latest"])
    html = path.read_text()
    assert path == tmp_path / "comparison.html" and "x/same" in html and "y/same" in html
    assert html.count('type="checkbox"') == 2 and str(tmp_path) not in html


def test_a_users_mistakes_are_one_line(tmp_path, capsys):
    one, other = (str(make(tmp_path, name, 1, logged=False)) for name in ("one", "other"))
    (tmp_path / "notes.txt").write_text("mine")
    broken = make(tmp_path, "broken", 1)
    (broken / "summary.json").write_text("{")

    def fail(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            cli.main(["report", *arguments])
        assert stop.value.code == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        return line

    assert "none has no config.yaml: give the folder of a run" in fail(one, str(tmp_path / "none"))
    assert "notes.txt: is there already" in fail(one, other, "--out", str(tmp_path / "notes.txt"))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert "not to be written (No such file" in fail(one, other, "--out", str(tmp_path / "no" / "a.html"))
    assert "not to be written (Is a directory" in fail(one, other, "--out", one)
    assert "summary.json: not to be read" in fail(one, str(broken))
    assert "leave --out out" in fail(one, "--out", "x.html")


def test_the_verb_writes_one_run_as_before_and_several_side_by_side(tmp_path, capsys):
    one, other = (make(tmp_path, name, 1, logged=False) for name in ("one", "other"))
    for _ in range(2):  # over its own page it writes again
        for runs, path in (([one], one / "report.html"), ([one, other], tmp_path / "comparison.html")):
            with pytest.raises(SystemExit) as stop:
                cli.main(["report", *map(str, runs)])
            assert not stop.value.code
            assert capsys.readouterr().out.strip() == str(path) and path.is_file()


def test_curves_have_a_line_a_run_and_are_those_that_some_run_has():
    """A run without a metric has an empty line; two points make a curve, one does not."""
    held = [held_out_line("warmup", 0), held_out_line("swirl", 1)]
    steps = [phase_line(1, "fwm", n) for n in (1, 2, 3)]
    drawn = dict(curves([held + steps, held[:1]], [Stroke("#111111", ()), Stroke("#222222", (1, 2))]))
    assert "Held out (validation): IDM gold log-prob" in drawn and "Held out (validation): cycle consistency" in drawn
    assert "Reward, mean, FWM phase" in drawn and not any("IDM phase" in title for title in drawn)
    reward = drawn["Reward, mean, FWM phase"]
    line = reward[reward.index('<g class="run0">') :]
    assert len(re.findall("[ML] ", re.search(r'<path d="([^"]*)"', line)[1])) == 3
    assert curves([held[:1], held[:1]], [Stroke("#111111", ())] * 2) == []


def test_noise_is_averaged_over_the_steps_before():
    assert trailing_mean([1.0, 2.0, 6.0, 4.0], 2) == [1.0, 1.5, 4.0, 5.0]
    assert trailing_mean([3.0], 5) == [3.0] and trailing_mean([], 1) == []


def test_strokes_differ_and_show_on_both_pages():
    """A group's runs share a colour; 32 runs of different groups all look different; 3:1 on either page's card."""
    assert len({stroke(group, 0) for group in range(32)}) == len(PALETTE) * len(DASHES) == 32
    assert {stroke(1, member).colour for member in range(3)} == {PALETTE[1]}
    assert len({stroke(1, member) for member in range(4)}) == 4
    css = (Path(cli.__file__).parent / "evaluation" / "report.css").read_text()
    cards = re.findall(r"--card: (#[0-9a-f]{6})", css)
    assert len(cards) == 2
    for colour in PALETTE:
        assert all(contrast(rgb(colour), rgb(card)) >= 3 for card in cards), colour


def rgb(colour: str) -> tuple[float, ...]:
    """Of #rrggbb, or of the browser's rgb(r, g, b)."""
    if colour.startswith("#"):
        return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return tuple(map(float, re.findall(r"[\d.]+", colour)[:3]))


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """WCAG 2's ratio."""

    def luminance(colour: tuple[float, ...]) -> float:
        parts = [c / 255 for c in colour]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(scope="module")
def browser():
    paths = {tool: shutil.which(tool) for tool in ("chromium", "chromedriver")}
    if find_spec("selenium") is None or None in paths.values():
        pytest.skip("needs selenium, and Chromium: apt-get install chromium chromium-driver")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = paths["chromium"]
    options.ignore_local_proxy_environment_variables()  # deprecated, with no other way yet for a local driver
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(argument)
    driver = Chrome(options, Service(paths["chromedriver"], env=dict(os.environ)))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """Both pages, of runs with long names."""
    root = tmp_path_factory.mktemp("runs")
    runs = [
        make(root, f"{name}-{seed}", seed, 0.1 * beta, kl_beta=beta)
        for name, beta in (
            ("a-rather-long-name-of-a-configuration", 0.0),
            ("another_name_without_a_place_to_break", 1.0),
        )
        for seed in (1, 2)
    ]
    return {"report": write_report(runs[0]), "comparison": write_comparison(runs)}


def show(browser, path: Path, *, width: int = 1280, scheme: str = "light") -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(path.as_uri())


def seen(browser, selector: str) -> list[bool]:
    """Of each such element, whether it is laid out; a line of SVG as HTML."""
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.getClientRects().length > 0)"
    return browser.execute_script(script, selector)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["report", "comparison"])
def test_in_a_browser_pages_render_without_a_word_on_the_console(browser, pages, page):
    show(browser, pages[page])
    assert browser.get_log("browser") == []
    assert all(seen(browser, "h1, h2, figure svg, table:not(details table)"))
    assert len(seen(browser, "figure svg")) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("page", ["report", "comparison"])
def test_in_a_browser_a_phone_needs_no_sideways_scrolling(browser, pages, page):
    """Opened details too; wide tables scroll within their cards."""
    show(browser, pages[page], width=360)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    script = "const e = document.documentElement; return [innerWidth, e.clientWidth, e.scrollWidth]"
    window, width, needed = browser.execute_script(script)
    assert window == 360 and needed <= width


@pytest.mark.slow
@pytest.mark.parametrize("page", ["report", "comparison"])
def test_in_a_browser_both_schemes_are_legible(browser, pages, page):
    """Text of the page and of the cards, soft and marked too, at least 4.5:1; the schemes have other backgrounds."""
    script = """
    const page = getComputedStyle(document.body).backgroundColor;
    const card = getComputedStyle(document.querySelector(".card")).backgroundColor;
    const texts = [...document.querySelectorAll("h1, .soft, td, th, figcaption, .spread, .best, input[type=search]")];
    return {page, texts: [[getComputedStyle(document.body).color, page], ...texts.map(
        e => [getComputedStyle(e).color, e.closest(".card") || e.tagName === "INPUT" ? card : page])]}"""
    backgrounds = set()
    for scheme in ("light", "dark"):
        show(browser, pages[page], scheme=scheme)
        found = browser.execute_script(script)
        backgrounds.add(found["page"])
        assert len(found["texts"]) > 20
        for text, behind in {tuple(pair) for pair in found["texts"]}:
            assert contrast(rgb(text), rgb(behind)) >= 4.5, (scheme, text, behind)
    assert len(backgrounds) == 2


@pytest.mark.slow
def test_in_a_browser_a_run_that_is_not_ticked_is_gone_everywhere(browser, pages):
    """Its columns and lines; its group's columns with the last of the group; its line of the first table stays."""
    show(browser, pages["comparison"])
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    parts = ("#each-run .run0", "#differences .run0", "#curves .run0")
    assert all(seen(browser, part) and all(seen(browser, part)) for part in (*parts, "#held-out .group0"))
    browser.find_element("css selector", "#show0").click()
    assert not any(shown for part in parts for shown in seen(browser, part))
    assert all(seen(browser, ".run1")) and all(seen(browser, ".group0")) and all(seen(browser, "#runs tr"))
    browser.find_element("css selector", "#show1").click()
    assert not any(seen(browser, ".group0, .run1"))
    assert all(seen(browser, ".group1")) and all(seen(browser, ".run2"))
    browser.find_element("css selector", "#show0").click()
    assert all(seen(browser, ".run0")) and all(seen(browser, ".group0")) and not any(seen(browser, ".run1"))


@pytest.mark.slow
def test_in_a_browser_filters_leave_what_matches(browser, pages):
    """Each its own list, without regard to case; emptied, all is there again."""
    from selenium.webdriver import Keys

    show(browser, pages["comparison"])

    def left(part: str) -> list[str]:
        script = (
            "return [...document.querySelectorAll(arguments[0])].filter(e => e.offsetHeight).map(e => e.dataset.name)"
        )
        return browser.execute_script(script, f"{part} [data-name]")

    keys, curves_box = browser.find_elements("css selector", "input[type=search]")
    all_curves = left("#curves")
    assert left("#differences") == ["phase.fwm.kl_beta", "run.seed"]
    keys.send_keys("KL_")
    assert left("#differences") == ["phase.fwm.kl_beta"] and left("#curves") == all_curves
    curves_box.send_keys("reward")
    assert left("#curves") == ["reward, mean, fwm phase", "reward, mean, idm phase"]
    keys.send_keys(*[Keys.BACKSPACE] * 3)
    assert len(left("#differences")) == 2
    curves_box.send_keys(" no such")
    assert left("#curves") == []


@pytest.mark.slow
def test_in_a_browser_without_the_script_all_is_there_to_read(browser, pages):
    """And runs can still be hidden: that is the style's doing."""
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(browser, pages["comparison"])
        find = browser.find_elements
        assert not any(box.is_displayed() for box in find("css selector", "input[type=search]"))
        assert all(row.is_displayed() for row in find("css selector", "#differences tr, #curves figure"))
        browser.find_element("css selector", "#show0").click()
        assert not any(cell.is_displayed() for cell in find("css selector", "#differences .run0"))
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
