"""What a head loses where an engine runs only a part of it: acceptance, measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from eaglerl.eagle3.chain_acceptance import ChainAcceptance, chain_acceptance
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.target.target_model import TargetModel

CHAIN, NEW_TOKENS = 3, 64
#: Two each of arithmetic, code, facts and everyday requests; of no benchmark.
PROMPTS = (
    "A train leaves at 9:40 and arrives at 13:05. How long does the journey take?",
    "A recipe for 4 people needs 300 grams of rice. How much rice do 7 people need?",
    "Write a Python function that returns the longest word of a sentence.",
    "Add a docstring to this function: def area(width, height): return width * height",
    "Why does the moon look different from night to night?",
    "Name the largest oceans of the earth and say one thing about each.",
    "Write a short letter that thanks a neighbour for watering the plants.",
    "Give me three ideas for a rainy afternoon with two children.",
)


@dataclass(frozen=True)
class ExportLoss:
    """A head and what an engine runs of it, decoding the same prompts.

    Attributes:
        before: acceptance of the head itself.
        after: acceptance of what the engine runs.
    """

    before: ChainAcceptance
    after: ChainAcceptance

    def __str__(self) -> str:
        return (
            f"{self.after.mean_length:.2f} tokens per pass of the target instead of "
            f"{self.before.mean_length:.2f} (greedy, chains of {len(self.before.accepted)}, "
            f"{sum(map(len, self.before.texts))} tokens)"
        )


def measure_loss(
    target: TargetModel,
    head: Eagle3DraftHead,
    other: Eagle3DraftHead,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] = PROMPTS,
) -> ExportLoss:
    """Decode prompts with a head and with what an engine runs of it.

    Args:
        target: the target, with the head's feature layers.
        head: the head.
        other: the same head as an engine runs it, see `plan_export`.
        tokenizer: the target's; its chat template is used if there is one.
        prompts: the texts.
    """
    ids = [_encoded(tokenizer, prompt) for prompt in prompts]
    before, after = (
        chain_acceptance(target, each, ids, chain=CHAIN, new_tokens=NEW_TOKENS)
        for each in (head, other)
    )
    return ExportLoss(before, after)


def _encoded(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    if tokenizer.chat_template is None:
        return list(tokenizer(prompt).input_ids)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer(text, add_special_tokens=False).input_ids)
