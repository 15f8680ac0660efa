"""Bytes that the real actor keeps and that a step takes, rank by rank: docs/runs/memory.json, for `swirl plan` to meet.

    cd tests && OMP_NUM_THREADS=1 python -m workers.memory ../docs/runs [CASE...]

Weights, gradients, optimizer state, keys and values, and host copies are the bytes of their storages. For what comes
and goes, `Live` counts every storage that an operator returns, from then until it is gone: the same on every device,
since what a kernel uses inside is left out. The training step's `allocator` is its peak by the events of torch's CPU
allocator, with what kernels and gloo use inside. Where they differ otherwise, Live is the one that is wrong: while it
watches, autograd adds the two gradients of tied embeddings out of place.
"""

import json
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from workers.layouts import fork, import_stack

from swirl_nemo.bench import work as bench
from swirl_nemo.bench.config import BenchConfig
from swirl_nemo.settings import compose


@dataclass(frozen=True)
class Shape:
    """Of a random Llama; its vocabulary is `words` and 12 more, padded to a multiple of 128."""

    hidden: int = 256
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    ffn: int = 688
    words: int = 4000
    tied: bool = False
    max_positions: int = 512


@dataclass(frozen=True)
class Case:
    """A shape under a layout; sizes are BenchConfig's, every prompt and completion as long as they say."""

    shape: Shape = Shape()
    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    prompts: int = 2
    group: int = 4
    prompt_len: int = 96
    completion_len: int = 64
    micro_batch: int = 4
    score_batch: int = 8
    logit_chunk: int = 64
    options: tuple[str, ...] = ()  # further overrides of a run

    @property
    def processes(self) -> int:
        return self.tensor * self.pipeline * self.data


WIDE = Shape(hidden=512, layers=3, heads=8, kv_heads=2, ffn=1376, words=2000)
SMOLLM2 = Shape(hidden=576, layers=30, heads=9, kv_heads=3, ffn=1536, words=49000, tied=True)
SP = "parallel.sequence=true"
BF16 = "precision=bf16"
FULL = "model.recompute=full"
CASES = {
    "single": Case(),
    "single full recompute": Case(options=(FULL,), micro_batch=8),
    "single selective recompute": Case(options=("model.recompute=selective",)),
    "single wide bf16": Case(shape=WIDE, options=(BF16,), prompt_len=64, completion_len=128),
    "tied large vocabulary": Case(
        shape=Shape(words=32000, tied=True, layers=2), logit_chunk=256, options=("model.weights=shared",)
    ),
    "TP2": Case(tensor=2),
    "TP2 SP bf16": Case(shape=WIDE, tensor=2, options=(SP, BF16)),
    "PP2": Case(pipeline=2, prompts=4),
    "PP2 full recompute bf16": Case(pipeline=2, prompts=4, options=(FULL, BF16)),
    "PP2 tied": Case(shape=Shape(tied=True), pipeline=2, prompts=4, logit_chunk=16),
    "TP2 PP2 SP": Case(tensor=2, pipeline=2, prompts=4, options=(SP,)),
    "DP2": Case(data=2, prompts=4),
    "DP2 bf16 tied": Case(shape=Shape(tied=True), data=2, prompts=4, options=(BF16,)),
    "SmolLM2-135M bf16": Case(shape=SMOLLM2, options=(BF16,), prompts=1, logit_chunk=32),
}
AGAIN = "single full recompute"  # measured in every run of the tests


class Live(TorchDispatchMode):
    """Bytes of the storages that operators returned within this context and that are still there, and their peak."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for tensor in _tensors((args, kwargs)):
            self._see(tensor, 0)  # made outside
        result = function(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._see(tensor, tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, self.bytes)
        return result

    def _see(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.bytes += size
            weakref.finalize(storage, self._gone, storage._cdata, size)

    def _gone(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.bytes -= size


def _tensors(tree) -> Iterable[Tensor]:
    """But oneDNN's own, which have no storage."""
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor) and not leaf.is_mkldnn)


