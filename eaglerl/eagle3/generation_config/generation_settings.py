"""What decodes and ends a text: a call's arguments merged with the target's generation config.

The merging and the logits processors are transformers' own, so that a text is the one that its
`generate` gives for the same arguments.
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
    Verifier,
    process_row,
    temperature_warper,
)
from eaglerl.eagle3.stopping import StoppingRules, read_token_ids

#: New tokens where neither the call nor the target's generation config says how many.
DEFAULT_NEW_TOKENS = 256
# What transformers takes in that place, of a call that is in its own terms.
_DEFAULT_MAX_LENGTH = 20

#: Processors without a state for which a row's logits are enough.
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
    """What one sequence is decoded with.

    Attributes:
        config: merged as transformers merges them, its special tokens prepared.
        eos_token_ids: tokens that end a sequence.
        default_new_tokens: new tokens where nothing says how many.
        logits_processor: the user's processors.
        stopping_criteria: the user's criteria.
        prefix_allowed_tokens_fn: see transformers; it is called with the number of the prompt.
        index: number of the prompt.
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

        What a call says wins over the target's config, and that over transformers' defaults. None
        means that a call does not say it. With `generation_config` or `do_sample` the call is in
        transformers' terms and everything is as its `generate` has it. Otherwise `temperature`
        decides: without one, or with 0, decoding is greedy; above, it samples, with the target's
        `top_k`, or all tokens where it names none.

        Args:
            config: the target's config.
            defaults: the target's generation config.
            device: of the logits.
            generation_config: see transformers' `generate`, like all others.
            logits_processor: called after those of the config, before those of sampling.
            stopping_criteria: end a sequence besides the rules of the config.
            prefix_allowed_tokens_fn: the tokens that may follow.
            options: fields of a generation config.

        Raises:
            ValueError: a value out of its range, or something that is not supported; the message
                names it.
            TypeError: an argument that there is none of, or of a wrong type.
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
        """What fills up a shorter sequence beside longer ones."""
        pad = self.config.pad_token_id
        # Files have -1 where there is none.
        if pad is not None and pad != -1:
            return read_token_ids(pad, "pad_token_id")[0]
        return self.eos_token_ids[0] if self.eos_token_ids else 0

    def check_ends_by_tokens(self) -> None:
        """Make sure that nothing but tokens and lengths ends a sequence.

        Raises:
            ValueError: the message names what else does.
        """
        for name in ("stop_strings", "max_time"):
            value = getattr(self.config, name)
            if value is not None:
                raise ValueError(
                    f"{name}={value!r} of the target's generation config is not supported where "
                    "many texts are decoded side by side"
                )

    def for_prompts(self, count: int) -> list[GenerationSettings]:
        """Settings for several prompts, which are decoded one after another.

        The first has the user's processors and criteria themselves, each other one copies of them
        as they are now, so that what they remember of one text has no part in another.

        Raises:
            ValueError: they cannot be copied.
        """
        settings = [self]
        for index in range(1, count):
            try:
                processors = copy.deepcopy(self.logits_processor)
                criteria = copy.deepcopy(self.stopping_criteria)
            except Exception as error:
                raise ValueError(
                    "logits_processor and stopping_criteria must be such as can be copied, for "
                    f"every prompt has its own: {error}; or pass one prompt at a time"
                ) from error
            settings.append(
                replace(self, index=index, logits_processor=processors, stopping_criteria=criteria)
            )
        return settings

    def max_length(self, prompt_length: int) -> int:
        """Tokens of the longest sequence, the prompt included.

        Raises:
            ValueError: the prompt is as long already.
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
        """The logits processors of one sequence, in transformers' order.

        Args:
            prompt_ids: the prompt.
            padding: tokens before it that a mask hides.
            do_sample: with those of sampling; as the settings say by default.
            user: with those of the user.

        Raises:
            ValueError: see `max_length`, or a value that a processor refuses.
        """
        shown = [*padding, *prompt_ids]
        config = copy.copy(self.config)
        config.max_length = self.max_length(len(shown))
        if config.min_new_tokens is not None:
            config.min_length = config.min_new_tokens + len(shown)
        if do_sample is not None:
            config.do_sample = do_sample
        mask = torch.tensor([[0] * len(padding) + [1] * len(prompt_ids)]).to(self._device)
        # transformers looks at them on the host, whether or not a processor needs them.
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
            raise ValueError(f"no logits processor can be made as asked for: {error}") from error
        for place, processor in enumerate(processors):
            if type(processor) is TemperatureLogitsWarper:
                processors[place] = temperature_warper(processor.temperature)
            elif isinstance(processor, SequenceBiasLogitsProcessor):
                self._check_bias(processor)
        return processors

    def _check_bias(self, processor: SequenceBiasLogitsProcessor) -> None:
        """Its first call finds tokens that are not in the vocabulary, which comes too late."""
        size = self._model.config.get_text_config().vocab_size
        # The answer to it, the tables that it makes of its sequences, is kept for the other calls.
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
        """What decodes and ends the sequence of one prompt.

        Args:
            prompt_ids: the prompt.
            room: new tokens that fit into the target's context.
            generator: of the draws; torch's global one by default.
            tokenizer: for stop strings.
            padding: tokens before the prompt that a mask hides; they count for `max_length`.

        Raises:
            ValueError: the prompt leaves no room, or stop strings without a tokenizer.
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
    """Make sure, when a target is loaded, that its own generation config can be honoured.

    Args:
        config: the target's config.
        defaults: its generation config.
        device: of the target.

    Raises:
        ValueError: it asks for something that is not supported, or holds a value of a wrong kind;
            the message names the field.
    """
    where = "the target's generation config (generation_config.json)"
    source = f"{where}: "
    check_supported(defaults, source)
    check_fields(defaults, where)
    try:
        for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
            value = getattr(defaults, name, None)
            # Files have -1 where there is no token to fill up with.
            read_token_ids(None if name == "pad_token_id" and value == -1 else value, name)
        settings = GenerationSettings.read(config, defaults, device, max_new_tokens=1)
        process_row(
            settings.processors([0]),
            [0],
            torch.zeros(config.get_text_config().vocab_size, device=device),
        )
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{source}{error}") from error
