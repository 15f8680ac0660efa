"""Groups of rows, their packing without padding, and dealing out over ranks, against naive loops. Pure torch."""

import itertools
import random

import pytest
import torch

from swirl_nemo.actor.packing import Packing, pack, pack_prefixes
from swirl_nemo.data.batch import Sequences, collate, padded
from swirl_nemo.session import dealt

Rows = tuple[list[list[int]], list[list[int]]]


def random_rows(draw: random.Random, groups: int, group: int, least: int) -> Rows:
    """Prompts of each group begin alike, by chance with nothing; completions have `least` tokens or more."""

    def tokens(low: int, high: int) -> list[int]:
        return [draw.randrange(5, 90) for _ in range(draw.randrange(low, high))]

    prompts, completions = [], []
    for _ in range(groups):
        shared = tokens(0, 6)
        alike = draw.random() < 0.5 and shared
        for _ in range(group):
            prompts.append(shared if alike else shared + tokens(1, 5))
            completions.append(tokens(least, 6))
    return prompts, completions


def check_against_rows(batch: Sequences, prompts: list[list[int]], completions: list[list[int]]) -> None:
    """Every property of a batch, element by element, from the rows that went in."""
    mask, targets = batch.completion_mask, batch.targets
    assert len(batch) == len(prompts) and mask.shape == targets.shape == (len(prompts), batch.width)
    for b, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        p = batch.prefix_of[b]
        prefix = batch.prefixes[p, : batch.prefix_lengths[p]].tolist()
        assert prefix + batch.own[b, : batch.own_lengths[b]].tolist() == prompt + completion
        assert batch.lengths[b] == len(prompt) + len(completion)
        assert not batch.own[b, batch.own_lengths[b] :].any()
        assert mask[b].tolist() == [j < len(completion) for j in range(batch.width)]
        assert targets[b, : len(completion)].tolist() == completion


def check_packing(batch: Sequences, prompts, completions, multiple: int) -> None:
    """Each predicting token is the right one at the right position, and sees its row's tokens so far and no others."""
    packing, predictors = pack(batch, multiple)
    prefix_tokens, own_tokens = packing.grid(packing.tokens)
    prefix_positions, own_positions = packing.grid(packing.positions)
    true = int(batch.prefix_lengths.sum() + (batch.own_lengths - 1).clamp(min=0).sum())
    assert len(packing.tokens) == -(-true // multiple) * multiple
    assert torch.equal(packing.pack(prefix_tokens, own_tokens)[:true], packing.tokens[:true])
    for b, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        row, p = prompt + completion, int(batch.prefix_of[b])
        for j in range(len(completion)):
            assert packing.tokens[predictors[b, j]] == row[len(prompt) + j - 1]
            assert packing.positions[predictors[b, j]] == len(prompt) + j - 1
        tokens = torch.cat([prefix_tokens[p], own_tokens[b]]).tolist()
        positions = torch.cat([prefix_positions[p], own_positions[b]]).tolist()
        for i in range(int(batch.own_lengths[b]) - 1):
            seen = packing.visible[b, 0, i].nonzero()[:, 0].tolist()
            at = int(batch.prefix_lengths[p]) + i
            assert [tokens[k] for k in seen] == row[: at + 1]
            assert [positions[k] for k in seen] == list(range(at + 1))
    check_runs(batch, packing, [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)])


def check_runs(batch: Sequences, packing: Packing, rows: list[list[int]]) -> None:
    """Prefixes and what rows have of their own lie where the bounds say, and a row sees all but its last token."""
    runs, tokens = packing.runs, packing.tokens.tolist()
    bounds = {name: getattr(runs, f"{name}_starts").tolist() for name in ("prefix", "own", "seen")}
    assert (runs.num_prefix, runs.num_own) == (bounds["prefix"][-1], bounds["own"][-1])
    for p in range(len(batch.prefixes)):
        part = slice(*bounds["prefix"][p : p + 2])
        assert tokens[part] == batch.prefixes[p, : batch.prefix_lengths[p]].tolist()
    for b, row in enumerate(rows):
        first, last = (runs.num_prefix + bound for bound in bounds["own"][b : b + 2])
        own = max(int(batch.own_lengths[b]) - 1, 0)
        seen = runs.seen[slice(*bounds["seen"][b : b + 2])].tolist()
        assert tokens[first:last] == row[len(row) - own - 1 : -1] and last - first == own
        assert [tokens[k] for k in seen] == (row[:-1] if batch.own_lengths[b] else row)
        assert packing.positions[seen].tolist() == list(range(len(seen)))


