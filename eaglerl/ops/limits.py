"""The largest policies and trees that are read from files, far beyond what pays anywhere."""

#: Trees that a policy can choose from.
MAX_ACTIONS = 1024
#: Windows that a policy decides for at once.
MAX_HORIZON = 1024
#: Width of an observation: that of three layers of 43,690.
MAX_WIDTH = 1 << 17
#: Parameters of one tree.
LARGEST_TREE = {"total_tokens": 4096, "depth": 128, "top_k": 256}
#: Candidates of one tree, top_k + depth * top_k^2: memory for all of them is allocated before the
#: first is drafted.
LARGEST_POOL = 1 << 20
