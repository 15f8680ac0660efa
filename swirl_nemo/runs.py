"""The run folder: configuration, environment, one line of metrics a step, summary. What DESIGN.md's contracts promise.

    {root}/{name}/config.yaml  env.json  metrics.jsonl  samples.jsonl  summary.json  report.html  tensorboard/
    {root}/latest -> {name}

metrics.jsonl is the record; TensorBoard's files are a copy of it, made anew when a run is opened again. Only the main
process writes.
"""

import json
import os
import shutil
import time
from datetime import datetime
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from .config import SwirlConfig
from .environment import environment
from .records import finite, json_line, read_lines, write, write_json

CONFIG = "config.yaml"
_COUNTERS = ("iteration", "step", "optimizer_step")
_SHOWN = {
    "loss": "loss {:.4f}",
    "reward/mean": "reward {:.3f}",
    "group/dead_fraction": "dead {:.0%}",
    "kl/reference": "kl {:.4f}",
    "grad_norm": "grad {:.2f}",
    "seconds/step": "{:.1f} s",
}
_SHOWN_HELD_OUT = ("exact_match", "cycle_consistency")
# What decides which rows a step reads and what it makes of them. Files may move, and layouts and precision may change.
_DECIDES = ("alternation", "annotate", "data", "model.weights", "optimizer", "phase", "pretrain", "run.seed", "warmup")
_MAY_MOVE = tuple(f"data.{name}" for name in ("labelled", "unlabelled", "validation", "test", "tokenizer"))


def check_settings(cfg: SwirlConfig) -> None:
    """Raises ValueError, one line, where the run has checkpoints that were trained with other settings: to go on from
    them would skip transitions, or use some twice. To be called before the run's folder is opened."""
    folder = Path(cfg.run.root, cfg.run.name)
    if not (folder / CONFIG).is_file() or not any((folder / "checkpoints").glob("[0-9]*")):
        return
    before, now = deciding_settings(OmegaConf.load(folder / CONFIG)), deciding_settings(cfg)
    changed = [key for key in sorted(before.keys() & now.keys()) if before[key] != now[key]]
    if changed:
        (key, *_), more = changed, f" ({len(changed)} such settings)" if len(changed) > 1 else ""
        raise ValueError(
            f"{folder}: began with {key}={before[key]}, not {now[key]}{more}: "
            "give the settings it began with, or another run.name"
        )


def deciding_settings(cfg: SwirlConfig | DictConfig) -> dict[str, object]:
    """What decides a run's figures, by dotted key: equal for two runs that read and make the same of the same rows."""
    return _deciding(cfg if OmegaConf.is_config(cfg) else OmegaConf.create(OmegaConf.to_yaml(cfg)))


def _deciding(tree: DictConfig, prefix: str = "") -> dict[str, object]:
    """The values under _DECIDES by their dotted keys."""
    found: dict[str, object] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if OmegaConf.is_dict(value):
            found |= _deciding(value, f"{key}.")
        elif key.startswith(_DECIDES) and key not in _MAY_MOVE:
            found[key] = OmegaConf.to_container(value) if OmegaConf.is_list(value) else value
    return found


