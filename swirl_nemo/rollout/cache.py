"""Keys and values of decoded sequences: a prompt's once for its group, and each row's own."""

from torch import Tensor

from ..actor.packing import Packing


class KvCache:
    """Stands where Megatron passes its InferenceParams. Keys are rotated, and scaled for the softmax.

    P prompts of up to L tokens, W rows a prompt, B = P*W. Prompts' keys and values are [P, groups, L, d]; rows' buffers
    [B, groups, capacity, d] are made once, and a decoded token is copied into its place.
    """

    def __init__(self, packing: Packing, width: int, capacity: int, scale: float):
        self.current_batch_size = 0  # written by Megatron
        self.width = width
        self.filled = 0  # own tokens of every row
        self._packing, self._capacity, self._scale = packing, capacity, scale
        self.prompts: dict[int, tuple[Tensor, Tensor]] = {}
        self._own: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(self, layer: int, key: Tensor, value: Tensor) -> None:
        """The prompts' [N, groups, d], as packed."""
        keys, values = (self._packing.grid(part)[0].transpose(1, 2) for part in (key, value))
        keys = keys * self._scale  # a copy: attention still reads what was given
        self.prompts[layer] = (keys.contiguous(), values.contiguous())
        rows, groups, _, head = keys.shape
        shape = (rows * self.width, groups, self._capacity, head)
        self._own[layer] = (key.new_empty(shape), value.new_empty(shape))

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put one token's [B, groups, d], keys scaled, behind the rows' own; returns all of those [B, groups, t, d]."""
        keys, values = self._own[layer]
        keys[:, :, self.filled], values[:, :, self.filled] = key, value
        return keys[:, :, : self.filled + 1], values[:, :, : self.filled + 1]

    def select(self, prompts: Tensor, rows: Tensor) -> None:
        """Keep those prompts, and those of the rows, as many of each prompt."""
        self.width = len(rows) // len(prompts)
        for layer in self.prompts:
            self.prompts[layer] = tuple(part.index_select(0, prompts) for part in self.prompts[layer])
            self._own[layer] = tuple(part.index_select(0, rows) for part in self._own[layer])