def peak(call: Callable[[], object]) -> int:
    with Live() as live:
        call()
    return live.peak


def allocator_peak(call: Callable[[], object]) -> int:
    """By the events of torch's CPU allocator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    now = lowest = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            lowest = min(lowest, now)  # what was there before may go in the meantime
            most = max(most, now - lowest)
    return most


def size(tensors: Iterable[Tensor], without: Iterable[Tensor] = ()) -> int:
    """Bytes of their storages, each counted once."""
    others = {tensor.untyped_storage()._cdata for tensor in without}
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(number for address, number in storages.items() if address not in others)


def folder_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# a case


def bench_config(case: Case) -> BenchConfig:
    keys = ("tensor", "pipeline", "prompts", "group", "prompt_len", "completion_len", "micro_batch", "score_batch")
    values = {key: getattr(case, key) for key in (*keys, "logit_chunk")}
    return compose([*(f"{key}={value}" for key, value in values.items()), "threads=1"], "bench/step", BenchConfig)


def make_model(shape: Shape, folder: Path) -> None:
    """A random Llama, imported as folder/fwm and folder/idm."""
    from swirl_nemo.checkpoint.huggingface import import_hf
    from swirl_nemo.checkpoint.random_init import random_llama
    from swirl_nemo.collection.tokenizers import word_tokenizer

    word_tokenizer(f"w{number}" for number in range(shape.words)).save_pretrained(folder / "tokenizer")
    sizes = {key: value for key, value in vars(shape).items() if key != "words"}
    random_llama(folder / "hf", folder / "tokenizer", **sizes, seed=0)
    for name in ("fwm", "idm"):
        import_hf(folder / "hf", folder / name)


def measure(case: Case, folder: Path) -> None:
    """In each rank's process; rank 0 leaves folder/measured.json."""
    from transformers import AutoTokenizer

    from swirl_nemo.checkpoint.run_state import gather
    from swirl_nemo.session import REFERENCE, Session

    cfg = bench_config(case)
    rows, instruction = bench.make_rows(cfg, AutoTokenizer.from_pretrained(folder / "hf"), case.prompts)
    session = Session(compose([*bench.settings(cfg, folder, instruction), *case.options]))
    session.load()
    session.sets.snapshot(REFERENCE)
    list(bench.steps(session, cfg, rows))  # the optimizer's moments are made in its first step
    ranks = gather(standing(session) | passing(session, rows) | head(session))
    checkpoint = saved(session)
    if session.is_main:
        (folder / "measured.json").write_text(json.dumps({"ranks": ranks, "checkpoint": checkpoint}))


def standing(session) -> dict[str, int]:
    """What stays between steps."""
    stages = session.actor.model
    parameters = [parameter for stage in stages for parameter in stage.parameters()]
    gradients = [buffer.grad_data for stage in stages for buffer in stage.buffers]
    optimizer = session.actor._optimizer.mcore_optimizer.optimizer
    state = [value for moments in optimizer.state.values() for value in moments.values() if isinstance(value, Tensor)]
    masters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "weights": size(parameters),
        "gradients": size(gradients),
        "optimizer": size([*state, *masters], without=parameters),
        "host_sets": len(session.sets._host),
        "host": size(tensor for tensors in session.sets._host.values() for tensor in tensors),
    }


