"""Names and import paths of release 0.1, which keep working for one release and warn.

Remove this module, and every use of its functions, in the release after 0.2.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

#: Old module -> new module.
MOVED_MODULES = {
    # eaglerl.cli
    "eaglerl.cli.actions": "eaglerl.cli.shared.action_options",
    "eaglerl.cli.calibrate": "eaglerl.cli.calibrate_command",
    "eaglerl.cli.compare": "eaglerl.cli.compare_command",
    "eaglerl.cli.comparison_table": "eaglerl.cli.shared.comparison_table",
    "eaglerl.cli.cycle_chart": "eaglerl.cli.shared.cycle_chart",
    "eaglerl.cli.demo": "eaglerl.cli.demo_command",
    "eaglerl.cli.evaluate": "eaglerl.resps.commands.evaluate_command",
    "eaglerl.cli.export_head": "eaglerl.cli.export_head_command",
    "eaglerl.cli.generate": "eaglerl.cli.generate_command",
    "eaglerl.cli.machine_cost": "eaglerl.cli.shared.machine_cost",
    "eaglerl.cli.open_policy": "eaglerl.cli.shared.open_policy",
    "eaglerl.cli.options": "eaglerl.cli.shared.options",
    "eaglerl.cli.policy": "eaglerl.cli.train_policy_command",
    "eaglerl.cli.prepare": "eaglerl.cli.prepare_command",
    "eaglerl.cli.preset": "eaglerl.resps.commands.preset_options",
    "eaglerl.cli.record": "eaglerl.cli.record_command",
    "eaglerl.cli.report": "eaglerl.cli.report_command",
    "eaglerl.cli.serve": "eaglerl.cli.serve_command",
    "eaglerl.cli.streaming": "eaglerl.cli.shared.streaming",
    "eaglerl.cli.terminal": "eaglerl.cli.shared.terminal",
    "eaglerl.cli.traces": "eaglerl.cli.shared.trace_options",
    "eaglerl.cli.training": "eaglerl.cli.train_draft_command",
    # eaglerl.eagle3
    "eaglerl.eagle3.attention_window": "eaglerl.eagle3.head.attention_window",
    "eaglerl.eagle3.cache_owner": "eaglerl.eagle3.cache.cache_owner",
    "eaglerl.eagle3.caches": "eaglerl.eagle3.cache.caches",
    "eaglerl.eagle3.checkpoint": "eaglerl.eagle3.head.draft_checkpoint",
    "eaglerl.eagle3.config": "eaglerl.eagle3.head.draft_config",
    "eaglerl.eagle3.config_file": "eaglerl.eagle3.head.draft_config_file",
    "eaglerl.eagle3.device_tree": "eaglerl.eagle3.tree.device_tree",
    "eaglerl.eagle3.draft": "eaglerl.eagle3.head.draft_head",
    "eaglerl.eagle3.draft_runner": "eaglerl.eagle3.head.make_draft_runner",
    "eaglerl.eagle3.export": "eaglerl.eagle3.head.export_head",
    "eaglerl.eagle3.generation_arguments": "eaglerl.eagle3.generation_config.generation_arguments",
    "eaglerl.eagle3.generation_fields": "eaglerl.eagle3.generation_config.generation_fields",
    "eaglerl.eagle3.generation_options": "eaglerl.eagle3.generation_config.generation_options",
    "eaglerl.eagle3.generation_schema": "eaglerl.eagle3.generation_config.generation_schema",
    "eaglerl.eagle3.generation_settings": "eaglerl.eagle3.generation_config.generation_settings",
    "eaglerl.eagle3.inputs": "eaglerl.eagle3.prompt_inputs",
    "eaglerl.eagle3.kv_cache": "eaglerl.eagle3.cache.kv_cache",
    "eaglerl.eagle3.linear": "eaglerl.eagle3.layers.linear",
    "eaglerl.eagle3.lookup": "eaglerl.eagle3.tree.prompt_lookup",
    "eaglerl.eagle3.merge": "eaglerl.eagle3.tree.merge",
    "eaglerl.eagle3.open_session": "eaglerl.eagle3.session_factory",
    "eaglerl.eagle3.packed_draft": "eaglerl.eagle3.head.packed_draft",
    "eaglerl.eagle3.packed_rows": "eaglerl.eagle3.head.packed_rows",
    "eaglerl.eagle3.packed_target": "eaglerl.eagle3.target.packed_target",
    "eaglerl.eagle3.params": "eaglerl.eagle3.policy",
    "eaglerl.eagle3.pending": "eaglerl.eagle3.pending_rows",
    "eaglerl.eagle3.rope": "eaglerl.eagle3.layers.rope",
    "eaglerl.eagle3.rows": "eaglerl.eagle3.layers.row_batch",
    "eaglerl.eagle3.tap_check": "eaglerl.eagle3.head.feature_layer_check",
    "eaglerl.eagle3.taps": "eaglerl.eagle3.head.feature_layers",
    "eaglerl.eagle3.target_files": "eaglerl.eagle3.target.target_files",
    "eaglerl.eagle3.target_header": "eaglerl.eagle3.target.target_header",
    "eaglerl.eagle3.transformers_target": "eaglerl.eagle3.target.transformers_target",
    "eaglerl.eagle3.verify": "eaglerl.eagle3.sampling",
    "eaglerl.eagle3.weight_files": "eaglerl.eagle3.head.weight_files",
    # eaglerl.evaluation
    "eaglerl.evaluation.agreement": "eaglerl.evaluation.running.agreement",
    "eaglerl.evaluation.answer_schema": "eaglerl.evaluation.questions.answer_schema",
    "eaglerl.evaluation.answers": "eaglerl.evaluation.questions.answer_files",
    "eaglerl.evaluation.baselines": "eaglerl.evaluation.modes.baseline_modes",
    "eaglerl.evaluation.bootstrap": "eaglerl.evaluation.statistics.paired_speeds",
    "eaglerl.evaluation.compare": "eaglerl.evaluation.running.comparison",
    "eaglerl.evaluation.completeness": "eaglerl.evaluation.results.completeness",
    "eaglerl.evaluation.contenders": "eaglerl.evaluation.modes.runners",
    "eaglerl.evaluation.disturbance": "eaglerl.evaluation.statistics.disturbance",
    "eaglerl.evaluation.json_lines": "eaglerl.evaluation.results.json_lines",
    "eaglerl.evaluation.machine": "eaglerl.evaluation.running.processor",
    "eaglerl.evaluation.options": "eaglerl.evaluation.running.comparison_options",
    "eaglerl.evaluation.policy_files": "eaglerl.evaluation.modes.policy_modes",
    "eaglerl.evaluation.presets": "eaglerl.resps.presets",
    "eaglerl.evaluation.published": "eaglerl.resps.bench",
    "eaglerl.evaluation.published_flags": "eaglerl.resps.flags",
    "eaglerl.evaluation.published_policies": "eaglerl.resps.bench_policies",
    "eaglerl.evaluation.record_schema": "eaglerl.evaluation.results.record_schema",
    "eaglerl.evaluation.records": "eaglerl.evaluation.results.records",
    "eaglerl.evaluation.selection": "eaglerl.evaluation.running.tree_selection",
    "eaglerl.evaluation.setup": "eaglerl.evaluation.modes.mode_setup",
    # eaglerl.gguf_convert
    "eaglerl.gguf_convert.config": "eaglerl.gguf_convert.gguf_config",
    "eaglerl.gguf_convert.header": "eaglerl.gguf_convert.gguf_file",
    "eaglerl.gguf_convert.names": "eaglerl.gguf_convert.tensor_names",
    "eaglerl.gguf_convert.rope": "eaglerl.gguf_convert.gguf_rope",
    # eaglerl.kernels
    "eaglerl.kernels.action_cache_step": "eaglerl.kernels.action_cache_step_kernel",
    "eaglerl.kernels.fused_encode": "eaglerl.kernels.fused_encode_kernel",
    "eaglerl.kernels.policy_mlp": "eaglerl.kernels.policy_mlp_kernel",
    # eaglerl.rl
    "eaglerl.rl.actions": "eaglerl.actions",
    "eaglerl.rl.baselines": "eaglerl.policies.baselines",
    "eaglerl.rl.calibrate": "eaglerl.cost.measure_cost",
    "eaglerl.rl.checkpoints": "eaglerl.runs.checkpoints",
    "eaglerl.rl.cost": "eaglerl.cost.cost_table",
    "eaglerl.rl.cost_check": "eaglerl.cost.cost_check",
    "eaglerl.rl.decisions": "eaglerl.envs.action_repeat",
    "eaglerl.rl.environments": "eaglerl.envs.trace_env",
    "eaglerl.rl.fit_cost": "eaglerl.cost.fit_cost",
    "eaglerl.rl.greedy": "eaglerl.traces.greedy_continuations",
    "eaglerl.rl.greedy_outcome": "eaglerl.sb3.greedy_outcome",
    "eaglerl.rl.grouped_linear": "eaglerl.traces.rowwise_linear",
    "eaglerl.rl.identity": "eaglerl.fingerprints",
    "eaglerl.rl.live_env": "eaglerl.envs.live_env",
    "eaglerl.rl.lookup_rule": "eaglerl.policies.lookup_rule",
    "eaglerl.rl.observations": "eaglerl.envs.observations",
    "eaglerl.rl.oracle": "eaglerl.traces.oracle",
    "eaglerl.rl.policy_card": "eaglerl.sb3.policy_card",
    "eaglerl.rl.policy_files": "eaglerl.policies.policy_folder",
    "eaglerl.rl.policy_run": "eaglerl.runs.policy_run",
    "eaglerl.rl.prompt_line": "eaglerl.traces.prompt_line",
    "eaglerl.rl.record": "eaglerl.traces.recording",
    "eaglerl.rl.replay": "eaglerl.traces.replay",
    "eaglerl.rl.rewards": "eaglerl.envs.rewards",
    "eaglerl.rl.run_log": "eaglerl.runs.run_log",
    "eaglerl.rl.simulate": "eaglerl.traces.simulation",
    "eaglerl.rl.standardize": "eaglerl.envs.standardize",
    "eaglerl.rl.trace_index": "eaglerl.traces.trace_index",
    "eaglerl.rl.trace_world": "eaglerl.envs.trace_windows",
    "eaglerl.rl.traces": "eaglerl.traces.trace_set",
    "eaglerl.rl.train_online": "eaglerl.resps.train_online",
    "eaglerl.rl.train_policy": "eaglerl.sb3.train_policy",
    "eaglerl.rl.train_reference": "eaglerl.resps.train_reference",
    "eaglerl.rl.training_callback": "eaglerl.sb3.training_callback",
    "eaglerl.rl.training_state": "eaglerl.runs.sb3_state",
    "eaglerl.rl.tree_row": "eaglerl.eagle3.tree.tree_row",
    "eaglerl.rl.wandb_output": "eaglerl.runs.wandb_output",
    # eaglerl.rl.published
    "eaglerl.rl.published.base": "eaglerl.resps.policies.resps_policy",
    "eaglerl.rl.published.compression": "eaglerl.resps.policies.compression",
    "eaglerl.rl.published.dqn": "eaglerl.resps.policies.dqn",
    "eaglerl.rl.published.files": "eaglerl.resps.policies.policy_file",
    "eaglerl.rl.published.learner": "eaglerl.resps.policies.sb3_learner",
    "eaglerl.rl.published.load": "eaglerl.resps.policies.load_saved",
    "eaglerl.rl.published.persistence": "eaglerl.resps.policies.policy_saving",
    "eaglerl.rl.published.ppo": "eaglerl.resps.policies.ppo",
    "eaglerl.rl.published.saved_state": "eaglerl.resps.policies.checkpoint_state",
    "eaglerl.rl.published.settings": "eaglerl.resps.policies.policy_settings",
    "eaglerl.rl.published.statistics": "eaglerl.resps.policies.policy_statistics",
    "eaglerl.rl.published.window": "eaglerl.resps.policies.reward_window",
    # eaglerl.server
    "eaglerl.server.gate": "eaglerl.server.middleware",
    "eaglerl.server.learned": "eaglerl.server.trained_policies",
    # eaglerl.training
    "eaglerl.training.curves": "eaglerl.runs.learning_curve",
    "eaglerl.training.run_folder": "eaglerl.runs.head_run",
}
#: Name in the old package ``eaglerl.rl`` -> module that defines it, and its new name after a colon.
MOVED_NAMES = {
    "ActionSpace": "eaglerl.actions",
    "Bounds": "eaglerl.traces.oracle",
    "CostTable": "eaglerl.cost.cost_table",
    "DraftConfidencePolicy": "eaglerl.policies.baselines",
    "Exp3Policy": "eaglerl.policies.baselines",
    "LookupRule": "eaglerl.policies.lookup_rule",
    "ObservationSpec": "eaglerl.envs.observations",
    "OptimizedOnlineTreePolicy": "eaglerl.resps.policies",
    "OptimizedSB3DiscretePPOOnlineTreePolicy": "eaglerl.resps.policies",
    "Outcome": "eaglerl.traces.simulation",
    "Prompt": "eaglerl.traces.recording",
    "RandomPolicy": "eaglerl.policies.baselines",
    "RecordOptions": "eaglerl.traces.recording",
    "ShuffledStates": "eaglerl.policies.baselines",
    "SpeculativeDecodingEnv": "eaglerl.envs.live_env",
    "StagedPolicy": "eaglerl.traces.simulation",
    "TierPolicy": "eaglerl.policies.baselines",
    "Trace": "eaglerl.traces.trace_set",
    "TraceEnv": "eaglerl.envs.trace_env",
    "TraceSet": "eaglerl.traces.trace_set",
    "TraceVecEnv": "eaglerl.envs.trace_env",
    "UCB1Policy": "eaglerl.policies.baselines",
    "best_constant": "eaglerl.policies.baselines",
    "best_lookup_rule": "eaglerl.policies.lookup_rule",
    "bounds": "eaglerl.traces.oracle",
    "load_policy": "eaglerl.resps.policies:load_resps_policy",
    "lookup_alone": "eaglerl.policies.lookup_rule",
    "simulate": "eaglerl.traces.simulation",
}
_RESPS = (
    "OptimizedOnlineTreePolicy",
    "OptimizedSB3DiscretePPOOnlineTreePolicy",
    "PolicySettings",
)
_PACKAGES = {
    "eaglerl.rl": MOVED_NAMES,
    "eaglerl.rl.published": dict.fromkeys(_RESPS, "eaglerl.resps.policies")
    | {"load_policy": "eaglerl.resps.policies:load_resps_policy"},
}


def _warn(old: str, new: str) -> None:
    # 2 is the caller; frames of the import system do not count.
    warnings.warn(
        f"{old} is deprecated and goes with the next release: import {new}",
        DeprecationWarning,
        stacklevel=3,
    )


class _MovedPackage(ModuleType):
    """A former package. Importing a submodule does not overwrite a name that it offered."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _PACKAGES[self.__name__]:
            super().__setattr__(name, value)


