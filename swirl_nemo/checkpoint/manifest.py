"""manifest.json: every file of a checkpoint with its size and SHA-256, so that a damaged one is known at start.

    {"files": {"fwm/model_weights/__0_0.distcp": {"size": 897400, "sha256": "..."}, ...}}

Nothing here is collective: run_state divides the files among the processes.
"""

import hashlib
import json
import os
from pathlib import Path, PurePosixPath

NAME = "manifest.json"
BLOCK = 2**22  # bytes read at a time: memory does not grow with the file


def files(folder: Path) -> list[str]:
    """Names of all files under `folder` but the manifest, in order."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(name for path in found if (name := path.relative_to(folder).as_posix()) != NAME)


def describe(folder: Path, names: list[str]) -> dict[str, dict]:
    """Sync each file to the disk, and read it back: {name: {"size", "sha256"}}."""
    described = {}
    for name in names:
        sync(folder / name)
        described[name] = {"size": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
    return described


def write(folder: Path, described: dict[str, dict]) -> None:
    """The manifest, with all folders synced: after this the checkpoint survives a power cut."""
    path = folder / NAME
    path.write_text(json.dumps({"files": dict(sorted(described.items()))}, indent=1) + "\n")
    sync(path)
    for child in folder.rglob("*"):
        if child.is_dir():
            sync(child)
    sync(folder)


def fault(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """The first thing wrong with a checkpoint, or None; only every `parts`-th file, from `part`, is read."""
    try:
        listed = _read(folder / NAME)
    except (OSError, ValueError) as error:
        return f"{NAME} {error.strerror if isinstance(error, OSError) else error}"
    for name in files(folder):
        if name not in listed:
            return f"{name} is not in {NAME}"
    for name in list(listed)[part::parts]:
        path, expected = folder / name, listed[name]
        if path.is_symlink() or not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes, not {expected['size']}"
        if sha256(path) != expected["sha256"]:
            return f"{name} is not what was written (SHA-256)"
    return None


def _read(path: Path) -> dict[str, dict]:
    """Raises ValueError for anything but a manifest, a name that leads out of the folder among it."""
    try:
        listed = json.loads(path.read_text())["files"]
        entries = {str(name): {"size": entry["size"], "sha256": entry["sha256"]} for name, entry in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("is not readable") from None
    for name in entries:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\0" in name:
            raise ValueError(f"names {name!r}, which is outside the checkpoint")
    return entries


def sync(path: Path) -> None:
    """Wait until the disk has a file, or a folder's entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
