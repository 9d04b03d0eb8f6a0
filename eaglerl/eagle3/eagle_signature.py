"""`generate` with the signature of EAGLE's own code."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from transformers import PreTrainedTokenizerBase

from eaglerl.eagle3.begin_prompt import read_for_target
from eaglerl.eagle3.generation_config.generation_settings import GenerationSettings
from eaglerl.eagle3.output import GenerateOutput
from eaglerl.eagle3.prompt_inputs import PromptIds
from eaglerl.eagle3.target.target_model import TargetModel


class EagleSignature:
    """The method of a decoder that is called as in EAGLE."""

    target: TargetModel
    tokenizer: PreTrainedTokenizerBase | None
    generate: Callable[..., GenerateOutput]
    read_options: Callable[..., GenerationSettings]

    def eagenerate(
        self,
        input_ids: PromptIds,
        temperature: float = 0.0,
        top_p: float = 0.0,
        top_k: float = 0.0,
        max_new_tokens: int = 512,
        max_length: int = 2048,
        log: bool = False,
        is_llama3: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, int, int]:
        """Call `generate` with the signature of EAGLE's ``EaModel.eagenerate``.

        Args:
            input_ids: (1, n) token ids, or one prompt in another form that `generate` takes.
            temperature: 0 decodes greedily.
            top_p: nucleus mass; 0 is off, as in EAGLE.
            top_k: 0 is off.
            max_new_tokens: longest continuation.
            max_length: longest sequence, prompt included.
            log: also return the number of new tokens and the index of the last cycle.
            is_llama3: also stop at ``<|eot_id|>``.

        Returns:
            (1, length) token ids, or (token ids, new tokens, last cycle's index) with `log`.

        Raises:
            ValueError: see `generate`; or `is_llama3` without ``<|eot_id|>`` in the tokenizer.
        """
        eos_token_ids = list(self.read_options().eos_token_ids)
        if is_llama3:
            eos_token_ids.append(_llama3_end(self.tokenizer))
        settings = self.read_options(eos_token_id=eos_token_ids)
        prompts = read_for_target(self.target, settings, input_ids, None, None)
        prompt = prompts.only("eagenerate")
        room = max_length - len(prompt.row)
        if room < 1:
            raise ValueError(f"max_length={max_length} leaves no room after the prompt")
        output = self.generate(
            input_ids,
            max_new_tokens=min(max_new_tokens, room),
            temperature=temperature,
            top_p=top_p or 1.0,
            # EAGLE's signature has a float; `generate` refuses one that is not whole.
            top_k=cast("int", top_k),
            eos_token_id=eos_token_ids,
        )
        if not log:
            return output.sequences
        return output.sequences, output.statistics.new_tokens, output.statistics.num_cycles - 1


def _llama3_end(tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Return the id of ``<|eot_id|>``.

    Raises:
        ValueError: the tokenizer has no such token, or there is no tokenizer.
    """
    eot = None
    if tokenizer is not None:
        # One token has one id.
        eot = cast("int | None", tokenizer.convert_tokens_to_ids("<|eot_id|>"))
    if eot is None or eot == getattr(tokenizer, "unk_token_id", None):
        raise ValueError("is_llama3=True needs a tokenizer with the token <|eot_id|>")
    return eot
