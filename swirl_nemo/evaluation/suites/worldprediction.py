"""WorldPrediction (Chen et al. 2025, "A Benchmark for High-level World Modeling and Long-horizon Procedural Planning").

Its procedural plans, rolled forward turn by turn as SWIRL does. Layout, as the released code reads it
(yfqiu-nlp/swirl, src/evaluation/worldprediction): `metadata.json` is {dataset: {sample: {...}}}, or the samples alone:

    {"states": {"segment_uid": "segment|COIN|U9bZX2wABWQ_000"}, "ground_truth": 2,
     "candidates": [["segment|COIN|a", "segment|COIN|b"], ...],
     "action_segments": {"segment|COIN|a": {"video", "segment_start_time", "segment_end_time", "action_label"}, ...},
     "original_segments": [{"segment_uid", "video", "segment_start_time", "segment_end_time", "action_label"}, ...]}

with ground_truth counted from 1. A segment's state is the frame at its middle: `frames/` or `images/`
`{segment_uid}.png` (.jpg, .jpeg; each | also as _ or /), else out of `videos/{dataset}/{video}`. The first original
segment's frame is the start, and the ground-truth plan's k-th prediction is compared with the k-th segment's frame; the
first target therefore is the start itself, in the released code too, which the "unmoved" column shows.

Not verified: metadata.json itself and the videos, which could not be had (facebookresearch/WorldPrediction).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from .base import Contents, Damaged, Fault, Item, Picture, Step, Stored, Suite, read_json, text_of
from .config import SuiteConfig, store

FOLDERS, ENDINGS = ("frames", "images"), (".png", ".jpg", ".jpeg")


@dataclass
class WorldPredictionConfig(SuiteConfig):
    pass


@dataclass(frozen=True)
class Frame:
    """A video's frame that is shown at `seconds`."""

    video: Path
    seconds: float
    place: str

    def load(self) -> Image.Image:
        import av

        try:
            with av.open(str(self.video)) as container:
                (stream, *_) = container.streams.video
                container.seek(int(self.seconds / stream.time_base), stream=stream)
                shown = None
                for frame in container.decode(stream):
                    if shown is not None and frame.time > self.seconds:
                        break
                    shown = frame
        except (av.FFmpegError, ValueError, OSError) as error:
            raise Damaged(f"{self.place}: not to be decoded ({' '.join(str(error).split())})") from None
        if shown is None or shown.time + 1.0 < self.seconds:
            raise Damaged(f"{self.place}: ends before second {self.seconds:g}")
        return shown.to_image().convert("RGB")


class WorldPrediction(Suite[WorldPredictionConfig]):
    name = "worldprediction"
    title = "WorldPrediction"
    kind = "picture"
    parts: ClassVar = {}  # data sets that the videos come from
    published_gain = 0.16

    def read(self) -> Contents:
        contents = Contents()
        for dataset, uid, sample in _samples(read_json(self.index("metadata.json"), dict | list)):
            if self.cfg.parts is not None and dataset not in self.cfg.parts:
                contents.other_parts[dataset] += 1
                continue
            try:
                contents.items.append(self._item(dataset, uid, sample))
            except Damaged as error:
                contents.faults.append(Fault(uid, dataset, f"metadata.json, {uid}: {error}"))
        return contents

    def _item(self, dataset: str, uid: str, sample: Any) -> Item:
        segments, labels = _list(sample, "original_segments"), _plan(sample)
        if len(segments) != len(labels):
            raise Damaged(f"{len(segments)} original_segments, and {len(labels)} actions in the ground-truth candidate")
        frames = [self._frame(dataset, segment) for segment in segments]
        return Item(uid, dataset, frames[0], tuple(map(Step, labels, frames)))

    def _frame(self, dataset: str, segment: Any) -> Picture:
        uid, video = text_of(segment, "segment_uid", "video")
        for name in dict.fromkeys((uid, uid.replace("|", "_"), uid.replace("|", "/"))):
            for folder in FOLDERS:
                for ending in ENDINGS:
                    if (path := self.folder / folder / f"{name}{ending}").is_file():
                        return Stored(path, f"{folder}/{name}{ending}")
        place = f"videos/{dataset}/{video}"
        if not (self.folder / place).is_file():
            raise Damaged(f"{uid}: no picture in frames/ or images/, and no file {place}")
        times = [segment.get(f"segment_{end}_time") for end in ("start", "end")]
        if not all(isinstance(time, int | float) for time in times):
            raise Damaged(f"{uid}: segment_start_time and segment_end_time are {times}")
        return Frame(self.folder / place, max(0.0, sum(times) / 2), place)


def _samples(metadata: dict | list) -> Iterator[tuple[str, str, Any]]:
    """(dataset, sample's uid, sample) of the three forms that the released code reads."""
    if isinstance(metadata, list):
        metadata = {f"sample_{number:05d}": sample for number, sample in enumerate(metadata)}
    for key, value in metadata.items():
        if isinstance(value, dict) and not {"states", "candidates", "original_segments"} & value.keys():
            yield from ((key, _uid(uid, sample), sample) for uid, sample in value.items())
        else:
            uid = _uid(key, value)
            kind, _, rest = uid.partition("|")
            yield rest.partition("|")[0] if kind == "segment" else "unknown", uid, value


def _uid(key: str, sample: Any) -> str:
    states = sample.get("states") if isinstance(sample, dict) else None
    return str(states.get("segment_uid", key)) if isinstance(states, dict) else key


def _plan(sample: Any) -> list[str]:
    """Labels of the ground-truth candidate's actions."""
    candidates, truth = _list(sample, "candidates"), sample.get("ground_truth")
    if isinstance(truth, str) and truth.isdigit():
        truth = int(truth)
    if not isinstance(truth, int) or not 0 <= truth <= len(candidates):
        raise Damaged(f"ground_truth is {truth!r}, of {len(candidates)} candidates")
    actions = sample.get("action_segments")
    if not isinstance(actions, dict):
        raise Damaged("no action_segments")
    labels = []
    for uid in candidates[max(truth, 1) - 1]:
        if uid not in actions:
            raise Damaged(f"action_segments has no {uid}")
        labels += text_of(actions[uid], "action_label")
    return labels


def _list(sample: Any, key: str) -> list:
    value = sample.get(key) if isinstance(sample, dict) else None
    if not isinstance(value, list) or not value:
        raise Damaged(f"no {key}")
    return value


store("worldprediction", WorldPredictionConfig)
