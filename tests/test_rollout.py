"""Generation and the distribution that it samples from, against transformers' models and logits processors.

Rollouts come from the process groups of workers/layouts.py; sampling itself is pure torch and tested here.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from workers import reference
from workers.layouts import FULL
from workers.rooms import CASES, MAX_LENGTH

from swirl_nemo.rollout.sampling import Distribution, pack, sample, unpack

SAMPLED = [case for case in CASES if case != "greedy"]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def rollouts(layouts) -> dict[str, dict]:
    return {name: layouts[name]["rollouts"] for name in FULL}


def tokens_of(rows: list[dict]) -> list[list[int]]:
    return [row["completion"] for row in rows]


def forbidden(work: Path, case: str) -> list[int]:
    """Special tokens but the end token, and that too where the length is fixed."""
    tokenizer = reference.tokenizer(work)
    end = set() if CASES[case][1] == MAX_LENGTH else {tokenizer.eos_token_id}
    return sorted(set(tokenizer.all_special_ids) - end)


def processors(work: Path, case: str, prompt_length: int) -> LogitsProcessorList:
    """transformers' own, in the order in which its `generate` applies them."""
    sampling, shortest = CASES[case]
    chain = [
        MinNewTokensLengthLogitsProcessor(prompt_length, shortest, reference.tokenizer(work).eos_token_id),
        SuppressTokensLogitsProcessor(forbidden(work, case)),
        TemperatureLogitsWarper(sampling.temperature),
    ]
    chain += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    chain += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    return LogitsProcessorList(chain)


@pytest.mark.megatron
@pytest.mark.parametrize("layout", FULL)
def test_greedy_tokens_are_those_of_transformers(work, rollouts, layout):
    """Six prompts of different lengths in one batch, against `generate` on each alone."""
    model = reference.llama(work, "fwm")
    for row in rollouts[layout]["greedy"]:
        options = {"max_new_tokens": MAX_LENGTH, "do_sample": False, "suppress_tokens": forbidden(work, "greedy")}
        prompt = torch.tensor([row["prompt"]])
        mine = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        assert row["completion"] == mine[0, len(row["prompt"]) :].tolist()


@pytest.mark.megatron
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_behaviour_log_probs_and_support_are_those_of_transformers(work, rollouts, case):
    """Temperature, mask, minimum length, top-k and top-p, at every token of every sample."""
    model = reference.llama(work, "fwm")
    for row in rollouts["single"][case]:
        prompt, completion = row["prompt"], row["completion"]
        logits = reference.next_logits(model, prompt, completion)
        chain = processors(work, case, len(prompt))
        for i, token in enumerate(completion):
            scores = chain(torch.tensor([prompt + completion[:i]]), logits[i : i + 1])[0]
            assert row["behaviour"][i] == pytest.approx(scores.log_softmax(-1)[token].item(), abs=TOLERANCE)
            if row["support"] is not None:
                bits = np.unpackbits(np.array(row["support"][i], dtype=np.uint8), bitorder="little")
                assert bits[: len(scores)].nonzero()[0].tolist() == scores.isfinite().nonzero()[:, 0].tolist()
                assert not bits[len(scores) :].any()
        assert row["after the end"] == 0


@pytest.mark.megatron
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", FULL)
def test_behaviour_log_probs_are_the_teacher_forced_ones(rollouts, layout, case):
    """Decoding with the cache against one pass over the whole sequence, with the kept support where there is one."""
    for row in rollouts[layout][case]:
        assert row["behaviour"] == pytest.approx(row["forced"], abs=TOLERANCE)
        assert (row["support"] is not None) == (case in ("top-k", "top-p", "both"))


@pytest.mark.megatron
@pytest.mark.parametrize("case", SAMPLED)
def test_the_same_seed_gives_the_same_tokens_in_every_layout(rollouts, case):
    expected = rollouts["single"][case]
    for layout in FULL:
        assert [row["prompt"] for row in rollouts[layout][case]] == [row["prompt"] for row in expected]
        assert tokens_of(rollouts[layout][case]) == tokens_of(expected), layout


