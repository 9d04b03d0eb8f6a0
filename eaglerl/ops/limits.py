"""The largest policies and trees that are read from files: far above any useful size."""

#: Actions of a policy.
MAX_ACTIONS = 1024
#: Decisions that a policy makes at once.
MAX_HORIZON = 1024
#: Width of an observation: three layers of 43,690.
MAX_WIDTH = 1 << 17
#: The smallest parameters of an action: a tree, and tokens to look up.
SMALLEST_ACTION = {"total_tokens": 1, "depth": 0, "top_k": 1, "lookup_tokens": 0}
#: Parameters of one tree.
LARGEST_TREE = {"total_tokens": 4096, "depth": 128, "top_k": 256}
#: Candidates of one tree, top_k + depth * top_k^2: memory for all of them is allocated before
#: drafting begins.
LARGEST_POOL = 1 << 20
