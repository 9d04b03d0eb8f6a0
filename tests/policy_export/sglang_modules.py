"""Modules of SGLang's wheel without torch, under their own names, or made-up ones like them.

Never copied: the sources are read out of the wheel that EAGLERL_SGLANG_WHEEL names.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

VERSION = "0.5.23"
STATE = "sglang.srt.speculative.adaptive_runtime_state"
PARAMS = "sglang.srt.speculative.adaptive_spec_params"
HOOKS = "sglang.srt.plugins.hook_registry"
WORKER = "sglang.srt.speculative.eagle_worker_v2"
RESULTS = "sglang.srt.managers.scheduler_components.batch_result_processor"
_PACKAGES = ("sglang", "sglang.srt", "sglang.srt.speculative", "sglang.srt.plugins")


def find_wheel() -> Path:
    """Return the wheel, or skip the test."""
    path = os.environ.get("EAGLERL_SGLANG_WHEEL", "")
    if not Path(path).is_file():
        pytest.skip(f"EAGLERL_SGLANG_WHEEL names no file: pip download sglang=={VERSION} --no-deps")
    return Path(path)


def read_source(wheel: Path, module: str) -> str:
    """Return a module's source."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(module.replace(".", "/") + ".py").decode()


def _add(patch: pytest.MonkeyPatch, name: str, **values: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(values)
    patch.setitem(sys.modules, name, module)
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        patch.setattr(sys.modules[parent], child, module, raising=False)
    return module


def install(patch: pytest.MonkeyPatch, wheel: Path, *, ranks: int = 1) -> SimpleNamespace:
    """Install the wheel's protocol, controller, config and hooks; what they import is made up."""
    _packages(patch, ranks)
    _add(patch, "sglang.srt.arg_groups")
    _add(patch, "sglang.srt.arg_groups.overrides", resolved_view=None, resolving_view=None)
    _add(patch, "sglang.srt.speculative.spec_info", SpeculativeAlgorithm=None)
    _add(patch, "sglang.srt.utils", log_info_on_rank0=lambda logger, message: None)
    modules = {}
    for name in (STATE, PARAMS, HOOKS):
        modules[name] = _add(patch, name, __file__=f"{wheel}/{name}")
        exec(compile(read_source(wheel, name), name, "exec"), modules[name].__dict__)
    return _installed(patch, modules)


def install_made_up(patch: pytest.MonkeyPatch, *, ranks: int = 1) -> SimpleNamespace:
    """Install modules like the wheel's, with only what the policy needs."""
    _packages(patch, ranks)

    class AdaptiveSpecPolicy:
        candidate_steps = set_cuda_graph_bs = get_steps_for_batch = None
        on_verify_complete = cuda_graph_bs_for_step = None

    class AdaptiveSpeculativeParams:
        pass

    def load(path: str | None) -> tuple[dict, dict[int, dict]]:
        content = json.loads(Path(path).read_text()) if path else {"1": {"candidate_steps": [0, 2]}}
        return content, {int(key): entry for key, entry in content.items()}

    registered: list[tuple] = []
    registry = SimpleNamespace(register=lambda *arguments: registered.append(arguments))
    modules = {
        STATE: _add(patch, STATE, AdaptiveSpecPolicy=AdaptiveSpecPolicy),
        PARAMS: _add(
            patch,
            PARAMS,
            AdaptiveSpeculativeParams=AdaptiveSpeculativeParams,
            _load_adaptive_config=load,
        ),
        HOOKS: _add(
            patch, HOOKS, HookRegistry=registry, HookType=SimpleNamespace(REPLACE="replace")
        ),
    }
    return SimpleNamespace(**vars(_installed(patch, modules)), registered=registered)


def _packages(patch: pytest.MonkeyPatch, ranks: int) -> None:
    for name in _PACKAGES:
        _add(patch, name, __path__=[])
    _add(patch, "sglang.version", __version__=VERSION)
    parallel = SimpleNamespace(tp_size=ranks, pp_size=1)
    _add(
        patch,
        "sglang.srt.runtime_context",
        get_parallel=lambda: parallel,
        attn_dp_enabled_of=None,
    )


def _installed(patch: pytest.MonkeyPatch, modules: dict[str, ModuleType]) -> SimpleNamespace:
    # As the worker's module does: it imports the class by its name.
    params = modules[PARAMS]
    worker = _add(patch, WORKER, AdaptiveSpeculativeParams=params.AdaptiveSpeculativeParams)
    return SimpleNamespace(state=modules[STATE], params=params, hooks=modules[HOOKS], worker=worker)
