"""Composes a run's configuration from conf/ and the command line; a mistake is one ValueError that says how to mend it.

Hydra composes over the schema of config.py and refuses unknown keys and wrong types; here its messages of many lines
become one: the key and value, what is wrong, what to give instead. What types cannot say is in checks.py.
"""

import difflib
import os
import re
import threading
import typing
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from .checks import check, check_files, check_machine, check_training
from .config import SwirlConfig

_ONE_AT_A_TIME = threading.Lock()  # Hydra's state is the process's


def launched() -> tuple[int, int] | None:
    """Nodes and processes a node that torchrun or srun started, from the variables that they set; None without either.

    srun is known by its step's variables: a job's own (SLURM_NTASKS) are also set in the batch script itself.
    Raises ValueError where srun's tasks are not spread evenly over its nodes.
    """
    env = os.environ
    if "LOCAL_WORLD_SIZE" in env:
        return int(env["WORLD_SIZE"]) // int(env["LOCAL_WORLD_SIZE"]), int(env["LOCAL_WORLD_SIZE"])
    if "SLURM_STEP_NUM_TASKS" in env:
        nodes, tasks = int(env["SLURM_STEP_NUM_NODES"]), int(env["SLURM_STEP_NUM_TASKS"])
        if tasks % nodes:
            raise ValueError(f"srun: {tasks} tasks on {nodes} nodes is uneven: give --ntasks-per-node")
        return nodes, tasks // nodes
    return None


def export_ranks() -> tuple[int, int, int]:
    """Rank, rank within the node and number of processes, exported as torchrun does where srun started this process."""
    env = os.environ
    if "RANK" not in env and "SLURM_PROCID" in env:
        for ours, theirs in (("RANK", "PROCID"), ("LOCAL_RANK", "LOCALID"), ("WORLD_SIZE", "STEP_NUM_TASKS")):
            env[ours] = env[f"SLURM_{theirs}"]
    return int(env.get("RANK", "0")), int(env.get("LOCAL_RANK", "0")), int(env.get("WORLD_SIZE", "1"))


OmegaConf.register_new_resolver(
    "launched", lambda what: dict(zip(("nodes", "devices"), launched() or (1, 1), strict=True))[what]
)


