"""Rows of steps without a draft reach the head later, in order and in their places."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from eaglerl_vllm.unread_rows import Rows, UnreadRows

BLOCK, WIDTH = 4, 3


@dataclass
class Metadata:
    """The fields of vLLM's CommonAttentionMetadata that count here."""

    query_start_loc: torch.Tensor
    query_start_loc_cpu: torch.Tensor
    num_reqs: int
    num_actual_tokens: int
    max_query_len: int
    block_table_tensor: torch.Tensor
    slot_mapping: torch.Tensor


@dataclass
class Request:
    """A text whose rows are known by their positions."""

    blocks: list[int]
    seen: int = 0
    read: list[int] = field(default_factory=list)


def feature(position: int, name: str) -> torch.Tensor:
    return torch.full((WIDTH,), float(position)) + 1000 * int(name)


def rows_of(requests: dict[str, Request], counts: list[int]) -> Rows:
    tokens, positions, features, slots = [], [], [], []
    for (name, request), count in zip(requests.items(), counts, strict=True):
        for position in range(request.seen, request.seen + count):
            tokens.append(10 * position + int(name))
            positions.append(position)
            features.append(feature(position, name))
            slots.append(request.blocks[position // BLOCK] * BLOCK + position % BLOCK)
    starts = torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32)
    metadata = Metadata(
        starts.clone(), starts.clone(), len(counts), sum(counts), max(counts),
        torch.tensor([request.blocks for request in requests.values()], dtype=torch.int32),
        torch.tensor(slots),
    )  # fmt: skip
    last = starts[1:] - 1
    return Rows(
        torch.tensor(tokens), torch.tensor(positions), torch.stack(features), last, metadata
    )


def check_read(rows: Rows, requests: dict[str, Request], rejected: list[int]) -> None:
    """Every request's rows follow on those that the head has read."""
    starts = rows.metadata.query_start_loc.tolist()
    assert starts == rows.metadata.query_start_loc_cpu.tolist()
    assert starts[-1] == rows.metadata.num_actual_tokens == len(rows.token_ids)
    assert rows.metadata.max_query_len == max(np.diff(starts))
    assert rows.last is not None
    for index, (name, request) in enumerate(requests.items()):
        begin, end = starts[index], starts[index + 1]
        expected = range(len(request.read), len(request.read) + end - begin)
        assert rows.positions[begin:end].tolist() == [*expected]
        assert rows.token_ids[begin:end].tolist() == [10 * p + int(name) for p in expected]
        assert rows.last[index] == end - 1
        for row, position in zip(range(begin, end), expected, strict=True):
            assert torch.equal(rows.hidden_states[row], feature(position, name))
            slot = request.blocks[position // BLOCK] * BLOCK + position % BLOCK
            assert rows.metadata.slot_mapping[row] == slot
        request.read += [*expected][: end - begin - rejected[index]]


def test_no_row_is_lost_or_read_twice() -> None:
    source = np.random.default_rng(0)
    for _ in range(40):
        blocks = source.permutation(90).reshape(3, 30)
        requests = {str(i): Request(blocks[i].tolist()) for i in range(int(source.integers(1, 4)))}
        unread = UnreadRows()
        for _ in range(20):
            counts = source.integers(1, 5, len(requests)).tolist()
            rejected = [int(source.integers(0, count)) for count in counts]
            rows = rows_of(requests, counts)
            if source.random() < 0.6:
                unread.keep([*requests], rows, torch.tensor(rejected))
            else:
                check_read(unread.merge([*requests], rows, BLOCK, 1000), requests, rejected)
                assert unread.total == 0
            for request, count, lost in zip(requests.values(), counts, rejected, strict=True):
                request.seen += count - lost
            for name, request in requests.items():
                assert unread[name] == request.seen - len(request.read)


def test_a_request_that_begins_again_has_nothing_kept() -> None:
    requests = {"1": Request([*range(30)], seen=8, read=[*range(8)])}
    unread = UnreadRows()
    unread.keep(["1"], rows_of(requests, [2]), None)
    assert unread["1"] == 2
    requests["1"] = Request([*range(30)])
    rows = rows_of(requests, [5])
    assert unread.merge(["1"], rows, BLOCK, 1000) is rows
    assert unread.total == 0


def test_rows_beyond_a_pass_are_lost() -> None:
    requests = {"1": Request([*range(30)]), "2": Request([*range(30, 60)])}
    unread = UnreadRows()
    unread.keep(["1", "2"], rows_of(requests, [4, 4]), None)
    for request in requests.values():
        request.seen = 4
    merged = unread.merge(["1", "2"], rows_of(requests, [1, 1]), BLOCK, 7)
    assert merged.positions.tolist() == [0, 1, 2, 3, 4, 4]
    unread.keep(["1"], rows_of({"1": requests["1"]}, [1]), None)
    unread.forget("1")
    assert unread.total == 0
