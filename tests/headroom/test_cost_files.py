"""Costs of steps are read in every form in which engines measure or log them."""

import json
from pathlib import Path

import numpy as np
import pytest

from eaglerl.headroom.cost_curve import CostCurve, TableCost
from eaglerl.headroom.cost_files import read_cost

from ..traces.planted import COST

# Lines that vLLM 0.32.0 wrote on a CPU, with --enable-logging-iteration-details and three
# speculative tokens by n-grams; the first reads a prompt.
VLLM = """\
INFO 11-29 22:26:16 [loggers.py:199] Engine 000: Iteration(0): 1 context requests, 8 context tokens, 0 generation requests, 0 generation tokens, iteration elapsed time: 4076.27 ms, CPU KV cache usage: 0.6%
INFO 11-29 22:26:16 [loggers.py:199] Engine 000: Iteration(4): 0 context requests, 0 context tokens, 1 generation requests, 1 generation tokens, iteration elapsed time: 69.99 ms, CPU KV cache usage: 0.6%
INFO 11-29 22:26:16 [loggers.py:199] Engine 000: Iteration(5): 0 context requests, 0 context tokens, 1 generation requests, 1 generation tokens, iteration elapsed time: 69.17 ms, CPU KV cache usage: 0.6%
INFO 11-29 22:26:16 [loggers.py:199] Engine 000: Iteration(6): 0 context requests, 0 context tokens, 1 generation requests, 1 generation tokens, iteration elapsed time: 68.80 ms, CPU KV cache usage: 0.6%
INFO 11-29 22:26:16 [loggers.py:199] Engine 000: Iteration(7): 0 context requests, 0 context tokens, 1 generation requests, 4 generation tokens, iteration elapsed time: 97.32 ms, CPU KV cache usage: 0.6%
INFO 11-29 22:26:17 [loggers.py:199] Engine 000: Iteration(15): 0 context requests, 0 context tokens, 1 generation requests, 4 generation tokens, iteration elapsed time: 80.93 ms, CPU KV cache usage: 0.6%
INFO 11-29 22:26:17 [loggers.py:199] Engine 000: Iteration(21): 0 context requests, 0 context tokens, 1 generation requests, 4 generation tokens, iteration elapsed time: 84.62 ms, CPU KV cache usage: 0.0%
INFO 11-29 22:26:18 [loggers.py:199] Engine 000: Iteration(23): 2 context requests, 21 context tokens, 1 generation requests, 1 generation tokens, iteration elapsed time: 117.01 ms, CPU KV cache usage: 1.7%
INFO 11-29 22:26:18 [loggers.py:199] Engine 000: Iteration(25): 0 context requests, 0 context tokens, 3 generation requests, 9 generation tokens, iteration elapsed time: 91.28 ms, CPU KV cache usage: 1.7%
INFO 11-29 22:26:18 [loggers.py:199] Engine 000: Iteration(31): 0 context requests, 0 context tokens, 3 generation requests, 6 generation tokens, iteration elapsed time: 86.09 ms, CPU KV cache usage: 1.1%
"""  # noqa: E501


def seconds(cost, rows: int, batch: int = 1, context: int = 0) -> float:
    return float(cost.verify(np.array(rows), batch, np.array(context)))


def drafting(cost, levels: int, batch: int = 1, context: int = 0) -> float:
    return float(np.max(cost.draft(np.array(levels), batch, np.array(context))))


def test_a_table_of_eaglerl(tmp_path: Path) -> None:
    COST.to_json(tmp_path / "cost.json")
    cost = read_cost(tmp_path / "cost.json")
    assert isinstance(cost, TableCost)
    assert seconds(cost, 4) == pytest.approx(1.3)
    assert [drafting(cost, levels) for levels in (0, 1, 3)] == pytest.approx([0.0, 0.3, 0.9])
    assert cost.most_rows(8) == 16


def test_a_table_as_csv(tmp_path: Path) -> None:
    (tmp_path / "costs.csv").write_text(
        "kind,rows,batch,context,seconds\n"
        "verify,1,1,0,0.010\nverify,5,1,0,0.020\nverify,1,1,1000,0.012\nverify,5,1,1000,0.030\n"
        "verify,8,8,0,0.020\nverify,40,8,0,0.060\ndraft,,1,0,0.001\ndraft,,8,0,0.002\n"
    )
    cost = read_cost(tmp_path / "costs.csv")
    assert seconds(cost, 3) == pytest.approx(0.015)
    assert seconds(cost, 5, context=500) == pytest.approx(0.025)
    # Beyond the measured contexts, the nearest one counts.
    assert seconds(cost, 5, context=9000) == pytest.approx(0.030)
    assert seconds(cost, 24, batch=8) == pytest.approx(0.040)
    assert drafting(cost, 3, batch=8) == pytest.approx(0.006)
    with pytest.raises(ValueError, match="must cover steps of 41 rows for 8 requests"):
        seconds(cost, 41, batch=8)


