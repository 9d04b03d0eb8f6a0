"""The model of a GPU: its page has the computed figures, and the arithmetic is right."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks" / "device_model"
sys.path.insert(0, str(FOLDER))

import cycle_costs  # noqa: E402
import decision_times  # noqa: E402
import model_page  # noqa: E402
import run_headroom  # noqa: E402
import target_tables  # noqa: E402
from assumptions import DEVICES, LATENCIES, TARGETS, Range  # noqa: E402
from instruction_time import longest_chain, read_ptx, run, warp_cycles  # noqa: E402

ONE = dict.fromkeys(LATENCIES, 1.0)
LOOP = """.entry f()
{
	mov.b64 	%rd1, 0;
	ld.global.b32 { %r1 }, [ %rd9 + 0 ];
$L__BB0_1:                              // =>This Inner Loop Header: Depth=1
	add.s32 	%r1, %r1, %r2;
	shfl.sync.bfly.b32 	%r1, %r1, 1, 31, -1;
	add.s64 	%rd1, %rd1, 4;
	setp.lt.u64 	%p1, %rd1, 12;
	@%p1 bra 	$L__BB0_1;
	bar.sync 	0;
	ld.shared.b32 	%r3, [%r9];
	@%p2 st.global.b32 [ %rd8 + 0 ], { %r3 };
	ret;
}
"""


def test_the_page_has_the_models_figures() -> None:
    text = model_page.PAGE.read_text(encoding="utf-8")
    assert model_page.filled(text) == text


def test_another_figure_on_the_page_is_found() -> None:
    text = model_page.PAGE.read_text(encoding="utf-8")
    changed = text.replace("1.3 to 2.5 us", "1.3 to 2.6 us", 1)
    assert changed != text
    assert model_page.filled(changed) == text
    with pytest.raises(ValueError, match="the page must have the tables"):
        model_page.filled(text.replace("<!-- table: claim -->", ""))


@pytest.mark.parametrize("name", TARGETS)
def test_tables_of_costs_and_what_was_run_with_them(name: str, tmp_path: Path) -> None:
    for end in cycle_costs.ENDS:
        for decides in (False, True):
            written = tmp_path / "cost.json"
            cycle_costs.cost_table(TARGETS[name], end, decides=decides).to_json(written)
            kept = cycle_costs.table_path(name, end, decides=decides)
            assert kept.read_text() == written.read_text()
            study = target_tables.HEADROOM["studies"][kept.stem]
            assert study["cost"] == run_headroom.fingerprint(kept)


def test_floors_are_the_weights_at_the_sheets_bandwidth() -> None:
    # 3 k by k weights of two bytes, and the policy's matrices: 4096 x 128, 128 x 128, 128 x 203.
    weights = 3 * 4096 * 4096 * 2 + 2 * (4096 * 128 + 128 * 128 + 128 * 203)
    folded = 2 * (3 * 4096 * 128 + 128 * 128 + 128 * 203)
    features = 3 * 4096 * 2
    assert decision_times.find("fused", 4096)["read"] == weights + features
    assert decision_times.find("folded", 4096)["read"] == folded + features
    floors = [weights / device.bandwidth * 1e6 for device in DEVICES]
    assert floors == pytest.approx([30, 21, 13], rel=0.03)
    assert [folded / device.bandwidth * 1e6 for device in DEVICES] == pytest.approx(
        [1.0, 0.7, 0.4], rel=0.05
    )


def test_a_target_has_the_published_number_of_parameters() -> None:
    # The published 8.03e9 and 70.55e9 with the embedding table, and 424.6e6 with the head's FC.
    eight, seventy = TARGETS["8b-h100"], TARGETS["70b-4xh100"]
    assert eight.parameters + 128_256 * 4096 == pytest.approx(8.03e9, rel=1e-3)
    assert seventy.parameters + 128_256 * 8192 == pytest.approx(70.55e9, rel=1e-3)
    assert eight.head_parameters + 3 * 4096**2 == pytest.approx(424.6e6, rel=1e-3)
    assert eight.cache_bytes == 131_072


def test_a_decision_makes_every_cycle_dearer_by_its_time() -> None:
    target = TARGETS["8b-h100"]
    for end in cycle_costs.ENDS:
        free, paid = (cycle_costs.cost_table(target, end, decides=on) for on in (False, True))
        assert paid.verify_base[0] - free.verify_base[0] == pytest.approx(
            getattr(decision_times.folded_seconds(target.device, 4096), end)
        )
        assert paid.later_pass[2] - free.later_pass[2] == pytest.approx(
            getattr(decision_times.selection_seconds((4, 5, 32, 12)), end)
        )


def test_ranges_do_not_turn_round() -> None:
    for device in DEVICES:
        for k in (576, 2048, 4096):
            for seconds in (decision_times.folded_seconds, decision_times.fused_seconds):
                low, high = seconds(device, k)
                assert 0 < low < high


def test_a_loop_runs_as_often_as_its_counter_says() -> None:
    steps = list(run(read_ptx(LOOP)))
    shuffles = [step for step, _ in steps if step.kind == "shuffle"]
    assert len(shuffles) == 3
    # Three sums and shuffles follow the load. What is behind the barrier needs none of them.
    assert longest_chain(steps, ONE).cycles == 1 + 3 * 2
    assert longest_chain(steps, ONE | {"shuffle": 10.0}).cycles == 1 + 3 * 11
    assert longest_chain(steps, ONE | {"barrier": 100.0}).cycles == 100 + 1 + 1
    assert longest_chain(steps, ONE | {"load": 50.0}).cycles == 50 + 3 * 2


def test_instructions_that_share_a_scheduler_take_turns() -> None:
    steps = list(run(read_ptx(LOOP)))
    ranges = {kind: Range(1.0, 2.0) for kind in LATENCIES}
    count = len(steps)
    assert count == 2 + 3 * 5 + 4
    assert warp_cycles(steps, ranges, 1).low == count
    assert warp_cycles(steps, ranges, 2).low == 2 * count
    assert warp_cycles(steps, ranges, 2).high == pytest.approx(2 + 3 * 4 + 3 * count)


def test_a_loop_without_a_constant_counter_is_refused() -> None:
    with pytest.raises(ValueError, match="must count from a constant"):
        list(run(read_ptx(LOOP.replace("mov.b64", "ld.param.b64").replace("%rd1, 0;", "%rd2, 0;"))))


def test_a_branch_back_that_is_no_counted_loop_may_be_decided() -> None:
    code = read_ptx(LOOP.replace("%rd1, 0;", "%rd2, 0;"))
    for taken, turns in (((), 1), ((True, True), 3)):
        steps = list(run(code, taken, lenient=True))
        assert len([step for step, _ in steps if step.kind == "shuffle"]) == turns
        assert not any(repeated for _, repeated in steps)


def test_a_counter_that_is_set_behind_its_test_is_followed() -> None:
    late = LOOP.replace("add.s64 	%rd1, %rd1, 4;", "add.s64 	%rd5, %rd1, 4;").replace(
        "	@%p1 bra", "	mov.b64 	%rd1, %rd5;\n	@%p1 bra"
    )
    # 0, 4, 8 and 12: the last test fails.
    assert len([step for step, _ in run(read_ptx(late)) if step.kind == "shuffle"]) == 4


def test_what_one_multiprocessor_reads_comes_load_after_load() -> None:
    lines = "\n".join(
        f"	ld.global.v4.b32 {{ %r{4 * i}, %r{4 * i + 1} }}, [ %rd9 + {i} ];" for i in range(3)
    )
    steps = list(run(read_ptx(f"{{\n{lines}\n	ret;\n}}")))
    assert [step.size for step, _ in steps] == [16, 16, 16, 0]
    waits = ONE | {"load": 100.0}
    assert longest_chain(steps, waits).cycles == 100
    assert longest_chain(steps, waits, 2.0).cycles == 3 * 16 * 2 + 100


@pytest.mark.slow
def test_the_stored_launches_are_those_that_are_compiled() -> None:
    pytest.importorskip("triton")
    import compile_launches

    assert compile_launches.all_launches() == decision_times.LAUNCHES
