"""The settings of a generation: a call's arguments merged with the target's generation config.

transformers' own code merges them and makes the logits processors, so that the text is that of its
`generate` for the same arguments.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessorList,
    MaxTimeCriteria,
    MinPLogitsWarper,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    SequenceBiasLogitsProcessor,
    StoppingCriteria,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from eaglerl.eagle3.generation_config.generation_arguments import read_explicit
from eaglerl.eagle3.generation_config.generation_fields import (
    check_arguments,
    check_supported,
)
from eaglerl.eagle3.generation_config.generation_schema import check_fields
from eaglerl.eagle3.generation_config.merge_config import PreparingModel, merge_config
from eaglerl.eagle3.sampling import (
    ColdTemperature,
    GreedyVerifier,
    ProcessingVerifier,
    SamplingVerifier,
    process_row,
    temperature_warper,
)
from eaglerl.eagle3.stopping import StoppingRules, read_token_ids
from eaglerl.eagle3.verifier import Verifier

#: New tokens if neither the call nor the target's generation config sets a length.
DEFAULT_NEW_TOKENS = 256
# transformers' default, for calls that follow its rules.
_DEFAULT_MAX_LENGTH = 20

#: Stateless processors that need a row's logits only.
_ROWWISE = frozenset({
    ColdTemperature,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MinPLogitsWarper,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
})  # fmt: skip


@dataclass(frozen=True)
class GenerationSettings:
    """The settings of one sequence.

    Attributes:
        config: the merged config, with its special tokens prepared.
        eos_token_ids: tokens that end a sequence.
        default_new_tokens: new tokens if no length is set.
        logits_processor: the user's processors.
        stopping_criteria: the user's criteria.
        prefix_allowed_tokens_fn: see transformers; it is called with the index of the prompt.
        index: index of the prompt.
    """

    config: GenerationConfig
    eos_token_ids: tuple[int, ...]
    default_new_tokens: int
    logits_processor: Sequence[Callable[..., torch.Tensor]] = ()
    stopping_criteria: Sequence[StoppingCriteria] = ()
    prefix_allowed_tokens_fn: Callable[[int, torch.Tensor], list[int]] | None = None
    index: int = 0
    _model: PreparingModel = field(kw_only=True, repr=False)
    _device: torch.device = field(kw_only=True)

    @classmethod
    def read(
        cls,
        config: PreTrainedConfig,
        defaults: GenerationConfig,
        device: torch.device,
        *,
        generation_config: GenerationConfig | None = None,
        logits_processor: Sequence[Callable[..., torch.Tensor]] | None = None,
        stopping_criteria: Sequence[StoppingCriteria] | None = None,
        prefix_allowed_tokens_fn: Callable[[int, torch.Tensor], list[int]] | None = None,
        **options: Any,
    ) -> GenerationSettings:
        """Merge the arguments of a call with the target's generation config.

        The call's arguments take precedence over the target's config, and that over transformers'
        defaults; None means not given. A call with `generation_config` or `do_sample` follows the
        rules of transformers' `generate`. Otherwise `temperature` decides: missing or 0 decodes
        greedily; above 0 samples, from the target's `top_k` or, without one, from all tokens.

        Args:
            config: the target's config.
            defaults: the target's generation config.
            device: device of the logits.
            generation_config: see transformers' `generate`.
            logits_processor: called after the processors of the config and before the warpers.
            stopping_criteria: end a sequence in addition to the rules of the config.
            prefix_allowed_tokens_fn: returns the tokens that may follow.
            options: fields of a generation config.

        Raises:
            ValueError: a value is out of range or not supported; the message names it.
            TypeError: there is no such argument, or it has a wrong type.
        """
        explicit = {name: value for name, value in options.items() if value is not None}
        check_arguments(generation_config, logits_processor, stopping_criteria, explicit)
        own_terms = generation_config is None and "do_sample" not in explicit
        read_explicit(explicit, own_terms=own_terms, defaults=defaults)
        model = PreparingModel(config, defaults)
        merged = merge_config(model, generation_config, explicit, device)
        return cls(
            merged,
            tuple(merged.eos_token_id or ()),
            DEFAULT_NEW_TOKENS if generation_config is None else _DEFAULT_MAX_LENGTH,
            tuple(logits_processor or ()),
            tuple(stopping_criteria or ()),
            prefix_allowed_tokens_fn,
            _model=model,
            _device=device,
        )

    @property
    def pad_token_id(self) -> int:
        """The token that pads shorter sequences."""
        pad = self.config.pad_token_id
        # Files have -1 for no padding token.
        if pad is not None and pad != -1:
            return read_token_ids(pad, "pad_token_id")[0]
        return self.eos_token_ids[0] if self.eos_token_ids else 0

    def check_ends_by_tokens(self) -> None:
        """Check that only end-of-sequence tokens and lengths end a sequence.

        Raises:
            ValueError: another rule is set; the message names it.
        """
        for name in ("stop_strings", "max_time"):
            value = getattr(self.config, name)
            if value is not None:
                raise ValueError(
                    f"{name}={value!r} of the target's generation config is not supported where "
                    "many texts are decoded side by side"
                )

    def for_prompts(self, count: int) -> list[GenerationSettings]:
        """Make the settings of several prompts, which are decoded one after another.

        The first prompt gets the user's processors and criteria, every other one a copy of them as
        they are now, so that what they remember of one text does not affect another.

        Raises:
            ValueError: a processor or a criterion cannot be copied.
        """
        settings = [self]
        for index in range(1, count):
            try:
                processors = copy.deepcopy(self.logits_processor)
                criteria = copy.deepcopy(self.stopping_criteria)
            except Exception as error:
                raise ValueError(
                    "logits_processor and stopping_criteria are copied for every prompt, which "
                    f"failed: {error}; pass one prompt at a time"
                ) from error
            settings.append(
                replace(self, index=index, logits_processor=processors, stopping_criteria=criteria)
            )
        return settings

    def max_length(self, prompt_length: int) -> int:
        """Return the tokens of the longest sequence, the prompt included.

        Raises:
            ValueError: the prompt has that length already.
        """
        if self.config.max_new_tokens is not None:
            return prompt_length + self.config.max_new_tokens
        if self.config.max_length is None:
            return prompt_length + self.default_new_tokens
        if self.config.max_length <= prompt_length:
            raise ValueError(
                f"max_length={self.config.max_length} leaves no room after a prompt of "
                f"{prompt_length} tokens: max_length counts the prompt, max_new_tokens does not"
            )
        return self.config.max_length

    def processors(
        self,
        prompt_ids: Sequence[int],
        padding: Sequence[int] = (),
        *,
        do_sample: bool | None = None,
        user: bool = True,
    ) -> LogitsProcessorList:
        """Make the logits processors of one sequence, in transformers' order.

        Args:
            prompt_ids: the prompt.
            padding: hidden tokens before the prompt.
            do_sample: whether to include the warpers of sampling; by default as the config says.
            user: whether to include the user's processors.

        Raises:
            ValueError: see `max_length`, or a processor refuses a value.
        """
        shown = [*padding, *prompt_ids]
        config = copy.copy(self.config)
        config.max_length = self.max_length(len(shown))
        if config.min_new_tokens is not None:
            config.min_length = config.min_new_tokens + len(shown)
        if do_sample is not None:
            config.do_sample = do_sample
        mask = torch.tensor([[0] * len(padding) + [1] * len(prompt_ids)]).to(self._device)
        # transformers reads them on the host even if no processor needs them.
        encoder_ids = torch.tensor([shown])
        if (config.encoder_repetition_penalty or 1) != 1 or config.encoder_no_repeat_ngram_size:
            encoder_ids = encoder_ids.to(self._device)
        allowed = self.prefix_allowed_tokens_fn
        try:
            processors = self._model.logits_processors(
                config,
                encoder_ids,
                prefix_allowed_tokens_fn=(
                    None if allowed is None else lambda _, ids: allowed(self.index, ids)
                ),
                logits_processor=LogitsProcessorList(self.logits_processor if user else ()),
                attention_mask=mask if padding else None,
                device=self._device,
            )
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise ValueError(f"a logits processor cannot be made: {error}") from error
        for place, processor in enumerate(processors):
            if type(processor) is TemperatureLogitsWarper:
                processors[place] = temperature_warper(processor.temperature)
            elif isinstance(processor, SequenceBiasLogitsProcessor):
                self._check_bias(processor)
        return processors

    def _check_bias(self, processor: SequenceBiasLogitsProcessor) -> None:
        """Call a processor once, since only its first call checks its tokens."""
        size = self._model.config.get_text_config().vocab_size
        # The first call builds tables of the sequences, which later calls use again.
        processor(
            torch.zeros(1, 1, dtype=torch.int64).to(self._device),
            torch.zeros(1, size).to(self._device),
        )

    def start(
        self,
        prompt_ids: Sequence[int],
        room: int,
        *,
        generator: torch.Generator | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        padding: Sequence[int] = (),
    ) -> tuple[Verifier, StoppingRules]:
        """Make the verifier and the stopping rules of one prompt.

        Args:
            prompt_ids: the prompt.
            room: number of new tokens that fit into the target's context.
            generator: generator of the draws; torch's global one by default.
            tokenizer: for stop strings.
            padding: hidden tokens before the prompt; `max_length` counts them.

        Raises:
            ValueError: the prompt leaves no room, or stop strings are given without a tokenizer.
        """
        length = len(padding) + len(prompt_ids)
        criteria = list(self.stopping_criteria)
        if self.config.max_time is not None:
            criteria.append(MaxTimeCriteria(self.config.max_time))
        rules = StoppingRules(
            eos_token_ids=self.eos_token_ids,
            max_new_tokens=self.max_length(length) - length,
            room=room,
            stop_strings=self.config.stop_strings,
            tokenizer=tokenizer,
            criteria=criteria,
            padding=padding,
        )
        processors = self.processors(prompt_ids, padding)
        sample = bool(self.config.do_sample)
        if not sample and not processors:
            return GreedyVerifier(), rules
        if sample and all(type(processor) in _ROWWISE for processor in processors):
            sampling = SamplingVerifier(1.0, 1.0, 0, generator, warpers=processors, rules=rules)
            return sampling, rules
        processing = ProcessingVerifier(
            processors, do_sample=sample, generator=generator, rules=rules, padding=padding
        )
        return processing, rules


def check_generation_config(
    config: PreTrainedConfig, defaults: GenerationConfig, device: torch.device
) -> None:
    """Check a target's generation config when the target is loaded.

    Args:
        config: the target's config.
        defaults: the target's generation config.
        device: the target's device.

    Raises:
        ValueError: a field is not supported, or has a value that is not allowed; the message names
            it.
    """
    where = "the target's generation config (generation_config.json)"
    source = f"{where}: "
    check_supported(defaults, source)
    check_fields(defaults, where)
    try:
        for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
            value = getattr(defaults, name, None)
            # Files have -1 for no padding token.
            read_token_ids(None if name == "pad_token_id" and value == -1 else value, name)
        settings = GenerationSettings.read(config, defaults, device, max_new_tokens=1)
        process_row(
            settings.processors([0]),
            [0],
            torch.zeros(config.get_text_config().vocab_size, device=device),
        )
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{source}{error}") from error