@pytest.mark.megatron
@pytest.mark.parametrize("layout", FULL)
def test_prompts_of_different_lengths_do_not_touch_each_other(rollouts, layout):
    rows = rollouts[layout]["tempered"]
    assert len({len(row["prompt"]) for row in rows}) == 6
    assert tokens_of(rows) == rollouts[layout]["tempered, each alone"]


@pytest.mark.megatron
def test_lengths_are_within_their_bounds(work, rollouts):
    """A completion ends with its only end token, or has the maximum length; a fixed length never ends early."""
    end = reference.tokenizer(work).eos_token_id
    seen = set()
    for case in SAMPLED:
        for completion in tokens_of(rollouts["single"][case]):
            ended = completion[-1] == end
            seen.add(ended)
            assert end not in completion[:-1]
            assert ended or len(completion) == MAX_LENGTH
            assert len(completion) >= CASES[case][1] + ended
    assert seen == {True, False}
    assert {len(completion) for completion in tokens_of(rollouts["single"]["fixed length"])} == {MAX_LENGTH}


# sampling: pure torch


def weights_of(probabilities: list[float]) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def test_sampled_frequencies_are_the_distributions():
    """Pearson's statistic of 200,000 draws against its chi-square distribution; impossible tokens never come."""
    probabilities = [0.0, 0.5, 0.25, 0.0, 0.125, 0.1, 0.02, 0.005, 0.0]
    count = 200_000
    uniforms = torch.from_numpy(np.random.default_rng(0).random(count))
    tokens, logprobs = sample(weights_of(probabilities).expand(count, -1), uniforms)
    possible = torch.tensor(probabilities, dtype=torch.float64) > 0
    seen = torch.bincount(tokens, minlength=len(probabilities)).double()
    expected = torch.tensor(probabilities, dtype=torch.float64) * count
    assert seen[~possible].sum() == 0
    statistic = ((seen - expected)[possible] ** 2 / expected[possible]).sum()
    assert statistic < 20.5  # 5 degrees of freedom: exceeded once in 1,000 seeds
    torch.testing.assert_close(logprobs, torch.tensor(probabilities).log()[tokens])


def test_the_ends_of_the_unit_interval_fall_on_possible_tokens():
    """0 and the largest number under 1, with impossible tokens at both ends of the vocabulary."""
    weights = weights_of([0.0, 0.3, 0.7, 0.0]).expand(2, -1)
    tokens, _ = sample(weights, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))
    assert tokens.tolist() == [1, 2]


def test_tokens_are_those_of_the_cumulative_distribution():
    """A vocabulary with impossible tokens at its beginning, in its middle and at its end, in double precision."""
    weights = torch.randn(4, 850, generator=torch.Generator().manual_seed(3)) * 3
    weights[:, 256:384] = weights[1, :300] = weights[2, 600:] = -torch.inf
    for seed in range(200):
        uniforms = torch.from_numpy(np.random.default_rng(seed).random(4))
        tokens, logprobs = sample(weights, uniforms)
        cumulative = weights.double().softmax(-1).cumsum(-1)
        expected = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
        assert tokens.tolist() == expected[:, 0].tolist()
        torch.testing.assert_close(logprobs, weights.log_softmax(-1).gather(-1, expected)[:, 0])


def test_packed_support_comes_back():
    mask = torch.rand(3, 5, 128, generator=torch.Generator().manual_seed(0)) < 0.3
    bits = pack(mask)
    assert bits.shape == (3, 5, 16) and bits.dtype is torch.uint8
    assert torch.equal(unpack(bits), mask)


@pytest.mark.parametrize("top_k, top_p", [(0, 0.7), (3, 1.0), (4, 0.8), (1, 0.1)])
def test_truncation_is_that_of_transformers(top_k, top_p):
    """Top-p looks at what top-k has left, as the released code's sampler does."""
    logits = torch.randn(50, 16, generator=torch.Generator().manual_seed(1)) * 2
    kept = Distribution(torch.ones(16, dtype=torch.bool), 1.0, 0, 0, top_k, top_p).truncation(logits.clone())
    scores = logits
    scores = TopKLogitsWarper(top_k)(None, scores) if top_k else scores
    scores = TopPLogitsWarper(top_p)(None, scores) if top_p < 1 else scores
    assert torch.equal(kept, scores.isfinite())
