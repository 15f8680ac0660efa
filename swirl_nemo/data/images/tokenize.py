"""`swirl tokenize`: pictures to codes, in parts, by several processes; what is done already is not done again.

The work is divided into parts, a whole video or `part` pictures, each saved when it is done. Codes depend on the
pictures and the tokenizer alone: on one kind of machine the same settings write the same bytes.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ...records import read_lines, write_json
from .codes import ABOUT, FILE
from .config import TokenizeConfig
from .frames import VIDEOS, Clip, clips
from .loading import load_image_tokenizer
from .tokenizer import ImageTokenizer

PARTS = "parts"
EPISODES = "episodes.jsonl"  # what a collection keeps for itself


@dataclass(frozen=True)
class Part:
    number: int
    clip: Clip
    stride: int


@dataclass(frozen=True)
class Settings:
    """What a process needs to encode."""

    tokenizer: str
    size: tuple[int, int] | None
    device: str
    batch: int
    folder: Path  # where parts are saved


def tokenize(cfg: TokenizeConfig) -> int:
    """Write `cfg.out` and return how many pictures it holds: codes.npy, codes.json, and transitions files.

    A source with transitions files has them rewritten, and what lies beside them copied; of pictures and videos a file
    states.jsonl is made, a row for each video and for each folder of pictures, whose states follow one another.

    Raises ValueError, one line, for a setting out of range, for a source without pictures, for a picture that cannot be
    read, and for `out` that holds something else.
    """
    _check(cfg)
    source, out = Path(cfg.source), Path(cfg.out)
    files = sorted(path for path in source.glob("*.jsonl") if path.name != EPISODES)
    size = None if cfg.size is None else (cfg.size[0], cfg.size[1])
    tokenizer = load_image_tokenizer(cfg.tokenizer, size)  # a mistake shows before a process starts
    pictures = _pictures(files)
    sequences = [] if files else clips(source)
    if files and not pictures:
        raise ValueError(f"{source}: none of its {len(files)} transitions files has a picture: nothing to tokenize")
    parts = _divided([Clip("", tuple(source / name for name in pictures))] if files else sequences, cfg)
    settings, key = Settings(cfg.tokenizer, size, cfg.device, cfg.batch, out / PARTS), _key(cfg, parts)
    if (out / ABOUT).is_file() and not (out / PARTS).is_dir():
        _same(out / ABOUT, key)
        return len(np.load(out / FILE, mmap_mode="r"))
    _prepare(out, key)
    _encode(parts, settings, cfg.processes)
    counts = _join(out, len(parts), tokenizer)
    if files:
        _rewrite(files, {name: number for number, name in enumerate(pictures)}, out)
    else:
        _write_sequences(out / "states.jsonl", parts, counts, cfg.world_name)
    about = {"codebook_size": tokenizer.codebook_size, "grid": list(tokenizer.grid), "size": list(tokenizer.size)}
    write_json(out / ABOUT, {"key": key, "tokenizer": cfg.tokenizer, "pictures": sum(counts), **about})
    shutil.rmtree(out / PARTS)
    return sum(counts)


def _pictures(files: list[Path]) -> list[str]:
    """Every path that stands under "image" in the files, once each, in order of name."""
    return sorted({state["image"] for path in files for row in read_lines(path) for state in _images(row)})


def _images(row: dict) -> Iterator[dict]:
    states = [row.get("x"), row.get("y"), *row.get("states", []), *row.get("history", [])]
    return (state for state in states if isinstance(state, dict) and isinstance(state.get("image"), str))


def _divided(sequences: list[Clip], cfg: TokenizeConfig) -> list[Part]:
    """A video cannot be entered in its middle; pictures are taken at the stride before they are divided."""
    parts: list[Part] = []
    for clip in sequences:
        if clip.files[0].suffix.lower() in VIDEOS:
            parts.append(Part(len(parts), clip, cfg.stride))
            continue
        files = iter(clip.files[:: cfg.stride])
        while some := tuple(islice(files, cfg.part)):
            parts.append(Part(len(parts), Clip(clip.name, some), 1))
    return parts


def _key(cfg: TokenizeConfig, parts: list[Part]) -> str:
    """Of all that decides what the codes are, but for the content of the pictures."""
    weights = [(path.name, _digest(path)) for path in sorted(Path(cfg.tokenizer).iterdir()) if path.is_file()]
    files = [[str(path), path.stat().st_size] for part in parts for path in part.clip.files if path.is_file()]
    text = json.dumps([cfg.size, cfg.stride, cfg.part, weights, files])
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _same(path: Path, key: str) -> None:
    if json.loads(path.read_text())["key"] != key:
        raise ValueError(
            f"out={path.parent}: holds codes of other pictures or settings: name a new folder, or remove it"
        )


def _prepare(out: Path, key: str) -> None:
    begun = out / PARTS / ABOUT
    if begun.is_file():
        _same(begun, key)
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"out={out}: is there and not of swirl tokenize: name a new folder, or remove it")
    else:
        begun.parent.mkdir(parents=True, exist_ok=True)
        write_json(begun, {"key": key})


def _encode(parts: list[Part], settings: Settings, processes: int) -> None:
    left = [part for part in parts if not _saved(settings.folder, part.number).is_file()]
    done = len(parts) - len(left)
    with tqdm(total=len(parts), initial=done, desc="tokenize", unit=" parts", disable=None) as bar:
        if processes == 1:
            _begin(settings)
            for _ in map(_encode_part, left):
                bar.update()
            return
        with get_context("spawn").Pool(min(processes, max(1, len(left))), _begin, (settings,)) as pool:
            for _ in pool.imap_unordered(_encode_part, left):
                bar.update()


_settings: Settings
_tokenizer: ImageTokenizer


def _begin(settings: Settings) -> None:
    """Once in each process."""
    global _settings, _tokenizer
    torch.set_num_threads(1)  # processes share the cores
    _settings, _tokenizer = settings, load_image_tokenizer(settings.tokenizer, settings.size).to(settings.device)


def _encode_part(part: Part) -> None:
    frames, codes = part.clip.frames(part.stride, _tokenizer.size), []
    while batch := list(islice(frames, _settings.batch)):
        images = torch.from_numpy(np.stack(batch)).to(_settings.device)
        codes.append(_tokenizer.encode(images).cpu().numpy())
    whole = np.concatenate(codes or [np.empty((0, _tokenizer.grid[0] * _tokenizer.grid[1]))])
    path = _saved(_settings.folder, part.number)
    fresh = path.with_suffix(".partial")
    with fresh.open("wb") as file:
        np.save(file, whole.astype(_dtype(_tokenizer)))
    fresh.replace(path)


def _saved(folder: Path, number: int) -> Path:
    return folder / f"{number:07d}.npy"


def _dtype(tokenizer: ImageTokenizer) -> type[np.unsignedinteger]:
    return np.uint16 if tokenizer.codebook_size <= 2**16 else np.uint32


def _join(out: Path, count: int, tokenizer: ImageTokenizer) -> list[int]:
    """All parts as one file; how many pictures each has."""
    parts = [np.load(_saved(out / PARTS, number), mmap_mode="r") for number in range(count)]
    sizes = [len(part) for part in parts]
    shape = (sum(sizes), tokenizer.grid[0] * tokenizer.grid[1])
    whole = np.lib.format.open_memmap(out / FILE, mode="w+", dtype=_dtype(tokenizer), shape=shape)
    start = 0
    for part in parts:
        whole[start : start + len(part)] = part
        start += len(part)
    whole.flush()
    return sizes


def _rewrite(files: list[Path], numbers: dict[str, int], out: Path) -> None:
    for path in files:
        rows = read_lines(path)
        for state in (state for row in rows for state in _images(row)):
            state["image"] = f"{FILE}#{numbers[state['image']]}"
        (out / path.name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    for beside in ("collect.json", "tokenizer"):
        path = files[0].parent / beside
        if path.is_dir():
            shutil.copytree(path, out / beside, dirs_exist_ok=True)
        elif path.is_file():
            shutil.copy(path, out / beside)


def _write_sequences(path: Path, parts: list[Part], counts: list[int], world: str) -> None:
    """A row for each clip of at least two states."""
    states: dict[str, list[dict]] = {}
    start = 0
    for part, count in zip(parts, counts, strict=True):
        found = states.setdefault(part.clip.name, [])
        found += [{"image": f"{FILE}#{number}"} for number in range(start, start + count)]
        start += count
    rows = [{"id": name, "states": found, "world": world, "episode": name} for name, found in states.items()]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows if len(row["states"]) > 1))


def _check(cfg: TokenizeConfig) -> None:
    if not Path(cfg.source).exists():
        raise ValueError(f"source={cfg.source}: no such folder or video: give pictures, videos or transitions files")
    for key in ("stride", "batch", "part", "processes"):
        if getattr(cfg, key) < 1:
            raise ValueError(f"{key}={getattr(cfg, key)}: out of range: it must be 1 or more")
    if cfg.device.split(":")[0] not in ("cpu", "cuda") or (cfg.device != "cpu" and not torch.cuda.is_available()):
        raise ValueError(f"device={cfg.device}: this machine has no such device: give cpu")
    if cfg.size is not None and (len(cfg.size) != 2 or min(cfg.size) < 1):
        raise ValueError(f"size={list(cfg.size)}: give [HEIGHT,WIDTH], or null")
