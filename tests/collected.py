"""What must hold of the files of any world that models are to learn from."""

import json
from collections import defaultdict
from hashlib import sha256
from pathlib import Path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def splits(folder: Path, counts: dict[str, int]) -> dict[str, list[dict]]:
    """Rows by split, as many as were asked for, those without a label with the action that they were collected with."""
    hidden = {row["id"]: row["z"] for row in read(folder / "unlabelled_actions.jsonl")}
    rows = {split: read(folder / f"{split}.jsonl") for split in counts}
    assert {split: len(split_rows) for split, split_rows in rows.items()} == counts
    return {split: [row | {"z": row["z"] or hidden[row["id"]]} for row in rows[split]] for split in rows}


def assert_learnable(folder: Path, rows: list[dict], longest: dict[str, int], new: float) -> None:
    """A step changes something and one thing only can come of it; texts are short, in tokens of the collection's own
    tokenizer; a share `new` of states differ; no episode failed."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    effects = defaultdict(set)
    for row in rows:
        effects[row["x"], row["z"]].add(row["y"])
        assert row["x"] != row["y"]
        for key, most in longest.items():
            assert len(tokenizer.encode(row[key], add_special_tokens=False)) <= most
    assert all(len(found) == 1 for found in effects.values())
    assert len({row["x"] for row in rows}) > len(rows) * new
    assert json.loads((folder / "collect.json").read_text())["episodes"]["failures"] == {}


def digests(folder: Path, *names: str) -> dict[str, str]:
    """SHA-256 of each file by its path within the folder, or of those of `names` alone."""
    paths = [folder / name for name in names] or [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in paths}
