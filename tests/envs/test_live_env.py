"""The environment of a live decoder, against decoding by hand."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_checker import check_env as check_sb3_env

from eaglerl.actions import ActionSpace
from eaglerl.eagle3 import SpeculativeDecoder
from eaglerl.eagle3.policy import NO_DRAFT, TreeParams
from eaglerl.envs.live_env import SpeculativeDecodingEnv
from eaglerl.envs.observations import ObservationSpec
from eaglerl.envs.trace_env import TraceEnv
from eaglerl.traces.recording import RecordOptions, record
from eaglerl.traces.trace_set import Trace, TraceSet

from ..traces.test_oracle import ACTIONS, COST
from ..traces.tiny import tiny_decoder, tiny_prompts

EXTRAS = ("acceptance", "position", "confidence")


@pytest.fixture(scope="module")
def decoder() -> SpeculativeDecoder:
    return tiny_decoder()


def make_env(decoder: SpeculativeDecoder, **options) -> SpeculativeDecodingEnv:
    options = {"cost": COST, "max_new_tokens": 24, "cache_steps": 3, **options}
    return SpeculativeDecodingEnv(decoder, tiny_prompts(4), ACTIONS, **options)


def test_an_episode_is_the_target_s_own_continuation(decoder: SpeculativeDecoder) -> None:
    env = make_env(decoder)
    draw = np.random.default_rng(0)
    for index, prompt in enumerate(tiny_prompts(4)):
        expected = decoder.generate(prompt.token_ids, NO_DRAFT, max_new_tokens=24).sequences[0]
        _, info = env.reset(options={"prompt": index})
        assert info == {"prompt": index}
        total, done = 1, False
        while not done:
            _, _, done, truncated, info = env.step(int(draw.integers(len(ACTIONS))))
            total += info["tokens"]
            assert not truncated
            assert 1 <= info["cycles"] <= 3
        assert env.token_ids == expected.tolist()
        assert total == len(expected) - len(prompt.token_ids)
        with pytest.raises(RuntimeError, match="call reset"):
            env.step(0)


def clear_threshold(traces: Iterable[Trace]) -> float:
    """A cosine similarity amid those of a text's positions, and close to none of them."""
    near = []
    for trace in traces:
        rows = trace.features.astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        near.append((rows @ rows.T)[np.triu_indices(len(rows), 1)])
    ordered = np.sort(np.concatenate(near))
    middle = ordered[len(ordered) // 4 : 3 * len(ordered) // 4]
    widest = int(np.diff(middle).argmax())
    return float(middle[widest : widest + 2].mean())


@pytest.mark.parametrize(
    "kept",
    [{"cache_steps": 2}, {"cache_steps": 4, "similarity_threshold": None},
     {"cache_steps": 1, "horizon": 2}],
)  # fmt: skip
def test_live_and_traces_show_the_same(decoder: SpeculativeDecoder, kept: dict, tmp_path) -> None:
    """Tokens, seconds, rewards and observations agree, by one cost table; windows end alike."""
    prompts = tiny_prompts(3)
    options = RecordOptions(top_ks=(1, 2), max_depth=2, max_new_tokens=25, slots=2)
    record(decoder, prompts, tmp_path, options=options)
    traces = {tuple(trace.prompt_ids.tolist()): trace for trace in TraceSet(tmp_path)}
    if "similarity_threshold" in kept:
        kept = {**kept, "similarity_threshold": clear_threshold(traces.values())}
    live = SpeculativeDecodingEnv(
        decoder, prompts, ACTIONS, cost=COST, max_new_tokens=25, extras=EXTRAS, **kept
    )
    ordered = [traces[tuple(prompt.token_ids)] for prompt in prompts]
    replayed = TraceEnv(ordered, ACTIONS, COST, extras=EXTRAS, **kept)
    cycles = []
    assert live.observation_space == replayed.observation_space
    assert live.action_space == replayed.action_space
    for index in range(len(prompts)):
        shown, _ = live.reset(seed=0, options={"prompt": index})
        expected, _ = replayed.reset(seed=0, options={"trace": index})
        done, step = False, 0
        while not done:
            # Traces keep features in float16.
            np.testing.assert_allclose(shown, expected, rtol=2e-3, atol=2e-3)
            action = (step + index) % len(ACTIONS)
            if "horizon" in kept:
                action = np.array([action, (action + 2) % len(ACTIONS)])
            shown, reward, done, _, info = live.step(action)
            expected, wanted_reward, wanted_done, _, wanted = replayed.step(action)
            assert (done, info["tokens"], info["cycles"]) == (
                wanted_done, wanted["tokens"], wanted["cycles"],
            )  # fmt: skip
            if not done:
                cycles.append(info["cycles"])
            # Near the end, live trees are cut to the tokens left, and cost less.
            if len(live.token_ids) - len(prompts[index].token_ids) < 25 - 3:
                assert info["seconds"] == pytest.approx(wanted["seconds"], rel=1e-6)
                assert reward == pytest.approx(wanted_reward, abs=1e-4)
            step += 1
    # Some windows end early and some do not: otherwise similarity would not be tested.
    if "similarity_threshold" in kept:
        assert min(cycles) < 4
        assert max(cycles) > 1


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_the_checkers_pass(decoder: SpeculativeDecoder) -> None:
    env = make_env(decoder, extras=EXTRAS)
    check_env(env, skip_render_check=True)
    check_sb3_env(env)


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_untouched_algorithms_learn(decoder: SpeculativeDecoder, algorithm: type) -> None:
    settings = {"device": "cpu", "seed": 0}
    if algorithm is PPO:
        settings |= {"n_steps": 16, "batch_size": 16}
    # By the clock, without a cost table.
    env = make_env(decoder, cost=None)
    model = algorithm("MlpPolicy", env, **settings)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(128)
    assert any(not torch.equal(before[name], value) for name, value in
               model.policy.state_dict().items())  # fmt: skip


def test_taps_are_shown_too(decoder: SpeculativeDecoder) -> None:
    width = 3 * decoder.target.hidden_size
    env = make_env(decoder, observation=ObservationSpec("taps", width))
    shown, _ = env.reset(options={"prompt": 1})
    session = env._session
    np.testing.assert_array_equal(shown, session.state.features.numpy())
    assert env.observation_space.shape == (width,)


def test_seconds_are_measured(decoder: SpeculativeDecoder) -> None:
    env = make_env(decoder, cost=None, reward="throughput")
    env.reset(seed=0)
    _, reward, _, _, info = env.step(1)
    assert info["seconds"] > 0
    assert reward == pytest.approx(info["tokens"] / info["seconds"])


def test_wrong_arguments_are_named(decoder: SpeculativeDecoder) -> None:
    with pytest.raises(ValueError, match="cache_steps must be at least 1, got 0"):
        make_env(decoder, cache_steps=0)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 2, got 1"):
        make_env(decoder, max_new_tokens=1)
    with pytest.raises(ValueError, match="horizon must be 1 where"):
        make_env(decoder, similarity_threshold=0.5, horizon=2)
    with pytest.raises(ValueError, match="at least one prompt"):
        SpeculativeDecodingEnv(decoder, [], ACTIONS, cost=COST)
    wide = ActionSpace([TreeParams(4, 0, 16)])
    with pytest.raises(ValueError, match="top_k"):
        SpeculativeDecodingEnv(decoder, tiny_prompts(1), wide, cost=COST)
    env = make_env(decoder)
    with pytest.raises(ValueError, match=r"must lie in 0..3, got 7"):
        env.reset(options={"prompt": 7})
    env.reset()
    with pytest.raises(ValueError, match=r"action must lie in 0..4, got 5"):
        env.step(5)
