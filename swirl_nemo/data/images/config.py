"""The schemas of `swirl train-tokenizer` and `swirl tokenize`. Values live in conf/."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class TrainTokenizerConfig:
    frames: str = MISSING  # folder of pictures or videos, or a video
    out: str = MISSING  # folder to make
    stride: int = MISSING  # every so many frames
    max_frames: int = MISSING  # distinct frames read; 0: all
    size: list[int] = MISSING  # height and width of a picture
    patch: int = MISSING  # side of the square that a code stands for
    context: int = MISSING  # blocks in which patches see their neighbours; 0: each code is its own patch's
    hidden: int = MISSING
    dim: int = MISSING  # of a code's vector
    codes: int = MISSING
    decay: float = MISSING  # of the codebook's running means
    commitment: float = MISSING  # weight of the loss that draws vectors to their codes
    dead_code: float = MISSING  # a code that stands for fewer vectors a batch is given another place
    steps: int = MISSING
    batch: int = MISSING  # frames a step
    lr: float = MISSING
    held_out: float = MISSING  # share of frames for the reconstruction error alone
    tolerance: int = MISSING  # a pixel is given back where each of its bytes is off by at most this
    seed: int = MISSING


@dataclass
class TokenizeConfig:
    source: str = MISSING  # transitions files whose states are pictures, pictures, or videos
    out: str = MISSING  # folder to make
    tokenizer: str = MISSING  # folder of an image tokenizer
    size: list[int] | None = MISSING  # height and width, for a tokenizer that takes any
    stride: int = MISSING  # of pictures and videos, every so many frames
    world_name: str = MISSING  # name in the rows of pictures and videos
    device: str = MISSING  # as torch names it: cpu, cuda
    batch: int = MISSING  # pictures a process encodes at a time
    part: int = MISSING  # pictures between two saves
    processes: int = MISSING


ConfigStore.instance().store(name="train_tokenizer_schema", node=TrainTokenizerConfig)
ConfigStore.instance().store(name="tokenize_schema", node=TokenizeConfig)
