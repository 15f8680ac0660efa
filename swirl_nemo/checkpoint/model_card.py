"""README.md of an exported model: where it comes from, as far as the checkpoint and the run around it say."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from transformers import PretrainedConfig

ROLES = {
    "fwm": "forward world model: state x and action z to the next state y",
    "idm": "inverse dynamics model: states x and y to the action z between them",
    "shared": "forward world model and inverse dynamics model in one",
}
UNKNOWN = "unknown"
_CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [swirl, world-model]
---

# {title}

Exported by swirl_nemo.

| | |
| --- | --- |
| base model | {base} |
| architecture | {architecture} |
| role | {role} |
| run | {run} |
| checkpoint | {checkpoint} |
| data | {data} |
| seed | {seed} |
| commit | {commit} |
"""
_METRICS = """
## Held out

| metric | {columns} |
| --- |{rules}
{rows}
"""


def model_card(nemo_dir: Path, model: DictConfig, config: PretrainedConfig) -> str:
    """Markdown. What no file near `nemo_dir` says is "unknown"."""
    folder = nemo_dir.resolve()
    run = next((parent for parent in folder.parents if (parent / "env.json").is_file()), None)
    settings = OmegaConf.load(run / "config.yaml") if run and (run / "config.yaml").is_file() else OmegaConf.create()
    env = _read(run, "env.json")
    summary = _read(run, "summary.json")
    files = [OmegaConf.select(settings, f"data.{key}") for key in ("world", "labelled", "unlabelled")]
    known = {
        "base": model.get("base_model"),
        "architecture": f"{config.architectures[0]}, {config.num_hidden_layers} layers",
        "role": ROLES.get(folder.name) if run else None,
        "run": run.name if run else None,
        "checkpoint": f"{folder.parent.name}, {_position(_read(folder.parent, 'state.json'))}" if run else None,
        "data": ", ".join(str(file) for file in files if file) or None,
        "seed": env.get("seed"),
        "commit": summary.get("commit") or env.get("commit"),
    }
    title = f"{run.name} {folder.name}" if run else folder.name
    text = _CARD.format(title=title, **{key: UNKNOWN if value is None else value for key, value in known.items()})
    figures = summary.get("held_out", {}).get(folder.name, {})
    if not figures:
        return text + "\nHeld-out metrics: unknown.\n"
    columns = list(dict.fromkeys(name for values in figures.values() for name in values))
    rows = [
        f"| {metric} | " + " | ".join(_figure(values.get(name)) for name in columns) + " |"
        for metric, values in figures.items()
    ]
    return text + _METRICS.format(columns=" | ".join(columns), rules=" --- |" * len(columns), rows="\n".join(rows))


def _position(state: dict[str, Any]) -> str:
    """Where in its run a checkpoint was taken."""
    counters = [
        f"{key} {value}" for key, value in state.items() if isinstance(value, int) and not isinstance(value, bool)
    ]
    return ", ".join(counters) or f"state {UNKNOWN}"


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else UNKNOWN


def _read(folder: Path | None, name: str) -> dict[str, Any]:
    """A JSON file of a run; nothing where there is none yet."""
    path = folder / name if folder else None
    return json.loads(path.read_text()) if path and path.is_file() else {}
