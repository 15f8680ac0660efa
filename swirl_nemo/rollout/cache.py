"""Keys and values of decoded sequences, in Megatron's [positions, B, groups, head] layout."""

from torch import Tensor


class KvCache:
    """Stands where Megatron passes its InferenceParams. Keys are kept rotated (actor.model.CachedSelfAttention).

    Buffers are made once, at a layer's first tokens; a decoded token is copied into its place, nothing is concatenated.
    """

    def __init__(self, capacity: int):
        self.max_sequence_length = capacity  # Megatron's name: it sizes the rotation table
        self.sequence_len_offset = 0  # Megatron's name: positions filled so far
        self.current_batch_size = 0  # written by Megatron
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put [s, B, groups, head] behind what is there; returns all keys and values so far. The offset stays."""
        if layer not in self._buffers:
            shape = (self.max_sequence_length, *key.shape[1:])
            self._buffers[layer] = (key.new_empty(shape), value.new_empty(shape))
        stop = self.sequence_len_offset + len(key)
        for buffer, new in zip(self._buffers[layer], (key, value), strict=True):
            buffer[self.sequence_len_offset : stop] = new
        return tuple(buffer[:stop] for buffer in self._buffers[layer])

    def advance(self, positions: int) -> None:
        self.sequence_len_offset += positions

    def repeat(self, group: int) -> None:
        """Each row G times, B -> B*G: a group's samples start from their prompt's one prefill."""
        filled = self.sequence_len_offset
        for layer, pair in self._buffers.items():
            wide = []
            for buffer in pair:
                new = buffer.new_empty(len(buffer), buffer.shape[1] * group, *buffer.shape[2:])
                new[:filled].unflatten(1, (-1, group)).copy_(buffer[:filled, :, None])
                wide.append(new)
            self._buffers[layer] = tuple(wide)