def test_contexts_broadcast_with_rows() -> None:
    points = [(1, 1, 0, 1.0), (3, 1, 0, 2.0), (1, 1, 10, 3.0), (3, 1, 10, 6.0)]
    found = CostCurve("made up", points).verify(
        np.array([[1, 2, 3]]), 1, np.array([[0], [5], [10]])
    )
    assert found == pytest.approx(np.array([[1, 1.5, 2], [2, 3, 4], [3, 4.5, 6]]))


def test_a_batch_between_two_costs_what_lies_between() -> None:
    points = [(rows, batch, 0, 0.1 * batch) for batch in (1, 4) for rows in (1, 8)]
    assert seconds(CostCurve("made up", points), 4, batch=2) == pytest.approx(0.2)


def test_costs_that_are_not_monotone_stay_so(tmp_path: Path) -> None:
    content = {
        "format": "eaglerl-cost-curve",
        "version": 1,
        "machine": "experts",
        "verify": [{"rows": n, "seconds": s} for n, s in enumerate((0.03, 0.06, 0.05), 1)],
    }
    (tmp_path / "curve.json").write_text(json.dumps(content))
    cost = read_cost(tmp_path / "curve.json")
    assert [seconds(cost, rows) for rows in (1, 2, 3)] == [0.03, 0.06, 0.05]
    assert cost.name == "experts"
    assert "cost nothing" in cost.notes[0]


def test_steps_per_second_of_sglang(tmp_path: Path) -> None:
    table = {
        "sample_batch_tokens": [6, 12, 48],
        "sample_steps_per_sec": [50.0, 40.0, 20.0],
        "max_batch_tokens": 48,
    }
    (tmp_path / "dspark_sps.json").write_text(json.dumps(table))
    cost = read_cost(tmp_path / "dspark_sps.json")
    assert seconds(cost, 12, batch=2) == seconds(cost, 12, batch=1) == pytest.approx(0.025)
    assert cost.most_rows(4) == 48


def test_the_sum_of_parts_of_sglang(tmp_path: Path) -> None:
    table = {
        "bias_seconds": 0.01,
        "bs_probes": [1, 8],
        "alpha_seconds": [0.0, 0.007],
        "m_probes": [1, 101],
        "theta_seconds": [0.0, 0.1],
    }
    (tmp_path / "sps.json").write_text(json.dumps(table))
    cost = read_cost(tmp_path / "sps.json")
    assert seconds(cost, 51, batch=8) == pytest.approx(0.01 + 0.007 + 0.05)
    assert seconds(cost, 51, batch=2) == pytest.approx(0.01 + 0.001 + 0.05)


def test_the_iterations_of_vllm(tmp_path: Path) -> None:
    (tmp_path / "vllm.log").write_text("INFO starting\n" + VLLM + "cut short: Iteration(99): 0 con")
    cost = read_cost(tmp_path / "vllm.log")
    # Three iterations of a kind count, and none that read a prompt.
    assert seconds(cost, 1) == pytest.approx(0.06917)
    assert seconds(cost, 4) == pytest.approx(0.08462)
    assert cost.most_rows(3) == 4
    assert "whole steps" in cost.notes[0]
    (tmp_path / "short.log").write_text("".join(VLLM.splitlines(keepends=True)[:3]))
    with pytest.raises(ValueError, match=r"at least 3 iterations .*; it has 2 iterations"):
        read_cost(tmp_path / "short.log")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "rows\n1\n", "columns rows and seconds"),
        ("a.csv", "rows,seconds\n", "must have a point"),
        ("a.csv", "rows,seconds\n1,fast\n", "'seconds' of line 2 must be a number"),
        ("a.csv", "rows,seconds\n1,nan\n", "positive seconds"),
        ("a.csv", "rows,seconds\n1.5,1\n", "'rows' of line 2 must be a whole number"),
        ("a.csv", "kind,rows,seconds\nguess,1,1\n", "'kind' of line 2 must be verify or draft"),
        ("a.csv", "rows,seconds\n1,1,1\n", "must have 2 columns"),
        ("a.csv", "rows,seconds\n\xff", "UTF-8"),
        pytest.param("a.csv", "rows,seconds\n" + "1" * 200_000, "is not CSV", id="long field"),
        ("a.json", "{}", "is none"),
        ("a.json", '{"format": "eaglerl-cost-curve", "version": 1, "verify": []}', "1 item"),
        ("a.json", '{"sample_batch_tokens": [1], "sample_steps_per_sec": [1, 2], '
                   '"max_batch_tokens": 1}', "as many"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        read_cost(tmp_path / name)


def test_costs_of_one_request_become_a_table_for_trees() -> None:
    points = [(rows, 1, context, 0.01 * rows + 1e-5 * context)
              for rows in (1, 4, 16) for context in (0, 1000)]  # fmt: skip
    table = CostCurve("made up", points, [(1, 0, 0.002)]).table((0, 1000), (1, 4))
    assert table.verify_seconds(4, 500) == pytest.approx(0.045)
    assert table.draft_seconds(2, 4, 0) == pytest.approx(0.006)
    with pytest.raises(ValueError, match="1 request and 1 row"):
        CostCurve("made up", points[2:]).table((0, 1000), (1,))