def shipped(folder: str) -> Path:
    """conf/ or slurm/: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).parent
    return package / folder if (package / folder).is_dir() else package.parent / folder


def load(overrides: list[str]) -> SwirlConfig:
    """The checked configuration of a training or evaluation run, before any process group starts.

    Raises ValueError, one line: a bad override, an impossible combination, a missing file, or processes that were
    started in another number than cluster.nodes x cluster.devices.
    """
    cfg = compose(overrides)
    world_size = cfg.cluster.nodes * cfg.cluster.devices
    started = launched() or (1, 1)
    if world_size != started[0] * started[1]:
        raise ValueError(
            f"cluster.nodes={cfg.cluster.nodes} x cluster.devices={cfg.cluster.devices}: {started[0] * started[1]} "
            f"process(es) were started, not {world_size}: leave both unset, or start {world_size} with torchrun or srun"
        )
    check(cfg, world_size)
    check_training(cfg)
    check_machine(cfg)
    check_files(cfg)
    return cfg


def compose(overrides: list[str], config: str = "swirl", schema: type = SwirlConfig):
    """An instance of `schema` from conf/{config}.yaml, its groups and `overrides` (Hydra's KEY=VALUE and GROUP=CHOICE).

    Raises ValueError, one line, for an unknown key or choice, a wrong type, or a key that nothing sets.
    """
    parsed = [_parse(override) for override in overrides]
    try:
        composed = _composed(config, overrides)
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise ValueError(f"{missing[0]}: nothing sets it: give {missing[0]}=VALUE")
        return OmegaConf.to_object(composed)
    except MissingConfigException as error:
        raise ValueError(_unknown_choice(error, parsed)) from error
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ValueError(_one_line(error, parsed, schema)) from error


def _composed(config: str, overrides: list[str]):
    """Hydra's own checks of a group's choice raise plain ValueErrors and TypeErrors."""
    try:
        place = shipped("conf") / config  # a folder's own file has that folder's groups: bench/step has none
        with _ONE_AT_A_TIME, hydra.initialize_config_dir(str(place.parent), version_base="1.3"):
            return hydra.compose(place.name, overrides=overrides)
    except (ValueError, TypeError) as error:
        if isinstance(error, HydraException | OmegaConfBaseException):
            raise
        raise ValueError(f"{' '.join(overrides)}: {' '.join(str(error).split())}: mend that value") from error


def _parse(override: str) -> Override:
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        parsed = None
    if parsed is None or not parsed.key_or_group:
        raise ValueError(f"{override}: not KEY=VALUE: quote a value with blanks, brackets or commas")
    if parsed.is_add() or parsed.is_force_add() or parsed.is_delete():
        raise ValueError(f"{override}: the schema fixes the keys: write {parsed.key_or_group}=VALUE without + or ~")
    if parsed.is_sweep_override():
        raise ValueError(f"{override}: a list of choices is a sweep: give one value, or [a,b] for a list")
    return parsed


def _keys(schema: type, prefix: str = "") -> list[str]:
    """Every dotted key of a schema."""
    keys = []
    for name, hint in _hints(schema).items():
        keys.append(prefix + name)
        if is_dataclass(hint):
            keys += _keys(hint, f"{prefix}{name}.")
    return keys


def _hints(schema: type) -> dict[str, typing.Any]:
    hints = typing.get_type_hints(schema)
    return {field.name: hints[field.name] for field in fields(schema)}


def _nearest(key: str, known: list[str]) -> str:
    same_name = [full for full in known if full.rpartition(".")[2] == key.rpartition(".")[2]]
    close = difflib.get_close_matches(key, same_name, n=1, cutoff=0.0) or difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]}?" if close else "conf/ and swirl_nemo/config.py list the keys"


def _unknown_choice(error: MissingConfigException, parsed: list[Override]) -> str:
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    choices = ", ".join(option for option in error.options or [] if not option.endswith("_schema"))
    given = next((o.input_line for o in parsed if o.key_or_group == group), f"{group}={choice}")
    return f"{given}: no such choice: give one of {choices}"


def _one_line(error: Exception, parsed: list[Override], schema: type) -> str:
    """KEY=VALUE: what is wrong: how to mend it, from the innermost OmegaConf error where Hydra wrapped one."""
    where = re.match(r"In '([^']+)'", str(error))
    file = f" ({where[1]}.yaml)" if where else ""
    cause = error
    while cause is not None:
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            error = cause
        cause = cause.__cause__ or cause.__context__
    key = getattr(error, "full_key", None)
    if not key:
        return " ".join(str(error).split()) + ": mend that file or override"
    base = key.split("[")[0]
    override = next((o for o in parsed if f"{o.key_or_group}.".startswith(f"{base}.")), None)
    given = (override.input_line if override else key) + file
    what = str(error).splitlines()[0]
    if not is_dataclass(error.object_type):
        return f"{given}: {what}: mend that value"
    hints = _hints(error.object_type)
    if error.key not in hints:
        parent = key.removesuffix(str(error.key))
        known = [parent + name for name in hints] + _keys(schema)
        known += [folder.name for folder in shipped("conf").iterdir() if folder.is_dir()]
        return f"{given}: no such key: {_nearest(override.key_or_group if override else key, known)}"
    return f"{given}: {what}: give {_wanted(hints[error.key])}"


def _wanted(hint: typing.Any) -> str:
    """A type in a user's words."""
    options = typing.get_args(hint)
    if type(None) in options:
        return f"{_wanted(options[0])} or null"
    if typing.get_origin(hint) is list:
        return f"a list, [{_wanted(options[0])}, ...]"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(hint.__members__)
    if is_dataclass(hint):
        return "its keys one by one: " + ", ".join(field.name for field in fields(hint))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]
