"""The cost table: its formula, its file, and its fit to cycles of known cost."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eaglerl.cost.cost_table import CostError, CostTable
from eaglerl.cost.fit_cost import CycleSample, fit_cost_table, isotonic, smoothed
from eaglerl.cost.measure_cost import calibrate, calibration_trees
from eaglerl.eagle3.policy import NO_DRAFT, TreeParams

from ..traces.tiny import tiny_decoder


def table(**changes: object) -> CostTable:
    fields: dict[str, object] = {
        "machine": "a machine",
        "draft_dtype": "int8",
        "total_tokens": (1, 2, 4),
        "verify_base": (10.0, 11.0, 15.0),
        "verify_slope": (0.01, 0.02, 0.04),
        "top_ks": (1, 4),
        "first_pass": (1.0, 1.5),
        "later_pass": (0.5, 2.0),
        "draft_slope": 0.001,
        "samples": 7,
        "error": CostError(0.01, 0.05, -0.02),
    }
    return CostTable(**(fields | changes))


def test_seconds_by_hand() -> None:
    cost = table()
    assert cost.seconds(NO_DRAFT, 100) == pytest.approx(10 + 1)
    # Half way between 2 and 4 rows: 13 + 100 * 0.03; three passes of width 4.
    expected = 13 + 3 + 1.5 + 2 * 2.0 + 3 * 100 * 0.001
    assert cost.seconds(TreeParams(3, 2, 4), 100) == pytest.approx(expected)
    matrix = cost.matrix([NO_DRAFT, TreeParams(3, 2, 4)], np.array([0, 100]))
    assert matrix == pytest.approx(np.array([[10, 13 + 1.5 + 2 * 2.0], [11, expected]]))


def test_what_was_not_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"rows must lie in 1..4, got 5"):
        table().seconds(TreeParams(5, 0, 4), 10)
    with pytest.raises(ValueError, match=r"top_k must be one of \[1, 4\], got 2"):
        table().seconds(TreeParams(2, 0, 2), 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_tokens": (2, 3, 4)}, "begin with 1"),
        ({"total_tokens": (1, 4, 2)}, "must ascend"),
        ({"verify_base": (1.0, 2.0)}, "3 finite numbers"),
        ({"later_pass": (1.0, -2.0)}, "later_pass must be 2 finite numbers"),
        ({"first_pass": (1.0, float("nan"))}, "first_pass must be 2 finite numbers"),
        ({"draft_slope": -1.0}, "draft_slope"),
    ],
)
def test_impossible_tables_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(**changes)


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    table().to_json(path)
    assert CostTable.from_json(path) == table()
    table(error=None).to_json(path)
    assert CostTable.from_json(path).error is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, '"format" must be'),
        ({"version": 0}, "must be 1, got 0"),
        ({"verify_base": "abc"}, "'verify_base' of the cost table"),
        ({"verify_base": [1, 2, "3"]}, r"'verify_base\[2\]' of the cost table"),
        ({"verify_base": [1e300, 1, 1]}, r"'verify_base\[0\]' .* must be below 1000000000"),
        ({"verify_base": [1]}, "the cost table .*: verify_base must be 3 finite numbers"),
        ({"total_tokens": [1, 1 << 40, 1 << 41]}, r"'total_tokens\[1\]' .* must be at most 4096"),
        ({"machine": 3}, "'machine' of the cost table"),
        ({"error": {"median": 1}}, "the cost table .* lacks 'error.worst'"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "cost.json"
    table().to_json(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        CostTable.from_json(path)


def samples_of(
    cost: CostTable, trees: list[TreeParams], noise: float, drift: float = 0.0
) -> list[CycleSample]:
    draw = np.random.default_rng(0)
    samples = []
    for _ in range(10):
        for tree in draw.permutation(np.array(trees, dtype=object)):
            context = int(draw.integers(40, 500))
            verify = cost.verify_seconds(tree.total_tokens, context)
            draft = 0.0
            if tree.total_tokens > 1:
                draft = cost.draft_seconds(tree.depth, tree.top_k, context)
            # Now and then something else takes the processor.
            slow = 3.0 if draw.random() < 0.05 else 1.0
            # The machine as a whole gets slower and faster again, three times.
            slow *= np.exp(drift * np.sin(6 * np.pi * len(samples) / (10 * len(trees))))
            jitter = slow * np.exp(noise * draw.standard_normal(2))
            samples.append(CycleSample(tree, context, draft * jitter[0], verify * jitter[1]))
    return samples


def test_the_fit_finds_the_costs() -> None:
    cost = table()
    trees = calibration_trees((1, 2, 4), (1, 4), (0, 1, 3))
    fitted = fit_cost_table(samples_of(cost, trees, 0.02), machine="a machine", draft_dtype="int8")
    assert fitted.samples == 10 * len(trees)
    checked = [NO_DRAFT, TreeParams(2, 0, 1), TreeParams(4, 3, 1), TreeParams(4, 3, 4)]
    contexts = np.array([60, 250, 480])
    # Medians of some 20 cycles with 2 % noise: a standard error of half a per cent.
    ratio = fitted.matrix(checked, contexts) / cost.matrix(checked, contexts)
    assert np.abs(ratio - 1).max() < 0.03
    assert fitted.error.median < 0.03
    # The disturbances are in the measured total, not in the table.
    assert fitted.error.total < -0.05


def test_a_machine_that_drifts_gives_the_same_table() -> None:
    cost = table()
    trees = calibration_trees((1, 2, 4), (1, 4), (0, 1, 3))
    steady, drifting = (
        fit_cost_table(samples_of(cost, trees, 0.02, drift), machine="", draft_dtype="int8")
        for drift in (0.0, 0.3)
    )
    rows, contexts = np.array([[1], [2], [4]]), np.array([60, 250, 480])
    ratio = drifting.verify_seconds(rows, contexts) / steady.verify_seconds(rows, contexts)
    # As a whole it may be faster or slower, but all kinds of cycle in the same way.
    assert np.abs(ratio / ratio.mean() - 1).max() < 0.02
    assert abs(ratio.mean() - 1) < 0.15


def test_smoothing_against_the_likelihood() -> None:
    from scipy.optimize import minimize

    places = np.array([1, 2, 3, 5, 8, 9])
    values = np.array([30.0, 31.0, 36.0, 35.0, 46.0, 47.0])
    noise = np.array([0.2, 0.5, 1.0, 2.0, 0.3, 0.01])

    def unlikely(x: np.ndarray) -> float:
        total = (((x - values) / noise) ** 2).sum()
        for i in range(1, 5):
            share = (places[i] - places[i - 1]) / (places[i + 1] - places[i - 1])
            line = x[i - 1] + share * (x[i + 1] - x[i - 1])
            total += ((x[i] - line) / (0.02 * values[i])) ** 2
        return total

    best = smoothed(places, values, noise)
    result = minimize(unlikely, values, options={"gtol": 1e-9})
    np.testing.assert_allclose(best, result.x, rtol=1e-5)
    # What is exact stays; what is uncertain gives way to its neighbours.
    assert best[5] == pytest.approx(47.0, abs=1e-3)
    assert best[3] > best[2]
    np.testing.assert_array_equal(smoothed(places[:2], values[:2], noise[:2]), values[:2])


def test_the_fit_is_monotone() -> None:
    cost = table(verify_base=(10.0, 10.0, 10.0), verify_slope=(0.01, 0.01, 0.01))
    trees = calibration_trees((1, 2, 4), (1, 4), (0, 1, 3))
    fitted = fit_cost_table(samples_of(cost, trees, 0.3), machine="", draft_dtype="int8")
    rows = fitted.verify_seconds(np.arange(1, 5), 0)
    assert (np.diff(rows) >= 0).all()
    assert (np.diff(fitted.verify_slope) >= 0).all()


def test_isotonic_against_a_quadratic_programme() -> None:
    from scipy.optimize import minimize

    draw = np.random.default_rng(1)
    values, weights = draw.standard_normal(7), draw.random(7) + 0.1
    result = minimize(
        lambda x: (weights * (x - values) ** 2).sum(),
        np.zeros(7),
        constraints={"type": "ineq", "fun": np.diff},
        options={"ftol": 1e-12},
    )
    # The optimiser's own accuracy.
    np.testing.assert_allclose(isotonic(values, weights), result.x, atol=1e-4)


def test_isotonic_is_the_largest_of_the_smallest_means() -> None:
    draw = np.random.default_rng(2)
    for count in range(1, 12):
        values, weights = draw.standard_normal(count), draw.random(count) + 0.1

        def mean(first: int, last: int, v: np.ndarray = values, w: np.ndarray = weights) -> float:
            part = slice(first, last + 1)
            return (v[part] * w[part]).sum() / w[part].sum()

        # The min-max formula of isotonic regression (Barlow et al. 1972).
        expected = [
            max(min(mean(j, k) for k in range(i, count)) for j in range(i + 1))
            for i in range(count)
        ]
        # Sums of at most 11 numbers around 1, in another order.
        np.testing.assert_allclose(isotonic(values, weights), expected, rtol=0, atol=1e-13)


def test_live_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever the machine of the test is busy with; when a table is of use is tested below.
    for module in ("measure_cost", "cost_table"):
        monkeypatch.setattr(f"eaglerl.cost.{module}.why_unusable", lambda _: None)
    decoder = tiny_decoder()
    cost = calibrate(
        decoder,
        [1, 2, 3],
        machine="here",
        total_tokens=(1, 2, 4, 8),
        top_ks=(1, 2),
        depths=(0, 1, 7),
        passes=3,
        longest_context=60,
    )
    assert (cost.machine, cost.draft_dtype) == ("here", "float32")
    assert (cost.total_tokens, cost.top_ks) == ((1, 2, 4, 8), (1, 2))
    assert cost.samples == 3 * len(calibration_trees((1, 2, 4, 8), (1, 2), (0, 1, 7)))
    assert 0 < cost.seconds(NO_DRAFT, 30) < cost.seconds(TreeParams(8, 7, 2), 30) < 1.0
    cost.to_json(tmp_path / "cost.json")
    assert CostTable.from_json(tmp_path / "cost.json") == cost


def test_calibration_checks_its_arguments() -> None:
    decoder = tiny_decoder()
    with pytest.raises(ValueError, match="passes must be at least 3, got 2"):
        calibrate(decoder, [1], machine="", passes=2)
    with pytest.raises(ValueError, match="longest_context must lie between"):
        calibrate(decoder, [1, 2], machine="", longest_context=2)
    with pytest.raises(ValueError, match="total_tokens=64 is more than any"):
        calibrate(decoder, [1], machine="", total_tokens=(1, 64), top_ks=(1,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"later_pass": (0.0, 2.0)}, "a draft pass of width 1 takes 0.0 s"),
        ({"first_pass": (0.0, 0.0)}, "the first draft pass of width 1 to 4 takes 0.0 s"),
        ({"verify_base": (10.0, 11.0, 2.0)}, "4 rows takes 2 s, less than half of the 11 s of 2"),
        ({"verify_base": (0.1, 11.0, 15.0)}, "verifying 2 rows takes 110 times as long as one row"),
        ({"verify_slope": (0.01, 0.3, 0.3)}, "after 256 tokens, verifying 2 rows takes 7 times"),
        ({"error": CostError(0.26, 0.3, 0.0)}, r"half of the kinds .* more than 26 %.* most 25 %"),
        ({"error": CostError(0.02, 6.98, 0.0)}, r"worst kind of cycle is off by 698 %.* 100 %"),
    ],
)
def test_an_unusable_table_is_not_read(tmp_path: Path, changes: dict, message: str) -> None:
    path = tmp_path / "cost.json"
    table(**changes).to_json(path)
    with pytest.raises(ValueError, match=rf"is unusable: .*{message}.*calibrate"):
        CostTable.from_json(path)


def test_rows_that_cost_nothing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="verify_base must be positive"):
        table(verify_base=(0.0, 0.0, 15.0))
    path = tmp_path / "cost.json"
    table().to_json(path)
    content = json.loads(path.read_text()) | {"verify_base": [0.0, 0.0, 15.0]}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"cost\.json.*verify_base must be positive"):
        CostTable.from_json(path)


class Disturbed:
    """A decoder's sessions whose clock shows what a busy machine made of the times.

    Attributes:
        calm_after: cycles after which nothing disturbs any more.
    """

    def __init__(self, calm_after: int) -> None:
        self.decoder = tiny_decoder()
        self.calm_after, self.cycles = calm_after, 0
        self.draw = np.random.default_rng(0)
        self.cost = table(total_tokens=(1, 2, 4), verify_base=(0.010, 0.011, 0.015))

    def __getattr__(self, name: str) -> object:
        return getattr(self.decoder, name)

    def new_session(self, verifier: object, capacity: int) -> "Disturbed":
        self.session = self.decoder.new_session(verifier, capacity)
        return self

    @property
    def token_ids(self) -> list[int]:
        return self.session.token_ids

    def close(self) -> None:
        self.session.close()

    def prefill(self, ids: list[int]) -> object:
        return self.session.prefill(ids)

    def step(self, tree: TreeParams) -> object:
        context = len(self.session.token_ids)
        result = self.session.step(tree)
        self.cycles += 1
        # Something else has the processor: a cycle takes up to 10,000 times as long.
        slow = 10 ** self.draw.uniform(0, 4) if self.cycles < self.calm_after else 1.0
        drafted = tree.total_tokens > 1
        draft = float(self.cost.draft_seconds(tree.depth, tree.top_k, context)) if drafted else 0.0
        verify = float(self.cost.verify_seconds(tree.total_tokens, context))
        return replace(result, draft_seconds=slow * draft, verify_seconds=slow * verify)


FAST = {
    "machine": "m", "total_tokens": (1, 2, 4), "top_ks": (1, 4), "depths": (0, 1), "passes": 3,
    "longest_context": 60,
}  # fmt: skip


def test_a_busy_machine_gives_no_table() -> None:
    said: list[str] = []
    busy = r"no usable cost table from \d+ cycles: .*busy: measure again .*--passes 6"
    with pytest.raises(ValueError, match=busy):
        calibrate(Disturbed(10**9), [1, 2, 3], **FAST, again=said.append)
    assert len(said) == 2


def test_a_machine_that_calms_down_is_measured_on() -> None:
    said: list[str] = []
    decoder = Disturbed(60)
    fitted = calibrate(decoder, [1, 2, 3], **FAST, again=said.append)
    assert 1 <= len(said) <= 2
    rows = np.array([1, 2, 4])
    ratio = fitted.verify_seconds(rows, 30) / decoder.cost.verify_seconds(rows, 30)
    assert np.abs(ratio / ratio.mean() - 1).max() < 0.1