def passing(session, rows: list[dict]) -> dict:
    """Peaks of a step's parts over what stands."""
    from swirl_nemo import phase as room
    from swirl_nemo.data.transition import Transition
    from swirl_nemo.roles import FWM
    from swirl_nemo.rollout import wave

    phase, caches = session.cfg.phase.fwm, []

    class Kept(wave.KvCache):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            caches.append(self)

    transitions = [Transition(str(i), row["x"], row["z"], "", "bench", "", 0) for i, row in enumerate(rows)]
    step = room.Step(transitions, [], [], lr=1e-6, seed=(0,))
    mine = list(session.share(transitions))
    rolled = {}

    def roll_out() -> None:
        rolled["out"] = room.roll_out(session, FWM, phase, mine, step)

    with mock.patch.object(wave, "KvCache", Kept):
        rollout_peak = peak(roll_out)
    pairs = [pair for kept in caches for pair in (*kept.prompts.values(), *kept._own.values())]
    cache = size(part for pair in pairs for part in pair)
    rollout = rolled["out"]
    sequences = room._sequences(session, FWM, mine, rollout, phase.group)
    advantages = room._advantages(phase, torch.linspace(-1, 1, len(sequences)))
    parts = [list(range(len(mine)))]
    samples = room.Samples(sequences, rollout, advantages.std, rollout.logprobs, advantages, parts)

    def score() -> None:
        room.score(session, FWM, phase, mine, rollout, sequences, room.Stopwatch(session.watch))

    def train() -> None:
        room.update(session, FWM, phase, samples, mine, step)

    session.sets.trained()
    return {
        "rollout": {"peak": rollout_peak, "cache": cache},
        "score": {"peak": peak(score)},
        "train": {"peak": peak(train), "allocator": allocator_peak(train)},
    }


def head(session) -> dict:
    """Peaks of the head alone on two chunks, over its input: log-probs, and their gradients. The last stage has it."""
    from megatron.core import parallel_state
    from megatron.core.utils import get_attr_wrapped_model

    from swirl_nemo.actor.logprobs import Scored, log_probs

    if not parallel_state.is_pipeline_last_stage():
        return {"head": None}
    chunk = session.cfg.model.logit_chunk
    weight = get_attr_wrapped_model(session.actor.module, "head")()
    states = torch.randn(2 * chunk, weight.shape[1], dtype=weight.dtype, requires_grad=True)
    where = torch.zeros(2 * chunk, dtype=torch.long)
    scored = Scored(session.model_distribution, where, where + 5, where, None)
    group = parallel_state.get_tensor_model_parallel_group()
    first = parallel_state.get_tensor_model_parallel_rank() * len(weight)
    made = []
    forward = peak(lambda: made.append(log_probs(states, weight, scored, chunk, first, group)[0].sum()))
    backward = peak(lambda: torch.autograd.grad(made[0], [states, weight]))
    return {"head": {"forward": forward, "backward": backward}}


def saved(session) -> dict[str, int]:
    """A checkpoint's files by what they hold."""
    from swirl_nemo.checkpoint.huggingface import WEIGHTS
    from swirl_nemo.checkpoint.run_state import OPTIMIZER
    from swirl_nemo.checkpoint.saving import Saver

    state = {"metrics_position": 0, "optimizer": True, "score": None}
    Saver(session).save("measured", state, session.policies, background=False)
    folder = session.run.folder / "checkpoints" / "measured"
    weights = {name: folder_size(folder / name / WEIGHTS) for name in session.policies}
    return {"weights": weights, "optimizer": folder_size(folder / OPTIMIZER), "all": folder_size(folder)}


def record(name: str, folder: Path) -> dict:
    """Run a case's ranks; its settings beside what they measured."""
    case = CASES[name]
    fork(make_model, case.shape, folder)
    fork(measure, case, folder, processes=case.processes)
    return {**asdict(case), **json.loads((folder / "measured.json").read_text())}


def measure_cases(folder: Path, names: Iterable[str]) -> None:
    """Put them into folder/memory.json, one by one, beside what is there."""
    out = folder / "memory.json"
    result = json.loads(out.read_text()) if out.exists() else {}
    for name in names:
        with tempfile.TemporaryDirectory() as place:
            result[name] = record(name, Path(place))
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    import_stack()
    measure_cases(Path(sys.argv[1]), sys.argv[2:] or CASES)
