"""Keys and values of decoded sequences."""

from torch import Tensor


class KvCache:
    """Stands where Megatron passes its InferenceParams. Keys are kept rotated (actor.model.CachedSelfAttention).

    Buffers [B, groups, capacity, head] are made once, at a layer's first tokens; a decoded token is copied into its
    place, nothing is concatenated, and a row's keys lie together.
    """

    def __init__(self, capacity: int):
        self.max_sequence_length = capacity  # Megatron's name: it sizes the rotation table
        self.sequence_len_offset = 0  # Megatron's name: positions filled so far
        self.current_batch_size = 0  # written by Megatron
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put [s, B, groups, head], as Megatron has them, behind what is there; returns all keys and values so far
        [B, groups, S, head]. The offset stays."""
        if layer not in self._buffers:
            _, rows, groups, head = key.shape
            shape = (rows, groups, self.max_sequence_length, head)
            self._buffers[layer] = (key.new_empty(shape), value.new_empty(shape))
        start, stop = self.sequence_len_offset, self.sequence_len_offset + len(key)
        for buffer, new in zip(self._buffers[layer], (key, value), strict=True):
            buffer[:, :, start:stop] = new.permute(1, 2, 0, 3)
        return tuple(buffer[:, :, :stop] for buffer in self._buffers[layer])

    def advance(self, positions: int) -> None:
        self.sequence_len_offset += positions

    def repeat(self, group: int) -> None:
        """Each row G times, B -> B*G: a group's samples start from their prompt's one prefill."""
        filled = self.sequence_len_offset
        for layer, pair in self._buffers.items():
            wide = []
            for buffer in pair:
                new = buffer.new_empty(len(buffer) * group, *buffer.shape[1:])
                new.unflatten(0, (-1, group))[:, :, :, :filled] = buffer[:, None, :, :filled]
                wide.append(new)
            self._buffers[layer] = tuple(wide)
