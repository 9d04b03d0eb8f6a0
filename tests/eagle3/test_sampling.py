"""Sampling is exact: the joint distribution of three tokens is the target's own."""

import copy
import itertools
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from eaglerl.eagle3.draft_runner import CachedDraft
from eaglerl.eagle3.kv_cache import KVCache
from eaglerl.eagle3.params import TreeParams
from eaglerl.eagle3.session import DecodingSession
from eaglerl.eagle3.target import TargetModel
from eaglerl.eagle3.verify import GreedyVerifier, SamplingVerifier
from eaglerl.ops import DraftTree

from .tiny import tiny_head, tiny_model, tiny_runner

VOCAB, DRAFT_VOCAB = 10, 8
PROMPT = (3, 1, 4, 1, 5)
TREE = TreeParams(total_tokens=8, depth=2, top_k=3)
TEMPERATURE, TOP_K, TOP_P = 0.8, 7, 0.93
CAPACITY = 40
Triple = tuple[int, ...]


class MemoVerifier(SamplingVerifier):
    """Warps a row of logits once; every token is still drawn."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.known: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        # The memory of a row names it: the memo of the session keeps all of them alive.
        address = logits.data_ptr()
        if address not in self.known:
            self.known[address] = (logits, super().probabilities(logits))
        return self.known[address][1]


class FirstChildVerifier(MemoVerifier):
    """Wrong on purpose: takes the first child whatever the target says."""

    def accept(self, logits: torch.Tensor, tree: DraftTree) -> tuple[list[int], int]:
        parents = tree.parents.tolist()
        rows = [0]
        while rows[-1] in parents:
            rows.append(parents.index(rows[-1]))
        return rows, self.next_token(logits[rows[-1]])


class SecondTryVerifier(MemoVerifier):
    """Wrong in a subtler way: draws once more where the first draw met no child."""

    def accept(self, logits: torch.Tensor, tree: DraftTree) -> tuple[list[int], int]:
        rows, bonus = super().accept(logits, tree)
        if len(rows) == 1:
            rows, bonus = super().accept(logits, tree)
        return rows, bonus


class MemoSession(DecodingSession):
    """The real cycle over memoised passes: a prefix fixes its tree and the target's logits."""

    def __init__(
        self, target: TargetModel, draft: CachedDraft, verifier: SamplingVerifier, cache: KVCache
    ) -> None:
        super().__init__(target, draft, verifier, cache)
        self._source = DecodingSession(
            target, draft, GreedyVerifier(), target.new_cache(CAPACITY)
        )
        self._passes: dict[Triple, tuple[DraftTree, SimpleNamespace]] = {}
        output = target.forward_prompt(PROMPT)
        self._prompt_logits = output.clone()

    def prefill(self, prompt_ids: Triple) -> int:
        self.cache.lengths[self.slot] = len(prompt_ids)
        self.token_ids = [*prompt_ids, self.verifier.next_token(self._prompt_logits)]
        return self.token_ids[-1]

    def _keep_features(self, features: torch.Tensor) -> None:
        """Features are part of the memo."""

    def _compute(self, prefix: Triple, params: TreeParams) -> tuple[DraftTree, SimpleNamespace]:
        source = self._source
        DecodingSession.__init__(source, self.target, self.draft, source.verifier, source.cache)
        source.prefill(prefix[:-1])
        source.token_ids[-1] = prefix[-1]
        tree = source._draft_tree(params)
        output = source._verify_tree(tree)
        return tree, SimpleNamespace(logits=output.logits.clone(), features=torch.zeros(len(tree[0]), 1))

    def _draft_tree(self, params: TreeParams) -> DraftTree:
        prefix = tuple(self.token_ids)
        if prefix not in self._passes:
            self._passes[prefix] = self._compute(prefix, params)
        return self._passes[prefix][0]

    def _verify_tree(self, tree: DraftTree) -> SimpleNamespace:
        return self._passes[tuple(self.token_ids)][1]
