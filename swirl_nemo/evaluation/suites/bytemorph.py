"""ByteMorph-Bench (Chang et al. 2025, "Benchmarking Instruction-Guided Image Editing with Non-Rigid Motions").

Layout, as the card of the data set ByteDance-Seed/BM-Bench gives it: 613 rows in `data/test-*.parquet` with the columns
edit_type, image_id, src_img, tgt_img, edit_prompt, edit_prompt_rewrite_instruction, src_img_caption, tgt_img_caption;
a picture is a struct of `bytes` and `path`, as `datasets` writes it. The instruction is the rewritten one or, where
that is empty, edit_prompt, as in SWIRL's released code (yfqiu-nlp/swirl).

Not verified, since the file itself could not be had: what stands in edit_type. The names below are those of the folders
in the authors' demo; any other is its own part.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .base import Contents, Damaged, Fault, Item, Step, Stored, Suite, text_of
from .config import SuiteConfig, store

COLUMNS = (
    "edit_type",
    "image_id",
    "src_img",
    "tgt_img",
    "edit_prompt",
    "edit_prompt_rewrite_instruction",
    "src_img_caption",
    "tgt_img_caption",
)


@dataclass
class ByteMorphConfig(SuiteConfig):
    pass


class ByteMorph(Suite[ByteMorphConfig]):
    name = "bytemorph"
    title = "ByteMorph-Bench"
    kind = "picture"
    parts: ClassVar = {
        "0_camera_zoom": "Camera zoom",
        "1_camera_motion": "Camera motion",
        "2_object_motion": "Object motion",
        "3_human_motion": "Human motion",
        "4_interaction": "Interaction",
    }
    published_gain = 0.28

    def read(self) -> Contents:
        shards = sorted(self.folder.glob("data/test-*.parquet"))
        if not shards:
            raise ValueError(
                f"suite.folder={self.folder}: no data/test-*.parquet in it: give the folder of the {self.title} release"
            )
        contents, seen = Contents(), set()
        for shard in shards:
            for number, row in enumerate(_rows(shard)):
                part = row["edit_type"]
                if isinstance(part, str) and self.cfg.parts is not None and part not in self.cfg.parts:
                    contents.other_parts[part] += 1
                    continue
                where = row["image_id"] or f"{shard.name}:{number}"
                try:
                    item = _item(row)
                    if item.key in seen:
                        raise Damaged("a second row of this edit_type and image_id")
                    seen.add(item.key)
                    contents.items.append(item)
                except Damaged as error:
                    contents.faults.append(Fault(str(where), str(part), f"{shard.name}, row {number}: {error}"))
        return contents


def _rows(shard: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(shard)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{shard}: no Parquet file ({str(error).splitlines()[0]}): fetch it again") from None
    if missing := [column for column in COLUMNS if column not in file.schema_arrow.names]:
        raise ValueError(f"{shard}: has no column {missing[0]}: fetch the release's own file")
    for batch in file.iter_batches(batch_size=16, columns=list(COLUMNS)):
        yield from batch.to_pylist()


def _item(row: dict[str, Any]) -> Item:
    part, image_id = text_of(row, "edit_type", "image_id")
    rewritten = row["edit_prompt_rewrite_instruction"]
    (instruction,) = text_of(row, "edit_prompt_rewrite_instruction" if rewritten else "edit_prompt")
    source, target = (_picture(row, column) for column in ("src_img", "tgt_img"))
    captions = (row["src_img_caption"] or "", row["tgt_img_caption"] or "")
    return Item(image_id, part, source, (Step(instruction, target, captions if all(captions) else None),))


def _picture(row: dict[str, Any], column: str) -> Stored:
    value = row[column]
    if not isinstance(value, dict) or not isinstance(value.get("bytes"), bytes):
        raise Damaged(f"{column} has no bytes")
    return Stored(value["bytes"], column)


store("bytemorph", ByteMorphConfig)
