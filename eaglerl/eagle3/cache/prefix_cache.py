"""Cache rows of texts that were read before, for prompts that begin with the same tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from eaglerl.eagle3.cache.kv_cache import KVCache

#: Tokens of a block. A prefix is reused in whole blocks, so at most 31 tokens are read again; one
#: block of SmolLM2-135M has 1.5 MB in float32.
BLOCK_ROWS = 32
# The parent of a text's first block.
_ROOT = -1

#: Tokens of a block behind the block before it, which is known by its place.
_Key = tuple[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Prefix:
    """What was found of a prompt.

    Attributes:
        length: tokens that need not be read again; a multiple of `BLOCK_ROWS`.
        places: where its blocks are.
    """

    length: int
    places: tuple[int, ...]


class PrefixCache:
    """The rows of texts in blocks, each of which is stored once for all texts that share it.

    A block is found by its tokens and all tokens before it, which are compared one by one. When
    there is no room, the block whose use lies farthest back is dropped. A block is never dropped
    before those that follow it.

    It holds rows of two caches: those of the target, and those of the draft, which are one behind:
    the draft's row of a token depends on the token after it. The features of a block's last token
    are kept as well, from which the draft makes the row that is missing.

    Attributes:
        max_blocks: most blocks.
    """

    def __init__(
        self, max_tokens: int, cache: KVCache, draft_cache: KVCache | None, feature_width: int
    ) -> None:
        """Set up. Memory is taken when it is first written.

        Args:
            max_tokens: most tokens whose rows are kept.
            cache: the target's cache, to and from whose slots rows are copied.
            draft_cache: the draft's, with as many slots; None without a draft.
            feature_width: 3k, the width of the target's features.

        Raises:
            ValueError: `max_tokens` is less than a block, or a cache is not on the CPU.
        """
        if max_tokens < BLOCK_ROWS:
            raise ValueError(f"max_tokens must be at least {BLOCK_ROWS}, got {max_tokens}")
        self.max_blocks = max_tokens // BLOCK_ROWS
        self._caches = [cache] if draft_cache is None else [cache, draft_cache]
        for each in self._caches:
            if not each.data.is_cpu:
                raise ValueError(
                    f"prefixes are kept on the CPU, the cache is on {each.data.device}"
                )
        self._rows = [
            # (blocks, layers, 2, kv_heads, BLOCK_ROWS, head_dim)
            each.data.new_empty(
                (self.max_blocks, *each.data.shape[1:4], BLOCK_ROWS, each.data.shape[5])
            )
            for each in self._caches
        ]
        self._features = torch.empty(self.max_blocks, feature_width)
        # The least recently used first. What follows a block stands before it.
        self._places: OrderedDict[_Key, int] = OrderedDict()
        self._free = list(range(self.max_blocks))[::-1]

    @property
    def tokens(self) -> int:
        """Number of tokens whose rows are kept."""
        return len(self._places) * BLOCK_ROWS

    def find(self, token_ids: Sequence[int]) -> Prefix:
        """Find the longest known prefix that leaves a token to read."""
        keys = self._known(token_ids[: max(len(token_ids) - 1, 0)])
        self._touch(keys)
        places = tuple(self._places[key] for key in keys)
        return Prefix(len(places) * BLOCK_ROWS, places)

    def restore(self, prefix: Prefix, slot: int) -> torch.Tensor:
        """Copy a prefix that `find` has returned just now into an empty slot of the caches.

        Args:
            prefix: the prefix.
            slot: the slot.

        Returns:
            (B, 3k) features of the last token of each of its B blocks. The draft has not processed
            the last one of them.

        Raises:
            ValueError: the slot holds rows, or has no room.
        """
        for index, cache in enumerate(self._caches):
            if cache.lengths[slot]:
                raise ValueError(f"slot {slot} holds {cache.lengths[slot]} rows, it must be empty")
            cache.check_room(prefix.length, slot)
            for number, place in enumerate(prefix.places):
                block, rows = self._block(index, place, number)
                cache.data[slot, ..., rows, :] = block
            cache.advance(max(prefix.length - index, 0), slot)
        return self._features[list(prefix.places)]

    def store(
        self, token_ids: Sequence[int], slot: int, features: Mapping[int, torch.Tensor]
    ) -> None:
        """Copy the rows of a text from a slot, as far as they are not known.

        Args:
            token_ids: the text; only whole blocks are stored.
            slot: the slot, whose target rows are those of the text. The draft's are, too, but the
                last one may be missing.
            features: (3k,) features by position, of the last token of every block.
        """
        keys = self._known(token_ids)[: self.max_blocks]
        # Before others are dropped, so that these are not.
        self._touch(keys)
        parent = self._places[keys[-1]] if keys else _ROOT
        most = min(len(token_ids) // BLOCK_ROWS, self.max_blocks)
        for number in range(len(keys), most):
            last = features[(number + 1) * BLOCK_ROWS - 1]
            place = self._take_place()
            self._copy_in(place, slot, number)
            self._features[place] = last
            keys.append((parent, _tokens_of(token_ids, number)))
            self._places[keys[-1]] = parent = place
        self._touch(keys)

    def clear(self) -> None:
        """Forget everything."""
        self._places.clear()
        self._free = list(range(self.max_blocks))[::-1]

    def _known(self, token_ids: Sequence[int]) -> list[_Key]:
        """Return the keys of the blocks that a text begins with, in order."""
        keys: list[_Key] = []
        parent = _ROOT
        for number in range(len(token_ids) // BLOCK_ROWS):
            key = (parent, _tokens_of(token_ids, number))
            if key not in self._places:
                break
            keys.append(key)
            parent = self._places[key]
        return keys

    def _touch(self, keys: Sequence[_Key]) -> None:
        """Note that the blocks of a text are used; the first one last, see `_places`."""
        for key in reversed(keys):
            self._places.move_to_end(key)

    def _take_place(self) -> int:
        return self._free.pop() if self._free else self._places.popitem(last=False)[1]

    def _copy_in(self, place: int, slot: int, number: int) -> None:
        for index, cache in enumerate(self._caches):
            block, rows = self._block(index, place, number)
            block[...] = cache.data[slot, ..., rows, :]

    def _block(self, index: int, place: int, number: int) -> tuple[torch.Tensor, slice]:
        """Return the memory of a text's block, and its rows in a slot of the cache of this index.

        The draft's, of index 1, begin one row earlier; in the first block that row is missing.
        """
        begin, end = number * BLOCK_ROWS - index, (number + 1) * BLOCK_ROWS - index
        missing = max(-begin, 0)
        return self._rows[index][place][..., missing:, :], slice(begin + missing, end)


def _tokens_of(token_ids: Sequence[int], number: int) -> tuple[int, ...]:
    return tuple(token_ids[number * BLOCK_ROWS : (number + 1) * BLOCK_ROWS])
