"""Your own target and head: plain decoding, a constant tree, and the tree with prompt lookup.

    python examples/own_model.py TARGET HEAD ["a prompt"]

TARGET is a folder with a transformers model and its tokenizer, HEAD a folder with an EAGLE-3 head
for it, in the layout of EAGLE, SpecForge, ModelOpt or speculators. Without them, the packaged model
is used. None of the three modes needs training; `eaglerl compare -M tuned` finds the best tree.
"""

import sys

from eaglerl import SpeculativeDecoder, TreeParams
from eaglerl.eagle3 import DraftPlan
from eaglerl.prepare import default_draft_path, prepare_model


def main(
    target: str | None = None,
    head: str | None = None,
    prompt: str = "The seven days of the week are",
) -> None:
    """Decode a prompt in three modes and print the text and a line for each mode."""
    decoder = SpeculativeDecoder.from_pretrained(
        target or prepare_model(), head or default_draft_path()
    )
    tree = TreeParams(total_tokens=6, depth=2, top_k=4)
    modes = {
        "plain": TreeParams(total_tokens=1),
        "constant tree 6/2/4": tree,
        "with prompt lookup": DraftPlan(tree, lookup_tokens=6),
    }
    ids = decoder.tokenizer(prompt).input_ids
    texts = []
    for name, policy in modes.items():
        output = decoder.generate(ids, policy, max_new_tokens=48)
        texts.append(decoder.tokenizer.decode(output.new_ids[0]))
        statistics = output.statistics
        print(
            f"{name:20} {statistics.tokens_per_second:6.1f} tokens/s, "
            f"mean acceptance length {statistics.mean_acceptance_length:.2f}"
        )
    print("all texts equal:", len(set(texts)) == 1)
    print(texts[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
