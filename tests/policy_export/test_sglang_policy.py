"""The exported module in SGLang's place: its protocol, its controller and its plugins."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from eaglerl.policy_export import sglang_policy
from eaglerl.policy_export.sglang_policy import Policy, register

from .server_model import (
    GRAPHS,
    Server,
    Worker,
    geometric,
    like_a_cpu,
    like_a_gpu,
    like_experts,
)
from .sglang_modules import (
    PARAMS,
    RESULTS,
    VERSION,
    WORKER,
    find_wheel,
    install,
    install_made_up,
    read_source,
)

CONFIG = {"1": {"candidate_steps": [0, 1, 3, 5, 7]}, "16": {"candidate_steps": [0, 1, 3]}}
TARGET = f"{PARAMS}.AdaptiveSpeculativeParams"


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "tiers.json"
    path.write_text(json.dumps(CONFIG))
    return str(path)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return install_made_up(monkeypatch)


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return install(monkeypatch, find_wheel())


def test_tiers_and_graphs_are_those_of_the_config(made_up: SimpleNamespace, config: str) -> None:
    policy = Policy(3, config)
    assert policy.candidate_steps == [0, 1, 3, 5, 7]
    assert policy.cuda_graph_bs_for_step(5) is None
    policy.set_cuda_graph_bs([32, 1, 2, 4, 8, 16])
    assert policy.cuda_graph_bs_for_step(5) == [1, 2, 4, 8]
    assert policy.cuda_graph_bs_for_step(3) == [1, 2, 4, 8, 16, 32]
    assert policy.cuda_graph_bs_for_step(2) == []
    for batch, largest in ((1, 7), (8, 7), (9, 3), (16, 3), (40, 3)):
        # A batch of 9 runs in the graph for 16, which has no tier above 3.
        chosen = {policy.get_steps_for_batch(batch) for _ in range(300)}
        assert max(chosen) <= largest
    empty = Policy(0)
    assert empty.candidate_steps == [0, 2]
    assert empty.get_steps_for_batch(0) in (0, 2)
    assert empty.on_verify_complete([], batch_size=0) is None


@pytest.mark.parametrize("overlap", [False, True])
def test_results_are_those_of_the_batch_that_ran(
    made_up: SimpleNamespace, config: str, monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    """With overlap, the next batch was chosen already when a result arrives."""
    policy = Policy(3, config)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(
        policy._rule, "observe", lambda batch, steps, counts, seconds: seen.append((batch, steps))
    )
    tiers = itertools.cycle([3, 0, 5, 1])
    monkeypatch.setattr(policy._rule, "choose", lambda batch, allowed: next(tiers))
    ran = []
    for batch in [1, 1, 2, 2, 1, 1, 1, 2, 1]:
        ran.append((batch, policy.get_steps_for_batch(batch)))
        if len(ran) > overlap:
            done = ran[len(ran) - 1 - overlap]
            assert policy.on_verify_complete([0] * done[0], batch_size=done[0]) is None
    assert seen == ran[: len(ran) - overlap]


def test_a_result_that_never_comes_is_forgotten(made_up: SimpleNamespace, config: str) -> None:
    policy = Policy(3, config)
    policy.get_steps_for_batch(4)
    for batch in (1, 1, 1):
        policy.get_steps_for_batch(batch)
        policy.on_verify_complete([0] * batch, batch_size=batch)
    policy.on_verify_complete([0], batch_size=1)
    assert not policy._waiting


def test_seconds_lie_between_two_results(
    made_up: SimpleNamespace, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy(3, config)
    clock = iter([10.0, 10.5, 11.5])
    monkeypatch.setattr(policy, "_clock", lambda: next(clock))
    seen: list[float | None] = []
    monkeypatch.setattr(policy._rule, "observe", lambda *told: seen.append(told[-1]))
    for _ in range(3):
        policy.get_steps_for_batch(1)
        policy.on_verify_complete([0], batch_size=1)
    assert seen == [None, 0.5, 1.0]


def test_several_ranks_need_a_table(monkeypatch: pytest.MonkeyPatch, config: str) -> None:
    """Their clocks differ, and ranks that draft different numbers hang."""
    install_made_up(monkeypatch, ranks=2)
    with pytest.raises(ValueError, match="--costs"):
        Policy(3, config)
    table = {"batch_sizes": [1], "steps": [0, 1], "seconds": [[1.0, 1.1]]}
    monkeypatch.setattr(sglang_policy, "COSTS", table)
    policy = Policy(3, config)
    policy.get_steps_for_batch(1)
    policy.on_verify_complete([0], batch_size=1)
    assert not policy._rule.costs._found
    assert policy._clock is None


def test_another_protocol_is_refused(
    made_up: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    register()
    assert made_up.registered == [(TARGET, Policy, "replace")]
    monkeypatch.setattr(sys.modules["sglang.version"], "__version__", "0.6.0")
    register()
    assert "not tried with 0.6.0" in caplog.text
    made_up.state.AdaptiveSpecPolicy.get_steps_for_request = None
    with pytest.raises(RuntimeError, match=r"0\.6\.0 \(get_steps_for_request\)"):
        register()
    del made_up.state.AdaptiveSpecPolicy.get_steps_for_request
    monkeypatch.delattr(made_up.params, "_load_adaptive_config")
    with pytest.raises(RuntimeError, match="its config"):
        register()
    assert len(made_up.registered) == 2


def test_the_protocol_has_no_other_members(real: SimpleNamespace) -> None:
    protocol = real.state.AdaptiveSpecPolicy
    members = {name for name in vars(protocol) if not name.startswith("_")}
    assert members == {name for name in vars(Policy) if not name.startswith("_")}
    for name in members - {"candidate_steps"}:
        wanted = inspect.signature(getattr(protocol, name)).parameters
        assert list(inspect.signature(getattr(Policy, name)).parameters) == list(wanted)


def test_the_plugin_replaces_the_class_wherever_it_is_used(real: SimpleNamespace) -> None:
    register()
    real.hooks.HookRegistry.apply_hooks()
    assert real.params.AdaptiveSpeculativeParams is Policy
    assert real.worker.AdaptiveSpeculativeParams is Policy


def test_the_worker_makes_and_asks_it_as_is_assumed() -> None:
    """Every decode batch is announced before it runs, and its result is told with its size."""
    wheel = find_wheel()
    worker, results = (ast.parse(read_source(wheel, name)) for name in (WORKER, RESULTS))
    (made,) = _calls(worker, "AdaptiveSpeculativeParams")
    inspect.signature(Policy).bind(**{word.arg: None for word in made.keywords})
    assert not made.args
    (asked,) = _calls(worker, "activate_step_by_batch", owner="self")
    assert ast.unparse(asked.args[0]) == "batch.seq_lens.shape[0]"
    (told,) = _calls(results, "on_verify_complete_cpu")
    assert [(word.arg, ast.unparse(word.value)) for word in told.keywords] == [
        ("batch_size", "len(batch.reqs)")
    ]


def _calls(tree: ast.AST, name: str, owner: str | None = None) -> list[ast.Call]:
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        called = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
        of = ast.unparse(function.value) if isinstance(function, ast.Attribute) else None
        if called == name and owner in (None, of):
            found.append(node)
    return found


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("ranks", [1, 2])
def test_it_serves_with_the_real_controller(
    monkeypatch: pytest.MonkeyPatch, config: str, overlap: bool, ranks: int
) -> None:
    real = install(monkeypatch, find_wheel(), ranks=ranks)
    table = {
        "batch_sizes": GRAPHS,
        "steps": [0, 1, 3, 5, 7],
        "seconds": [[like_a_gpu(size, k) for k in (0, 1, 3, 5, 7)] for size in GRAPHS],
    }
    monkeypatch.setattr(sglang_policy, "COSTS", table if ranks > 1 else None)
    server, worker = Server(like_a_gpu, overlap=overlap), Worker(3)
    policy = Policy(3, config)
    if policy._clock:
        monkeypatch.setattr(policy, "_clock", lambda: server.now)
    controller = real.state.AdaptiveController(worker, policy)
    controller.register((3, 4), steps=3)
    controller.init_states(GRAPHS)
    assert worker.captured == {0: GRAPHS, 1: GRAPHS, 5: [1, 2, 4, 8], 7: [1, 2, 4, 8]}
    for first in (0.85, 0.1):
        server.survivals = geometric(first)
        for batch, tiers in ((1, (0, 1, 3, 5, 7)), (6, (0, 1, 3, 5, 7)), (30, (0, 1, 3))):
            server.run(controller, worker, batch, 300)
            reached = server.run(controller, worker, batch, 700)
            server.drain(controller)
            assert reached > 0.95 * server.best(batch, tiers)
    # Changes are few: the server logs each.
    assert worker.switches < 0.1 * 6000


def test_beside_sglangs_own_rule(real: SimpleNamespace, tmp_path: Path) -> None:
    """Of the same tiers, with its defaults of batch size 1; both learn from nothing."""
    tiers = (0, 1, 3, 5, 7)
    entry = {"candidate_steps": list(tiers), "up_hysteresis": 0.0, "down_hysteresis": -0.25}
    config = tmp_path / "same.json"
    config.write_text(json.dumps({str(size): entry for size in (1, 8, 32)}))
    shares: dict[type, list[float]] = {real.params.AdaptiveSpeculativeParams: [], Policy: []}
    for kind, reached in shares.items():
        for seconds in (like_a_gpu, like_experts, like_a_cpu):
            for first, batch in itertools.product((0.9, 0.6, 0.3, 0.05), (1, 8, 32)):
                server, worker = Server(seconds), Worker(3)
                policy = kind(initial_steps=3, cfg_path=str(config))
                policy._clock = lambda server=server: server.now
                controller = real.state.AdaptiveController(worker, policy)
                controller.register((3, 4), steps=3)
                controller.init_states(GRAPHS)
                server.survivals = geometric(first)
                rate = server.run(controller, worker, batch, 1000)
                server.drain(controller)
                reached.append(rate / server.best(batch, tiers))
    theirs, ours = shares.values()
    # docs/engines.md has these figures.
    assert min(ours) > 0.95
    assert sum(ours) / len(ours) > 0.98
    assert min(theirs) < 0.6
    assert sum(theirs) / len(theirs) < 0.95
    assert all(own > other - 0.03 for own, other in zip(ours, theirs, strict=True))


def test_the_package_has_the_entry_point(tmp_path: Path) -> None:
    sglang_policy.write_package(tmp_path / "package")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "--target", str(tmp_path / "site"), str(tmp_path / "package")],
        check=True,
    )  # fmt: skip
    (found,) = importlib.metadata.distributions(path=[str(tmp_path / "site")])
    (point,) = found.entry_points.select(group="sglang.srt.plugins")
    assert (point.name, point.value) == ("sglang_policy", "sglang_policy:register")
    assert (tmp_path / "site" / "sglang_policy.py").is_file()


@pytest.mark.slow
def test_with_the_wheel_of_the_registry(tmp_path: Path) -> None:
    """The tests above that need the wheel, with one that is downloaded now."""
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path),
         f"sglang=={VERSION}"],
        check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("sglang-*.whl")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env=os.environ | {"EAGLERL_SGLANG_WHEEL": str(wheel)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
