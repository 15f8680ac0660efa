"""What every verb that runs a model holds: settings, actor, weight sets, prompts, run folder, this rank's share."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .config import SwirlConfig, Weights
from .data.batch import check_length
from .data.prompts import Prompter, load_tokenizer
from .data.transition import Transition
from .data.transitions import TransitionFile
from .prior import Prior
from .roles import ROLES, Role
from .rollout.sampling import Distribution, unrestricted
from .runs import Run
from .watch import Watch

T = TypeVar("T")
SHARED, REFERENCE, WARM = "shared", "reference", "warmup"


class Session:
    """The live model and all that belongs to it. `load` fills it from the two starting checkpoints."""

    def __init__(self, cfg: SwirlConfig):
        from .actor.build import build_actor
        from .weights import WeightSets

        self.cfg = cfg
        self.actor = build_actor(cfg, Path(cfg.model.fwm))
        self.device = torch.cuda.current_device()
        self.sets = WeightSets(self.actor, policy=self.set_of(ROLES["fwm"]))
        self.prompter = Prompter(load_tokenizer(cfg.data.tokenizer), cfg.data, cfg.run.seed)
        self.is_main = dist.get_rank() == 0
        self.run = Run(Path(cfg.run.root, cfg.run.name), cfg, is_main=self.is_main)
        seconds = cfg.cluster.timeout_minutes * 60
        self.watch = Watch(self.run.folder, dist.get_rank(), dist.get_world_size(), seconds)
        self.between_batches: Callable[[], None] = lambda: None  # of `batches`

    @contextmanager
    def open_run(self) -> Iterator[None]:
        """Make the run's folder, or open it again, and watch the job's processes. Verbs that train do; `eval` and
        `annotate` leave a run as it is."""
        with Run.open(self.cfg, is_main=self.is_main) as self.run, self.watch():
            yield

    def load(self) -> None:
        """Weight sets from cfg.model.fwm and, when separate, cfg.model.idm."""
        from .checkpoint.run_state import load_weights

        if self.cfg.model.weights is Weights.separate:
            load_weights(self.actor, Path(self.cfg.model.idm))
            self.sets.snapshot(ROLES["idm"].name)
        load_weights(self.actor, Path(self.cfg.model.fwm))
        self.sets.trained()

    def set_of(self, role: Role) -> str:
        """Name of the weight set that plays this role."""
        return SHARED if self.cfg.model.weights is Weights.shared else role.name

    def roles_of(self, weights: str) -> list[Role]:
        """Roles that the weight set of this name plays."""
        return [role for role in ROLES.values() if self.set_of(role) == weights]

    @property
    def policies(self) -> list[str]:
        return sorted({self.set_of(role) for role in ROLES.values()})

    # distributions

    @cache  # noqa: B019 one session lives as long as its process
    def policy_distribution(self, role: Role) -> Distribution:
        """What the role samples from, and is trained as; made once, so later changes of cfg.phase.*.sampling are not
        seen. With a fixed length its end token is not a choice at all."""
        data, sampling = getattr(self.cfg.data, role.name), getattr(self.cfg.phase, role.name).sampling
        allowed = self.prompter.allowed(role, self.actor.padded_vocab_size)
        if data.min_length == data.max_length:
            allowed[self.prompter.end] = False
        return Distribution(
            allowed, sampling.temperature, self.prompter.end, data.min_length, sampling.top_k, sampling.top_p
        ).to(self.device)

    @cached_property
    def model_distribution(self) -> Distribution:
        """The model's own, over real tokens: for rewards, supervision and held-out log-probs."""
        vocab = self.actor.cfg.vocab_size
        return unrestricted(vocab, self.actor.padded_vocab_size, self.prompter.end).to(self.device)

    # prompts and actions

    def prompt(self, role: Role, transition: Transition) -> list[int]:
        """Raises ValueError where prompt and longest completion do not fit model.max_length."""
        tokens = self.prompter.prompt(role, transition)
        longest = getattr(self.cfg.data, role.name).max_length
        check_length(tokens, longest, self.cfg.model.max_length, transition.id)
        return tokens

    @cached_property
    def prior(self) -> Prior:
        """Over actions, from the labels."""
        cfg, new_form = self.cfg.data, self.cfg.alternation.new_form
        rows = TransitionFile(cfg.labelled, cfg.max_labels) if new_form else ()
        return Prior((row.z for row in rows), new_form)

    # data parallelism

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This data-parallel rank's contiguous part; parts differ by at most one item."""
        rank, world = dist.get_rank(self.actor.data_group), dist.get_world_size(self.actor.data_group)
        size, rest = divmod(len(items), world)
        start = rank * size + min(rank, rest)
        return items[start : start + size + (rank < rest)]

    def batches(self, count: int) -> Iterator[range]:
        """This rank's part of `count` rows, eval.batch at a time. Before each batch it calls `between_batches`, which
        may be collective: as often on a rank whose part is one batch shorter."""
        mine, size = self.share(range(count)), self.cfg.eval.batch
        longest = -(-count // dist.get_world_size(self.actor.data_group))
        for start in range(0, longest, size):
            self.between_batches()
            if part := mine[start : start + size]:
                yield part

    def gather(self, items: list[T]) -> list[T]:
        """Undo `share`: all ranks' items, in order, on every rank."""
        parts: list = [None] * dist.get_world_size(self.actor.data_group)
        dist.all_gather_object(parts, items, group=self.actor.data_group)
        return [item for part in parts for item in part]

    def deal(self, numbers: Sequence[int], sizes: Sequence[int]) -> list[int]:
        """This data-parallel rank's part of `numbers`, balanced by `sizes[number]`."""
        return dealt(numbers, sizes, dist.get_world_size(self.actor.data_group))[dist.get_rank(self.actor.data_group)]

    def add_up(self, values: Tensor, maximum: bool = False) -> Tensor:
        """Sum, or maximum, over data-parallel ranks, in place."""
        operation = dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM
        dist.all_reduce(values, op=operation, group=self.actor.data_group)
        return values


def dealt(numbers: Sequence[int], sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """`numbers` dealt out so that the sums of `sizes[number]` are about the same: the largest first, each to the rank
    that has least (Graham 1969: the heaviest rank has at most 4/3 of the least possible)."""
    loads, parts = [(0, rank) for rank in range(ranks)], [[] for _ in range(ranks)]
    for number in sorted(numbers, key=lambda number: -sizes[number]):
        load, rank = heapq.heappop(loads)
        heapq.heappush(loads, (load + sizes[number], rank))
        parts[rank].append(number)
    return [sorted(part) for part in parts]