@pytest.mark.parametrize("group", [1, 2, 5])
def test_batches_and_packings_agree_with_a_naive_loop(group):
    draw = random.Random(group)
    for trial in range(60):
        prompts, completions = random_rows(draw, draw.randrange(1, 4), group, trial % 2)
        ends = sorted({*draw.sample(range(len(prompts)), draw.randrange(len(prompts))), len(prompts)} - {0})
        uneven = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        batch = collate(prompts, completions, uneven if trial % 4 == 3 else group)
        check_against_rows(batch, prompts, completions)
        check_packing(batch, prompts, completions, multiple=1 + trial % 3)
        assert batch.width == max(map(len, completions)), "no column is all padding"


def test_what_a_group_begins_with_is_kept_once():
    batch = collate([[1, 2, 3], [1, 2, 4], [1, 2], [7], [7], [7]], [[5]] * 6, group=3)
    assert batch.prefixes.tolist() == [[1, 2], [7, 0]] and batch.prefix_lengths.tolist() == [2, 1]
    assert batch.own[:3].tolist() == [[3, 5], [4, 5], [5, 0]]
    packing, _ = pack(batch, 1)
    assert packing.tokens.tolist() == [1, 2, 7, 3, 4]
    uneven = collate([[1, 2, 3], [1, 2, 4], [7], [7], [7]], [[5]] * 5, group=[2, 3])
    assert uneven.prefixes.tolist() == [[1, 2], [7, 0]] and uneven.prefix_of.tolist() == [0, 0, 1, 1, 1]


def test_selected_rows_keep_what_they_were():
    draw = random.Random(1)
    for _ in range(40):
        prompts, completions = random_rows(draw, 3, 4, 1)
        batch = collate(prompts, completions, 4).to("cpu")
        rows = draw.sample(range(len(prompts)), draw.randrange(1, len(prompts) + 1))
        part = batch.select(torch.tensor(rows))
        chosen = [prompts[row] for row in rows], [completions[row] for row in rows]
        check_against_rows(part, *chosen)
        check_packing(part, *chosen, multiple=1)
        assert part.width == max(map(len, chosen[1])) and len(part.prefixes) == len({row // 4 for row in rows})
        assert part.own.shape[1] == max(part.own_lengths) and part.prefixes.shape[1] == max(part.prefix_lengths)


def test_without_padding_nothing_is_moved():
    packing, _ = pack(collate([[1, 2], [1, 2]], [[3, 4], [5, 6]], 2), 1)
    assert packing.slots is None and packing.places is None
    prompts = pack_prefixes(padded([[1, 2], [3]]), torch.tensor([2, 1]), multiple=1)
    assert prompts.tokens.tolist() == [1, 2, 3] and prompts.slots is not None


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_groups_are_dealt_out_by_tokens(ranks):
    """All of them, once each, and no rank with more than 4/3 of the best share there is (exhaustively, for few)."""
    draw = random.Random(ranks)
    for _ in range(30):
        sizes = [draw.randrange(1, 40) for _ in range(draw.randrange(ranks, 7))]
        parts = dealt(range(len(sizes)), sizes, ranks)
        assert sorted(number for part in parts for number in part) == list(range(len(sizes)))
        assert all(parts), "no rank is left without a group"
        heaviest = max(sum(sizes[number] for number in part) for part in parts)
        shares = itertools.product(range(ranks), repeat=len(sizes))
        loads = (
            [sum(s for s, at in zip(sizes, share, strict=True) if at == r) for r in range(ranks)] for share in shares
        )
        best = min(map(max, loads))
        assert heaviest <= 4 / 3 * best
