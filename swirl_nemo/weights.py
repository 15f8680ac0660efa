"""Named weight sets, worn by the one live Megatron model: in host memory, with the extra state of FP8 layers.

A second model never stands on the device: `with sets.wear("idm"):` copies that set into the live parameters and copies
the policy back afterwards. Host memory is pinned on GPUs, so that the copies run at the bus's speed.
"""

import time
from contextlib import contextmanager

import torch
from torch import Tensor


class WeightSets:
    """`policy` names the set that the live parameters hold outside `wear`, and that training changes."""

    def __init__(self, actor, policy: str):
        self._parameters = [p for stage in actor.model for p in stage.parameters()]
        self._host: dict[str, list[Tensor]] = {}
        # Scales and amax histories belong to the weights and activations that they were taken from
        self._layers = [
            module
            for stage in actor.model
            for module in stage.modules()
            if type(module).get_extra_state is not torch.nn.Module.get_extra_state
        ]
        self._extra_states: dict[str, list] = {}
        self.policy = policy
        self._worn = policy
        self.seconds = 0.0  # spent copying so far
        self._stale = True  # whether the live policy is newer than its host copy

    @property
    def names(self) -> list[str]:
        return sorted({*self._host, self.policy})

    def trained(self) -> None:
        """Say that the live policy has changed: after every optimizer step."""
        assert self._worn == self.policy, f"trained while wearing {self._worn}"
        self._stale = True

    def snapshot(self, name: str) -> None:
        """Keep a copy of what is worn under `name`."""
        self._store(name)

    def copy(self, source: str, target: str) -> None:
        """Let `target` be a copy of `source`."""
        with self.wear(source):
            self._store(target)

    def average(self, *names: str) -> None:
        """Let each of these sets be the mean of them all."""
        self._save_policy()
        for tensors in zip(*(self._host[name] for name in names), strict=True):
            mean = torch.stack(tensors).float().mean(0)
            for tensor in tensors:
                tensor.copy_(mean)
        self.restore(self.policy)

    def become(self, name: str) -> None:
        """Make `name` the policy; the policy so far stays under its own name."""
        self._save_policy()
        self._load(name)
        self.policy, self._stale = name, False

    def restore(self, name: str) -> None:
        """Make `name` the policy from its host copy, whatever is live."""
        self._worn = ""
        self._load(name)
        self.policy, self._stale = name, False

    def drop(self, name: str) -> None:
        assert name != self.policy
        del self._host[name], self._extra_states[name]

    @contextmanager
    def wear(self, name: str):
        """Live parameters are those of `name` within. Nested wearing goes straight from one set to the other."""
        before = self._worn
        if before == self.policy:
            self._save_policy()
        self._load(name)
        try:
            yield
        finally:
            self._load(before)

    def _save_policy(self) -> None:
        if self._stale:
            self._store(self.policy)
            self._stale = False

    def _store(self, name: str) -> None:
        if name not in self._host:
            pinned = torch.cuda.is_available()
            self._host[name] = [torch.empty(p.shape, dtype=p.dtype, pin_memory=pinned) for p in self._parameters]
        self._extra_states[name] = [layer.get_extra_state() for layer in self._layers]
        self._copy(self._parameters, self._host[name])

    def _load(self, name: str) -> None:
        if name != self._worn:
            for layer, state in zip(self._layers, self._extra_states[name], strict=True):
                layer.set_extra_state(state)
            self._copy(self._host[name], self._parameters)
            self._worn = name

    @torch.no_grad()
    def _copy(self, source, target) -> None:
        start = time.perf_counter()
        for one, other in zip(source, target, strict=True):
            other.copy_(one, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start
