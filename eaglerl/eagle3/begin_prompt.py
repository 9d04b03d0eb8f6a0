"""The beginning of a sequence: its prompt is read, and its verifier and rules are made."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from eaglerl.eagle3.generation_config.generation_settings import GenerationSettings
from eaglerl.eagle3.prompt_inputs import AttentionMask, Prompt, PromptIds, Prompts, read_prompts
from eaglerl.eagle3.sampling import ProcessingVerifier
from eaglerl.eagle3.stopping import StoppingRules
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.eagle3.verifier import Verifier


def read_for_target(
    target: TargetModel,
    settings: GenerationSettings,
    input_ids: PromptIds | None,
    attention_mask: AttentionMask | None,
    inputs: PromptIds | None,
) -> Prompts:
    """Read the prompts of a call; see `SpeculativeDecoder.generate`.

    Raises:
        ValueError: see `read_prompts`; or there are holes and the target has a sliding window.
    """
    prompts = read_prompts(
        input_ids,
        attention_mask,
        inputs=inputs,
        pad_token_id=settings.config.pad_token_id,
        eos_token_ids=settings.eos_token_ids,
    )
    for prompt in prompts:
        if prompt.has_holes and target.has_window:
            prompt.refuse_holes("the target has a sliding window")
    return prompts


def begin_prompt(
    settings: GenerationSettings,
    prompt: Prompt,
    max_length: int,
    *,
    generator: torch.Generator | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> tuple[Verifier, StoppingRules]:
    """Make the verifier and the stopping rules of one prompt.

    Args:
        settings: the options of the call.
        prompt: the prompt.
        max_length: tokens at which the text ends, the prompt included.
        generator: of the draws.
        tokenizer: for stop strings.

    Raises:
        ValueError: see `GenerationSettings.start`; or there are holes and something reads the text.
    """
    verifier, rules = settings.start(
        prompt.token_ids,
        max_length - len(prompt.token_ids),
        generator=generator,
        tokenizer=tokenizer,
        padding=prompt.hidden,
    )
    if prompt.has_holes and (rules.reads_text or isinstance(verifier, ProcessingVerifier)):
        prompt.refuse_holes("logits processors, stopping criteria or stop strings read the text")
    return verifier, rules
