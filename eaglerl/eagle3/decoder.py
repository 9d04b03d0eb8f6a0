"""`SpeculativeDecoder`: a target and its draft head, used like transformers' `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Unpack, cast

from transformers import PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from eaglerl._renamed import RenamedAttribute, renamed_arguments
from eaglerl.eagle3.batch.batch_policy import BatchPolicy
from eaglerl.eagle3.batch.batch_session import BatchSession
from eaglerl.eagle3.batch.decode_prompts import decode_together
from eaglerl.eagle3.batch.decoder_batch import PROMPT_SECONDS, Beginning, DecoderBatch
from eaglerl.eagle3.batch.fused_slots import FusedSlots
from eaglerl.eagle3.begin_prompt import begin_prompt, read_for_target
from eaglerl.eagle3.eagle_signature import EagleSignature
from eaglerl.eagle3.fit import check_fit, plain_policy
from eaglerl.eagle3.generation import Generation
from eaglerl.eagle3.generation_config.generation_options import GenerationOptions
from eaglerl.eagle3.generation_config.generation_settings import GenerationSettings
from eaglerl.eagle3.head.cached_draft import CachedDraft
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.head.make_draft_runner import DraftDtype, make_draft_runner
from eaglerl.eagle3.layers.row_batch import MOST_EXACT_ROWS
from eaglerl.eagle3.loading import load_pair
from eaglerl.eagle3.named_policies import NamedPolicies, PolicyChoice, share_policy
from eaglerl.eagle3.output import GenerateOutput
from eaglerl.eagle3.policy import NO_DRAFT, ConstantPolicy, TreeParams, TreePolicy, as_plan
from eaglerl.eagle3.prompt_inputs import (
    AttentionMask,
    PromptIds,
    Prompts,
    check_token_ids,
)
from eaglerl.eagle3.sampling import seeded_generator
from eaglerl.eagle3.session import DecodingSession
from eaglerl.eagle3.session_factory import TREE_ROOM, SessionFactory
from eaglerl.eagle3.target.make_target import TargetOptions
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.eagle3.tree.tree_drafter import check_top_k
from eaglerl.eagle3.verifier import Verifier

#: The tree without a policy: the best constant tree of the README's comparison, on a CPU.
DEFAULT_TREE = TreeParams(6, 2, 4)


class SpeculativeDecoder(EagleSignature):
    """A target and an EAGLE-3 draft head that generate together; the text is the target's own.

    Threads may share a decoder: every generation has its own caches, and they take turns by cycles.

    Attributes:
        target: the target.
        draft_head: the draft head; None for plain decoding alone.
        draft_runner: runs the head over a KV cache; None without a head.
        default_policy: the policy of `generate` where it is given none.
        tokenizer: the target's tokenizer, for stop strings; None if there is none.
    """

    head = RenamedAttribute("draft_head")
    draft = RenamedAttribute("draft_runner")

    @renamed_arguments(draft="draft_head")
    def __init__(
        self,
        target: TargetModel,
        draft_head: Eagle3DraftHead | None,
        *,
        draft_dtype: DraftDtype = "auto",
        default_policy: PolicyChoice | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        """Join a target and a head.

        Args:
            target: the target; its `feature_layers` must be those that the head was trained on.
            draft_head: the head; it takes the target's embedding table if it has none. None decodes
                plainly, one token per pass of the target, and takes no policy.
            draft_dtype: dtype of the head's products on the packed CPU path. The text does not
                depend on it.
            default_policy: a constant tree, a policy, or "auto" for an `AutoPolicy`; "auto" if
                None, and `DEFAULT_TREE` on a device other than the CPU.
            tokenizer: the target's tokenizer, for stop strings.
            cuda_graphs: capture the parts of a cycle as CUDA graphs, each at its second use.

        Raises:
            ValueError: the head does not fit the target, or `cuda_graphs` without a CUDA device.
            RuntimeError: `cuda_graphs` without Triton.
        """
        self.target, self.draft_head, self.tokenizer = target, draft_head, tokenizer
        self.draft_runner: CachedDraft | None = None
        if draft_head is None:
            self.default_policy: PolicyChoice = plain_policy(default_policy or NO_DRAFT)
            self._sessions = SessionFactory(target, None, None, cuda_graphs=cuda_graphs)
            return
        check_fit(target, draft_head)
        if not draft_head.has_embedding:
            draft_head.set_embed_tokens(target.embedding)
        vocab_size = draft_head.config.draft_vocab_size
        self.draft_runner = make_draft_runner(draft_head, capacity=TREE_ROOM, dtype=draft_dtype)
        fuse = partial(FusedSlots, head=draft_head, reduce=self.draft_runner.reduce)
        self._named = NamedPolicies(vocab_size, target.device.type, DEFAULT_TREE, fuse)
        self.default_policy = self._named.check(default_policy)
        runner = self.draft_runner
        self._sessions = SessionFactory(target, draft_head, runner, cuda_graphs=cuda_graphs)

    @classmethod
    def from_pretrained(
        cls,
        target: str | Path,
        draft: str | Path | None,
        *,
        feature_layers: Sequence[int] | None = None,
        draft_dtype: DraftDtype = "auto",
        default_policy: PolicyChoice | None = None,
        cuda_graphs: bool = False,
        **options: Unpack[TargetOptions],
    ) -> SpeculativeDecoder:
        """Load a target and a draft head from their folders.

        Args:
            target: folder or hub name of the target.
            draft: folder of the draft head, in EAGLE's, SpecForge's or speculators' layout; None
                for plain decoding alone.
            feature_layers: the layers whose inputs are the features; None takes those of the
                head's config. Where their ids can mean two sets of layers (see
                `feature_layers.other_reading`), both are compared on a page of text, and a warning
                names the better one.
            draft_dtype: see `__init__`.
            default_policy: see `__init__`.
            cuda_graphs: see `__init__`.
            options: backend, dtype, device, precision, weights and kv_cache_dtype, see
                `load_target`.

        Raises:
            ValueError: a checkpoint breaks an invariant, or the two do not fit.
        """
        model, head, tokenizer = load_pair(target, draft, feature_layers=feature_layers, **options)
        return cls(
            model,
            head,
            draft_dtype=draft_dtype,
            default_policy=default_policy,
            tokenizer=tokenizer,
            cuda_graphs=cuda_graphs,
        )

    def generate(
        self,
        input_ids: PromptIds | None = None,
        policy: PolicyChoice | None = None,
        *,
        inputs: PromptIds | None = None,
        attention_mask: AttentionMask | None = None,
        seed: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        streamer: BaseStreamer | None = None,
        **options: Unpack[GenerationOptions],
    ) -> GenerateOutput:
        """Continue one prompt or several.

        Several greedy prompts are decoded together: on the CPU with a constant tree, "auto" or a
        `FusedPolicy`, on CUDA with a constant tree or a `RuledPolicy`; others one after another.

        The text is that of transformers' `generate` for the same arguments. Options that are not
        given come from the target's generation config, with the exceptions that
        `GenerationOptions` names.

        Args:
            input_ids: token ids (n,) or (1, n) of one prompt, (B, n) of several, or a list of
                prompts; as tensors, arrays or lists; or a tokenizer's output, which holds them.
            policy: a constant tree, a policy that chooses the tree of every cycle, or "auto" for
                the decoder's own `AutoPolicy`; `default_policy` if None.
            inputs: transformers' other name of `input_ids`.
            attention_mask: (B, n), 0 for padding, as transformers' tokenizers give it. Without a
                mask the target's padding token is padding, unless it also ends a text.
            seed: seed of the draws; None draws from torch's global generator.
            tokenizer: for `stop_strings`; the decoder's own by default.
            streamer: a transformers streamer, for one prompt only.
            options: see `GenerationOptions`. Its `top_k` is that of sampling; the width of the
                draft tree is `TreeParams.top_k`.

        Returns:
            Sequences, finish reasons and statistics. As in transformers, the output of a padded
            batch is ``sequences[:, n:]``.

        Raises:
            ValueError: an argument is out of range or not supported, a token id is not in the
                target's vocabulary, or a prompt is empty or longer than the target's context. It is
                raised before anything is decoded.
            TypeError: `policy` is no policy, or there is no such argument.
        """
        settings = self.read_options(**options)
        prompts = read_for_target(self.target, settings, input_ids, attention_mask, inputs)
        if streamer is not None and len(prompts) > 1:
            raise ValueError(f"streamer takes one prompt at a time, got {len(prompts)}")
        chosen = self._check(prompts, policy)
        generator = seeded_generator(seed, self.target.device)
        begun = [
            begin_prompt(
                one,
                prompt,
                self.target.max_positions,
                generator=generator,
                tokenizer=tokenizer or self.tokenizer,
            )
            for one, prompt in zip(settings.for_prompts(len(prompts)), prompts, strict=True)
        ]
        generations = self._sessions.slots.decode(chosen, prompts.token_ids, begun)
        if generations is None and len(prompts) > 1 and (shared := self._share(chosen)) is not None:
            generations = decode_together(
                self.target, self.draft_runner, shared, prompts.token_ids, begun, spare=TREE_ROOM
            )
        if generations is None:
            generations = []
            for prompt, (verifier, rules) in zip(prompts, begun, strict=True):
                with Generation(
                    self._sessions, prompt.token_ids, rules, chosen, verifier
                ) as generation:
                    generation.run(streamer, prompt.row)
                generations.append(generation)
        return GenerateOutput.of(prompts, generations, settings.pad_token_id)

    def start(
        self,
        input_ids: PromptIds | None = None,
        policy: PolicyChoice | None = None,
        *,
        inputs: PromptIds | None = None,
        attention_mask: AttentionMask | None = None,
        seed: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        top_logprobs: int | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generation:
        """Begin the continuation of one prompt, which the caller runs cycle by cycle.

        Args:
            input_ids: one prompt, in any form that `generate` takes.
            policy: see `generate`.
            inputs: see `generate`.
            attention_mask: see `generate`.
            seed: see `generate`.
            tokenizer: see `generate`.
            top_logprobs: see `Generation`.
            options: see `GenerationOptions`.

        Returns:
            The generation; its first `advance` reads the prompt. It holds caches until it ends, is
            closed, or is garbage collected.

        Raises:
            ValueError: see `generate`.
            TypeError: see `generate`.
        """
        prompt_ids, chosen, verifier, rules = self._begin_one(
            "start",
            input_ids,
            policy,
            inputs=inputs,
            attention_mask=attention_mask,
            seed=seed,
            tokenizer=tokenizer,
            **options,
        )
        return Generation(
            self._sessions, prompt_ids, rules, chosen, verifier, top_logprobs=top_logprobs
        )

    def start_batch(
        self,
        *,
        slots: int = 8,
        max_length: int | None = None,
        policy: PolicyChoice | BatchPolicy | None = None,
        prefix_tokens: int = 0,
    ) -> DecoderBatch:
        """Open slots for prompts that are decoded together and begin and end at any time.

        Args:
            slots: most sequences at once.
            max_length: tokens of the longest sequence, prompt included; the target's context length
                if None. A slot's caches have room for it; memory is taken as it is written.
            policy: decides for the sequences that are given none. "auto", or another `BatchPolicy`,
                decides for all of them together; of any other policy, each takes it or a fork.
                `default_policy` if None.
            prefix_tokens: most tokens whose cache rows are kept for prompts that begin with them;
                0 for none. The text is the same.

        Raises:
            ValueError: the target is not on the CPU, a number is out of range, the target keeps no
                prefixes (see `BatchSession`), or see `generate`.
            TypeError: `policy` is no policy.
        """
        most = self.target.max_positions
        length = most if max_length is None else min(max_length, most)
        choice = self.default_policy if policy is None else policy
        if self.draft_head is None:
            policies = share_policy(plain_policy(cast("PolicyChoice", choice)))
        else:
            policies = self._named.for_slots(choice, slots)
        session = BatchSession(
            self.target,
            self.draft_runner,
            policies,
            slots=slots,
            capacity=length + TREE_ROOM,
            prompt_rows=MOST_EXACT_ROWS,
            prompt_seconds=PROMPT_SECONDS if self.target.mixes_slots else None,
            prefix_tokens=prefix_tokens,
        )
        return DecoderBatch(session, self._begin_one, length)

    def read_options(self, **options: Unpack[GenerationOptions]) -> GenerationSettings:
        """Merge the options of a call with the target's generation config.

        Raises:
            ValueError: an option is out of range or not supported; the message names it.
            TypeError: there is no such option.
        """
        target = self.target
        return GenerationSettings.read(
            target.config, target.generation_config, target.device, **options
        )

    def new_session(
        self, verifier: Verifier, length: int, policy: TreePolicy | None = None
    ) -> DecodingSession:
        """Open a session whose caches have room for `length` tokens.

        The caches go back to the decoder when the session is closed or garbage collected.

        Args:
            verifier: greedy or sampling, see `make_verifier`.
            length: tokens of the longest sequence, prompt included.
            policy: chooses the trees. No other session uses it meanwhile: if another has it
                already, this one takes a fork. See `DecodingSession.tree_policy`.

        Raises:
            ValueError: a `FusedPolicy` does not fit the draft head, another session uses the policy
                and it cannot fork, another session uses the verifier and it reads the text, or
                `length` is negative.
        """
        if length < 0:
            raise ValueError(f"length must be 0 or positive, got {length}")
        return self._sessions.new_session(verifier, length, policy)

    def _begin_one(
        self,
        caller: str,
        input_ids: PromptIds | None,
        policy: PolicyChoice | None,
        *,
        inputs: PromptIds | None,
        attention_mask: AttentionMask | None,
        seed: int | None,
        tokenizer: PreTrainedTokenizerBase | None,
        longest: int | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Beginning:
        """Read the arguments of `start`; a text ends at `longest` tokens, prompt included."""
        settings = self.read_options(**options)
        prompts = read_for_target(self.target, settings, input_ids, attention_mask, inputs)
        prompt = prompts.only(caller)
        chosen = self._check(prompts, policy)
        verifier, rules = begin_prompt(
            settings,
            prompt,
            longest or self.target.max_positions,
            generator=seeded_generator(seed, self.target.device),
            tokenizer=tokenizer or self.tokenizer,
        )
        return prompt.token_ids, chosen, verifier, rules

    def _share(self, policy: TreePolicy) -> BatchPolicy | None:
        """Return what decides for several prompts; None if they are decoded one by one."""
        if self.target.device.type != "cpu":
            return None
        # Without a draft head, every policy is a constant one.
        return share_policy(policy) if self.draft_head is None else self._named.for_batch(policy)

    def _check(
        self,
        prompts: Prompts,
        policy: PolicyChoice | None,
    ) -> TreePolicy:
        """Check the prompts and the policy of a generation; return the policy to use."""
        check_token_ids(prompts.token_ids, self.target.vocab_size, self.target.max_positions)
        choice = self.default_policy if policy is None else policy
        if self.draft_head is None:
            return plain_policy(choice)
        chosen = self._named.find(choice)
        if isinstance(chosen, ConstantPolicy):
            check_top_k(as_plan(chosen.params).params, self.draft_head.config.draft_vocab_size)
        return chosen
