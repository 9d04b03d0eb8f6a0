"""EAGLE-3 speculative decoding whose draft tree is chosen by a policy."""

from typing import TYPE_CHECKING

from eaglerl import _moved
from eaglerl._lazy import lazy_names

if TYPE_CHECKING:
    from eaglerl.eagle3.decoder import SpeculativeDecoder
    from eaglerl.eagle3.policy import TreeParams, TreePolicy
    from eaglerl.policies.policy_folder import load_policy

__version__ = "0.2.0"
__all__ = ["SpeculativeDecoder", "TreeParams", "TreePolicy", "load_policy"]

# Lazy, so that `import eaglerl` takes milliseconds: the first use of a name imports torch.
__getattr__, __dir__, _ = lazy_names(
    __name__,
    {
        "SpeculativeDecoder": "eaglerl.eagle3.decoder",
        "TreeParams": "eaglerl.eagle3.policy",
        "TreePolicy": "eaglerl.eagle3.policy",
        "load_policy": "eaglerl.policies.policy_folder",
    },
)
_moved.install()