class Run:
    """A run's folder. Every process may hold one; where `is_main` is false its methods do nothing."""

    def __init__(self, folder: Path, cfg: SwirlConfig, *, is_main: bool):
        self.folder = folder
        self.is_main = is_main
        self._cfg = cfg
        self._display = Display()
        self._loggers: list | None = None
        self._earlier = 0.0  # seconds that the run had taken when this process went on with it
        self._opened = time.monotonic()

    @classmethod
    def open(cls, cfg: SwirlConfig, *, is_main: bool) -> "Run":
        """Make, or open again, the folder of `cfg.run`, record configuration and environment, point `latest` at it.

        Raises ValueError where `latest` is a folder of its own.
        """
        run = cls(Path(cfg.run.root, cfg.run.name), cfg, is_main=is_main)
        if is_main:
            Path(cfg.run.root).mkdir(parents=True, exist_ok=True)
            _point(Path(cfg.run.root, "latest"), cfg.run.name)
            run.folder.mkdir(parents=True, exist_ok=True)
            write(run.folder / CONFIG, OmegaConf.to_yaml(cfg).encode())
            write_json(run.folder / "env.json", environment(cfg))
        return run

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind, *_) -> None:
        self._display.stop()
        for logger in self._loggers or []:
            logger.finalize("success" if kind is None else "failed")

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def position(self) -> int:
        """Bytes of metrics written so far. A checkpoint keeps it, taken after the lines of the steps that it holds."""
        return self.metrics.stat().st_size if self.metrics.exists() else 0

    def log(self, record: dict, steps: int | None = None) -> None:
        """Append one line of metrics, whole or not at all; show it, and feed its numbers to the loggers.

        nan and infinities become null: JSON has neither. `step` counts the steps done, from 1, of `steps` in all.
        "seconds/run" is added: how long the run has taken, time between a checkpoint and a crash or a restart left out.
        """
        if not self.is_main:
            return
        if self._loggers is None:
            self._begin()
        record = finite({**record, "seconds/run": round(self._seconds(), 3)})
        with self.metrics.open("ab", buffering=0) as file:
            file.write(json_line(record))
        self._display.show(record, steps)
        _feed(self._loggers, record)

    def say(self, text: str) -> None:
        """One line on the log, beside the steps' own."""
        if self.is_main:
            self._display.say(text)

    def recorded(self, position: int) -> bytes:
        """The first `position` bytes of metrics."""
        return self.metrics.read_bytes()[:position] if self.metrics.exists() else b""

    def go_on(self, metrics: bytes) -> None:
        """Before going on from a checkpoint: let metrics.jsonl be what it was then, so that each step is there once.

        Lines that followed it go, a line that was cut while being written too; lines that were lost come back.
        """
        assert self._loggers is None
        if self.is_main and self.recorded(self.position) != metrics:
            if self.position < len(metrics):
                self.say(f"{self.metrics}: lines were missing: put back from the checkpoint")
            write(self.metrics, metrics)

    def samples(self, stage: str, rows: list[dict]) -> None:
        """Put a stage's predictions into samples.jsonl, in place of any from an earlier pass over the same stage.

        A row: role, x, z, y, prompt, prediction, target, correct.
        """
        if self.is_main:
            path = self.folder / "samples.jsonl"
            others = [row for row in read_lines(path) if row["stage"] != stage] if path.exists() else []
            write(path, b"".join(json_line(row) for row in others + [{"stage": stage, **row} for row in rows]))

    def dump(self, name: str, rows: list[dict]) -> Path:
        """Rows as JSON lines in a file of the run's folder, which need not be there yet; its path."""
        path = self.folder / name
        if self.is_main:
            path.parent.mkdir(exist_ok=True)
            write(path, b"".join(json_line(row) for row in rows))
        return path

    def finish(self, summary: dict) -> None:
        """Write summary.json and report.html, and print the table of held-out figures. Seconds are added, and
        the commit that this process began with: the checkout may have moved on since.
        """
        if not self.is_main:
            return
        from .evaluation.report import held_out_table, suites_of, write_report

        commit = json.loads((self.folder / "env.json").read_text())["commit"]
        summary = finite({**summary, "seconds": round(self._seconds(), 3), "commit": commit})
        if suites := suites_of(self.folder):
            summary["suites"] = suites
        write_json(self.folder / "summary.json", summary)
        self._display.finish(held_out_table(summary), write_report(self.folder))

    def _seconds(self) -> float:
        return self._earlier + time.monotonic() - self._opened

    def _begin(self) -> None:
        """Open the loggers; take over what an earlier process left."""
        lines = read_lines(self.metrics) if self.metrics.exists() else []
        self._earlier = lines[-1]["seconds/run"] if lines else 0.0
        self._loggers = []
        if self._cfg.run.tensorboard:
            from lightning.pytorch.loggers import TensorBoardLogger

            # steps that a resumed run goes through again would stand there twice
            shutil.rmtree(self.folder / "tensorboard", ignore_errors=True)
            self._loggers.append(TensorBoardLogger(self.folder, name="tensorboard", version=""))
            for record in lines:
                _feed(self._loggers, record)
        if self._cfg.run.wandb_project is not None:
            from lightning.pytorch.loggers import WandbLogger

            name, project = self._cfg.run.name, self._cfg.run.wandb_project
            self._loggers.append(WandbLogger(name=name, id=name, project=project, save_dir=self.folder, resume="allow"))


class Display:
    """What a run shows while it goes: bars on a terminal, one short line a step in a log file."""

    def __init__(self):
        self._console = Console()
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def show(self, record: dict, steps: int | None) -> None:
        title = _title(record)
        if record.get("eval"):
            shown = (name for name in record if name.endswith(_SHOWN_HELD_OUT) and record[name] is not None)
            self.say(f"{title}: {', '.join(f'{name} {record[name]:.3f}' for name in shown)}")
            return
        figures = " · ".join(form.format(record[name]) for name, form in _SHOWN.items() if record.get(name) is not None)
        if self._console.is_terminal:
            self._advance(title, record["step"], steps, figures)
        else:
            self.say(f"{title} step {record['step']}/{steps} · {figures}")

    def finish(self, table: Table, report: Path) -> None:
        self.stop()
        self._console.print(table)
        self.say(f"report: {report}")

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def say(self, text: str) -> None:
        self._console.print(f"{datetime.now():%H:%M:%S} {text}", highlight=False, markup=False, soft_wrap=True)

    def _advance(self, title: str, step: int, steps: int | None, figures: str) -> None:
        if self._progress is None:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn())
            columns += (TimeElapsedColumn(), TextColumn("{task.fields[figures]}"))
            self._progress = Progress(*columns, console=self._console)
            self._progress.start()
        if title not in self._tasks:
            self._tasks[title] = self._progress.add_task(title, total=steps, figures="")
        self._progress.update(self._tasks[title], completed=step, figures=figures)


def _title(record: dict) -> str:
    if record.get("eval"):
        return f"held out, {record['split']}, iteration {record['iteration']}, {record['model']}"
    if "role" in record:
        return f"{record['phase']} {record['role']}"
    return f"iteration {record['iteration']} {record['phase']}"


def _series(record: dict) -> tuple[str, int]:
    """Under what name a line's numbers are plotted, and at which step."""
    if record.get("eval"):
        return f"held_out/{record['split']}/{record['model']}", record["iteration"]
    if "role" in record:
        return f"{record['phase']}/{record['role']}", record["step"]
    return record["phase"], record["optimizer_step"]


def _feed(loggers: list, record: dict) -> None:
    prefix, step = _series(record)
    numbers = {
        f"{prefix}/{name}": value
        for name, value in record.items()
        if name not in _COUNTERS and isinstance(value, int | float) and not isinstance(value, bool)
    }
    for logger in loggers:
        logger.log_metrics(numbers, step)
        logger.save()


def _point(link: Path, name: str) -> None:
    if name == link.name or (link.exists() and not link.is_symlink()):
        raise ValueError(f"{link} must be a link to the newest run: rename that folder, or choose another run.name")
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.symlink_to(name)
    fresh.replace(link)
