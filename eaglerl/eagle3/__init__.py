"""EAGLE-3 speculative decoding: a target, a draft head, and the loop that joins them."""

from eaglerl.eagle3.batch.batch_policy import BatchPolicy, SlotState
from eaglerl.eagle3.batch.batched_sequence import BatchedSequence
from eaglerl.eagle3.batch.decoder_batch import DecoderBatch
from eaglerl.eagle3.decoder import SpeculativeDecoder
from eaglerl.eagle3.fused_policy import FusedPolicy
from eaglerl.eagle3.generation import Generation
from eaglerl.eagle3.head.draft_config import Eagle3Config
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.output import DecodingStatistics, GenerateOutput
from eaglerl.eagle3.policy import (
    NO_DRAFT,
    ConstantPolicy,
    CycleState,
    DraftPlan,
    DraftProgress,
    StagedPolicy,
    StepResult,
    TreeParams,
    TreePolicy,
)
from eaglerl.eagle3.session import DecodingSession
from eaglerl.eagle3.target.make_target import load_target, make_target
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.eagle3.tree.prompt_lookup import ContextLookup, Lookup

__all__ = [
    "NO_DRAFT",
    "BatchPolicy",
    "BatchedSequence",
    "ConstantPolicy",
    "ContextLookup",
    "CycleState",
    "DecoderBatch",
    "DecodingSession",
    "DecodingStatistics",
    "DraftPlan",
    "DraftProgress",
    "Eagle3Config",
    "Eagle3DraftHead",
    "FusedPolicy",
    "GenerateOutput",
    "Generation",
    "Lookup",
    "SlotState",
    "SpeculativeDecoder",
    "StagedPolicy",
    "StepResult",
    "TargetModel",
    "TreeParams",
    "TreePolicy",
    "load_target",
    "make_target",
]
