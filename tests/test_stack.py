"""What makes the stack run without a GPU: the table of patches, its Adam, and the chunked log-probs of a
vocabulary-parallel head.

Run as a script, this file is the process that the patches are applied in: they change torch for good.
"""

import importlib
import importlib.metadata
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from swirl_nemo import stack
from swirl_nemo.actor.logprobs import Scored, log_probs
from swirl_nemo.rollout.sampling import Distribution, pack
from swirl_nemo.stack import patches
from swirl_nemo.stack.adam import FusedAdam

# the table


@pytest.fixture(scope="module")
def applied() -> dict[str, dict]:
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.megatron
@pytest.mark.parametrize("row", patches.TABLE, ids=lambda row: row.target)
def test_a_row_is_in_force(applied, row):
    """The name is there if the row says so, is another object afterwards, and stays that object when asked again."""
    seen = applied[row.target]
    assert seen["was there"] or row.new
    assert seen["replaced"]
    assert seen["stays"]


def test_a_row_whose_target_is_gone_is_named():
    row = replace(patches.TABLE[0], target="torch:cuda.current_gadget")
    with pytest.raises(patches.StackError, match=r"torch:cuda\.current_gadget is gone: .* torch 2\.13\.0") as error:
        patches.apply(row)
    assert not hasattr(torch.cuda, "current_gadget")
    assert row.reason in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("package", ["torch", "nemo-toolkit", "nemo-aligner", "megatron-core"])
def test_another_version_is_refused_before_anything_changes(monkeypatch, package):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1" if name == package else real(name))
    before = torch.cuda.current_device
    with pytest.raises(patches.StackError, match=f"{package} 0.0.1 is installed, not .*: without a GPU"):
        patches.apply_all()
    assert torch.cuda.current_device is before
    assert not patches._applied


def test_nothing_is_patched_where_there_is_a_gpu(monkeypatch):
    """A mock: this machine's torch is told that it has CUDA. What a GPU then runs was not run."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(patches, "apply_all", lambda: pytest.fail("patched on a GPU"))
    assert not stack.on_cpu()
    stack.prepare()


# Adam


@pytest.mark.slow
def test_adam_is_torchs_adamw_with_its_step_in_the_group():
    """Ten steps on random gradients; a parameter without a gradient stays as it is. (torch's imports its compiler.)"""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((5, 3), (7,), (2, 2))]
    options = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    mine, theirs = [[torch.nn.Parameter(value.clone()) for value in start] for _ in range(2)]
    optimizers = FusedAdam(mine, **options), torch.optim.AdamW(theirs, **options)
    for _ in range(10):
        for one, other in zip(mine[:2], theirs[:2], strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(mine, theirs)
    assert torch.equal(mine[2], start[2])
    assert optimizers[0].param_groups[0]["step"] == 10
    assert set(optimizers[0].state[mine[0]]) == {"exp_avg", "exp_avg_sq"}


# log-probs of a vocabulary-parallel head, here on a group of one; test_layouts.py has groups of two

N, H, V, END = 11, 6, 24, 3


@pytest.fixture(scope="module")
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def distribution(case: str) -> Distribution:
    allowed = torch.ones(V, dtype=torch.bool)
    if case != "plain":
        allowed[[0, 7, 8, 22, 23]] = False
    restricted = case in ("minimum length", "support")
    return Distribution(allowed, 0.6 if case != "plain" else 1.0, END, 4 if restricted else 0, 0, 1.0)


def problem(case: str):
    """Hidden states, head, what to score and the [N, V] mask of possible tokens, worked out token by token."""
    generator = torch.Generator().manual_seed(5)
    hidden, weight = torch.randn(N, H, generator=generator), torch.randn(V, H, generator=generator)
    rule, steps = distribution(case), torch.arange(N) % 6
    possible = torch.zeros(N, V, dtype=torch.bool)
    kept = torch.rand(N, V, generator=generator) < 0.5
    for n in range(N):
        for v in range(V):
            possible[n, v] = rule.allowed[v] and not (v == END and steps[n] < rule.min_length)
    if case == "support":
        kept[:, 5] = True  # never empty
        possible &= kept
    targets = torch.stack([row.nonzero()[:, 0][n % int(row.sum())] for n, row in enumerate(possible)])
    nowhere = torch.zeros(N, dtype=torch.long)
    scored = Scored(rule, nowhere, targets, steps, pack(kept) if case == "support" else None)
    return hidden, weight, scored, possible


@pytest.mark.parametrize("case", ["plain", "mask and temperature", "minimum length", "support"])
@pytest.mark.parametrize("chunk", [1, 3, N])
def test_chunked_log_probs_are_those_of_log_softmax(group, case, chunk):
    """Values, entropies and both gradients against torch.log_softmax of the whole logits and autograd."""
    hidden, weight, scored, possible = problem(case)
    dense = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logits = (dense[0] @ dense[1].t() / scored.distribution.temperature).masked_fill(~possible, -torch.inf)
    expected = logits.log_softmax(-1)
    upstream = torch.linspace(-1, 1, N)
    (expected.gather(1, scored.targets[:, None])[:, 0] * upstream).sum().backward()

    mine = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    values, entropy = log_probs(*mine, scored, chunk, 0, group)
    (values * upstream).sum().backward()
    torch.testing.assert_close(values, expected.gather(1, scored.targets[:, None])[:, 0])
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=expected).entropy())
    for one, other in zip(mine, dense, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert not entropy.requires_grad


def main() -> None:
    """Apply the table and report, row by row, what became of each name."""
    seen = {}
    apply = patches.apply

    def look(row):
        module, _, path = row.target.partition(":")
        owner = importlib.import_module(module)
        *owners, name = path.split(".")
        for part in owners:
            owner = getattr(owner, part)
        return owner, name

    def watched(row):
        owner, name = look(row)
        before = getattr(owner, name, None)
        apply(row)
        after = getattr(owner, name)
        seen[row.target] = {"was there": before is not None, "replaced": after is not before}

    patches.apply = watched
    stack.prepare()
    patched = {row.target: getattr(*look(row)) for row in patches.TABLE}
    stack.prepare()
    for row in patches.TABLE:
        seen[row.target]["stays"] = getattr(*look(row)) is patched[row.target]
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