class _MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The finder and loader that give a new module under its old name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in MOVED_MODULES or fullname in _PACKAGES:
            return importlib.util.spec_from_loader(fullname, self, is_package=fullname in _PACKAGES)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return _MovedPackage(spec.name) if spec.name in _PACKAGES else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        if name in _PACKAGES:
            vars(module)["__getattr__"] = _attributes(name, _PACKAGES[name])
            vars(module)["__all__"] = sorted(_PACKAGES[name])
        else:
            new = MOVED_MODULES[name]
            _warn(name, new)
            # The import system returns what `sys.modules` holds after this call.
            sys.modules[name] = importlib.import_module(new)


def _attributes(old: str, names: dict[str, str]) -> Callable[[str], Any]:
    def __getattr__(name: str) -> Any:  # noqa: N807
        if name not in names:
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        module, _, attribute = names[name].partition(":")
        _warn(f"{old}.{name}", f"{attribute or name} from {module}")
        return getattr(importlib.import_module(module), attribute or name)

    return __getattr__


def moved_attributes(package: str, module: str) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a package that has the name of a former module.

    Args:
        package: name of the package.
        module: the module that has the contents of the former one.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name.startswith("__"):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(importlib.import_module(module), name)
        except AttributeError:
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
        _warn(f"{package}.{name}", f"{name} from {module}")
        return value

    return __getattr__


def install() -> None:
    """Make the old names importable. A module that exists under such a name takes precedence."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())
