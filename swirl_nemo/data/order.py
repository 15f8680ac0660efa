"""The order in which rows are read, as a function of one counter."""

import numpy as np


class Order:
    """An endless reading order: each epoch is a permutation of range(size) fixed by (seed, epoch).

    There is no state to save: position n is row n % size of epoch n // size's permutation, so a run resumes from the
    count of rows it has read. The permutation last used is kept, at 8 * size bytes.
    """

    def __init__(self, size: int, seed: int):
        assert size > 0, "no rows to order"
        self.size = size
        self.seed = seed
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def indices(self, start: int, count: int) -> list[int]:
        """Rows at positions start, ..., start + count - 1; a range may cross epochs."""
        assert start >= 0 and count >= 0, (start, count)
        rows: list[int] = []
        while len(rows) < count:
            epoch, offset = divmod(start + len(rows), self.size)
            rows += self._permuted(epoch)[offset : offset + count - len(rows)].tolist()
        return rows

    def _permuted(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(self.size)
            self._epoch = epoch
        return self._permutation
