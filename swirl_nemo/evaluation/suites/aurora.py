"""AURORA-Bench (Krojer et al. 2024, "Learning Action and Reasoning-Centric Image Editing from Videos and Simulation").

Layout, as seen in the repository McGill-NLP/AURORA: `test.json` is a list of

    {"input": "data/ag/images/ZY2B1.mp4_27_left.png", "output": "data/ag/images/ZY2B1.mp4_27_right.png",
     "instruction": "Make her close the door", "task": "ag"}

with paths from the repository's root; some have "id", "caption" or "type" too. Of its 400 entries 50 each are
`magicbrush`, `ag`, `something`, `kubric` and `whatsup`, which SWIRL reports; those of `clevr`, `emu` and `epic` have no
"output". An item's id is that of SWIRL's released code (yfqiu-nlp/swirl): its position in the file.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from .base import Contents, Damaged, Fault, Item, Step, Stored, Suite, read_json, text_of
from .config import SuiteConfig, store


@dataclass
class AuroraConfig(SuiteConfig):
    pass


class Aurora(Suite[AuroraConfig]):
    name = "aurora"
    title = "AURORA-Bench"
    kind = "picture"
    parts: ClassVar = {
        "magicbrush": "MagicBrush",
        "ag": "Action-Genome",
        "something": "Something-Something",
        "kubric": "Kubric",
        "whatsup": "WhatsUp",
    }
    published_gain = 0.16

    def read(self) -> Contents:
        contents = Contents()
        for number, entry in enumerate(read_json(self.index("test.json"), list)):
            where = f"aurora_{number:05d}"
            part = entry.get("task") if isinstance(entry, dict) else None
            if isinstance(part, str) and self.cfg.parts is not None and part not in self.cfg.parts:
                contents.other_parts[part] += 1
                continue
            try:
                contents.items.append(self._item(where, entry))
            except Damaged as error:
                contents.faults.append(Fault(where, str(part), f"test.json, entry {number}: {error}"))
        return contents

    def _item(self, where: str, entry: Any) -> Item:
        part, instruction, source, target = text_of(entry, "task", "instruction", "input", "output")
        pictures = [Stored(self.folder / path, path) for path in (source, target)]
        for picture in pictures:
            if not picture.source.is_file():
                raise Damaged(f"{picture.place}: no such file")
        return Item(where, part, pictures[0], (Step(instruction, pictures[1]),))


store("aurora", AuroraConfig)
