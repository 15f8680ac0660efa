"""The console script: help, one line and exit code 2 for a user's mistake, and tracebacks kept for bugs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from swirl_nemo import cli

SWIRL = Path(sys.executable).parent / "swirl"
VERBS = [command.name or command.callback.__name__ for command in cli.app.registered_commands]


def run(*command: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def fail(capsys, *arguments: str) -> str:
    """Standard error of a command line that ends with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([verb, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "Example: " in shown
    assert f" {verb}" in shown.split("Example: ")[1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "phase.fwm.gruop=4"], "phase.fwm.gruop=4: no such key: did you mean phase.fwm.group?"),
        (["train", "phase.fwm.group=1"], "phase.fwm.group=1: out of range: it must be at least 2: "),
        (
            ["train", "parallel=tp2"],
            "parallel.tensor=2 x parallel.pipeline=1 x parallel.context=1: does not divide the world of 1 process(es)",
        ),
        (["trian"], "No such command 'trian'. Did you mean 'train'?: see swirl --help"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, line):
    """The installed console script itself."""
    done = run(SWIRL, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"swirl: error: {line}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing command"),
        (["train", "--fast"], "No such option: --fast"),
        (["import", "somewhere"], "Missing argument 'out'"),
        (["report"], "Missing argument 'RUN...'"),
        (["collect", "sed=1"], "sed=1: no such key: did you mean seed?"),
        (["collect", "world=moon"], "world=moon: no such choice: give one of bfcl, household, "),
        (["collect", "world.changes=x"], "world.changes=x: "),
        (["warmup", "data.labelled=nowhere"], "data.labelled=nowhere: no such file: "),
        (["annotate", "annotate.pool=-1"], "annotate.pool=-1: out of range: it must be 0 or more"),
        (["eval", "eval.batch=x"], "eval.batch=x: "),
    ],
)
def test_mistakes(arguments, words, capsys):
    line = fail(capsys, *arguments)
    assert line.startswith(f"swirl: error: {words}")
    assert line.count("\n") == 1


def test_a_mistake_shows_before_torch_is_imported():
    """So before any process group could start, and without the seconds that the stack takes to import."""
    done = run(
        sys.executable,
        "-c",
        "import sys\nfrom swirl_nemo.cli import main\n"
        "try:\n    main(['train', 'phase.fwm.group=1'])\nexcept SystemExit as stop:\n"
        "    print(stop.code, 'torch' in sys.modules)",
    )
    assert done.stdout == "2 False\n"


@pytest.mark.slow
def test_under_torchrun_the_processes_are_counted():
    """Three processes do not hold a model over two: each says so."""
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3")
    done = run(*torchrun, "-m", "swirl_nemo", "train", "parallel=tp2")
    assert done.returncode != 0
    assert "parallel.context=1: does not divide the world of 3 process(es)" in done.stderr


def test_our_value_error_is_a_line_and_a_librarys_is_a_traceback(monkeypatch, capsys, tmp_path):
    """A ValueError from within a library is a bug of ours, and so is any other error."""
    from swirl_nemo.evaluation import report

    assert "swirl: error: " in fail(capsys, "report", str(tmp_path / "none"))
    monkeypatch.setattr(report, "write_report", lambda _: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        cli.main(["report", str(tmp_path)])


def test_debug_keeps_the_traceback(monkeypatch):
    monkeypatch.setenv("SWIRL_DEBUG", "1")
    with pytest.raises(ValueError, match="no such key"):
        cli.main(["train", "phase.fwm.gruop=4"])


@pytest.mark.slow
def test_doctor(capsys):
    """This machine passes, with a real all-reduce between two processes."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["doctor"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0, shown
    assert "right sum" in shown


def test_doctor_misses_what_a_run_needs(monkeypatch, capsys):
    from swirl_nemo import doctor

    monkeypatch.setattr(doctor, "NEEDED", ("no-such-package",))
    monkeypatch.setattr(doctor, "_collective", lambda: ("all-reduce", "not tried", True))
    assert doctor.examine() == 1
    assert "not installed" in capsys.readouterr().out


def test_doctor_says_which_kernels_are_here(monkeypatch):
    """None on a CPU, without being a fault; with a GPU, pretended, an Adam whose state can be saved must be there."""
    from swirl_nemo import doctor, kernels

    *others, adam = doctor._kernels()
    assert [what for what, _, _ in others] == [kernel.name for kernel in kernels.KERNELS]
    assert all(found.endswith(" is not installed") and fine for _, found, fine in others)
    assert adam == ("Adam", "this project's, as none can run without a GPU", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert doctor._kernels()[-1][1].startswith("torch's AdamW") and not doctor._kernels()[-1][2]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(kernels, "find_spec", lambda module: object())
    *others, adam = doctor._kernels()
    assert all(found == "can be used" and fine for _, found, fine in others)
    assert adam == ("Adam", "Transformer Engine's FusedAdam", True)


@pytest.mark.slow
def test_doctor_does_not_wait_for_ever(monkeypatch):
    """A collective without an answer is a finding, and its processes are gone."""
    from swirl_nemo import doctor

    monkeypatch.setattr(doctor, "COLLECTIVE_SECONDS", 0.01)
    what, found, fine = doctor._collective()
    assert (found, fine) == ("no answer within 0 s", False)
