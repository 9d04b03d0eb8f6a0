"""Policies for other engines: SGLang's batch-level rule, and trained policies as ONNX."""

from typing import TYPE_CHECKING

from eaglerl._lazy import lazy_names

if TYPE_CHECKING:
    from eaglerl.policy_export.export_onnx import export_onnx
    from eaglerl.policy_export.export_sglang import export_sglang
    from eaglerl.policy_export.step_costs import StepCosts

__all__ = ["StepCosts", "export_onnx", "export_sglang"]
__getattr__, __dir__, _ = lazy_names(
    __name__,
    {
        "StepCosts": "eaglerl.policy_export.step_costs",
        "export_onnx": "eaglerl.policy_export.export_onnx",
        "export_sglang": "eaglerl.policy_export.export_sglang",
    },
)
