"""A policy of your own: draft deeper while drafts are accepted, less deep while they are not.

    python examples/own_policy.py [TARGET HEAD]

A policy is any object with the three methods of `eaglerl.TreePolicy`. It decides how many tokens a
cycle yields, never which ones: the text is the same as without drafts.
"""

import sys

from eaglerl import SpeculativeDecoder, TreeParams
from eaglerl.eagle3 import CycleState, StepResult
from eaglerl.prepare import default_draft_path, prepare_model


class DeeperWhileAccepted:
    """A tree of two candidates a level, whose depth follows the accepted tokens."""

    def reset(self) -> None:
        """Begin a sequence."""
        self.depth = 2

    def choose(self, state: CycleState) -> TreeParams:
        """Return the tree of the next cycle."""
        return TreeParams(total_tokens=2 + 2 * self.depth, depth=self.depth, top_k=2)

    def observe(self, result: StepResult) -> None:
        """Learn what the cycle gave: here, only how many drafted tokens were accepted."""
        change = 1 if result.accepted > self.depth // 2 else -1
        self.depth = min(max(self.depth + change, 0), 5)


def main(target: str | None = None, head: str | None = None) -> None:
    """Decode one prompt with the policy and without drafts, and compare."""
    decoder = SpeculativeDecoder.from_pretrained(
        target or prepare_model(), head or default_draft_path()
    )
    prompt = decoder.tokenizer("Count: one, two, three, four,").input_ids
    output = decoder.generate(prompt, DeeperWhileAccepted(), max_new_tokens=48)
    plain = decoder.generate(prompt, TreeParams(total_tokens=1), max_new_tokens=48)

    print(decoder.tokenizer.decode(output.new_ids[0]))
    print("depths:", *(cycle.params.depth for cycle in output.statistics.cycles))
    print("mean acceptance length:", round(output.statistics.mean_acceptance_length, 2))
    print("same text as plain decoding:", output.sequences.tolist() == plain.sequences.tolist())


if __name__ == "__main__":
    main(*sys.argv[1:])
