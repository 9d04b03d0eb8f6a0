"""What the plugin is told by the environment or by vLLM's configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

VARIABLE = "EAGLERL_VLLM"
KEY = "eaglerl"


@dataclass(frozen=True)
class Settings:
    """Settings of the plugin.

    Attributes:
        policy: "auto"; "fixed" for the head's chain of `tokens` in every step; or "module:Class" of
            your own, called with the number of sequences and the most tokens of a chain, with the
            methods of `eaglerl.policies.BatchChainPolicy`.
        tokens: length of a "fixed" chain; None for vLLM's num_speculative_tokens.
        costs: a file in which learned costs are kept from one start to the next; None for none.
        step_log: a file to which every step of every request is added, for `eaglerl headroom`; None
            for none.
    """

    policy: str = "auto"
    tokens: int | None = None
    costs: str | None = None
    step_log: str | None = None

    def __post_init__(self) -> None:
        if self.policy not in ("auto", "fixed") and ":" not in self.policy:
            raise ValueError(
                f"eaglerl's policy must be auto, fixed or module:Class, got {self.policy!r}"
            )
        if self.tokens is not None and (
            not isinstance(self.tokens, int) or isinstance(self.tokens, bool) or self.tokens < 0
        ):
            raise ValueError(f"eaglerl's tokens must be a number of 0 or more, got {self.tokens!r}")


def read_settings(
    additional_config: object, environment: Mapping[str, str] = os.environ
) -> Settings | None:
    """Return the settings; None if the plugin is not turned on.

    It is turned on by `EAGLERL_VLLM=1`, by settings as JSON in that variable, or by settings under
    "eaglerl" in vLLM's `--additional-config`, which win.

    Args:
        additional_config: vLLM's `additional_config`.
        environment: the environment's variables.

    Raises:
        ValueError: a setting is unknown or has no allowed value.
    """
    if isinstance(additional_config, Mapping) and KEY in additional_config:
        return _settings(additional_config[KEY], f"additional_config[{KEY!r}]")
    text = environment.get(VARIABLE, "").strip()
    if text in ("", "0"):
        return None
    if text == "1":
        return Settings()
    try:
        content = json.loads(text)
    except json.JSONDecodeError as problem:
        raise ValueError(f"{VARIABLE} must be 0, 1 or JSON, got {text[:80]!r}: {problem}") from None
    return _settings(content, VARIABLE)


def _settings(content: Any, source: str) -> Settings | None:
    if isinstance(content, bool):
        return Settings() if content else None
    if not isinstance(content, Mapping):
        raise ValueError(f"{source} must be true, false or settings, got {content!r}")
    known = {field.name for field in fields(Settings)}
    unknown = sorted({*content} - known)
    if unknown:
        raise ValueError(f"{source} has unknown settings {unknown}; known are {sorted(known)}")
    return Settings(**content)
