"""The native extension, loaded after torch so that both share one OpenMP pool."""

import functools
import warnings

# Importing torch loads the OpenMP runtime into the process, where the extension looks for it.
import torch

try:
    import eaglerl._C as C
except ImportError as error:
    raise ImportError(
        "eaglerl's native extension eaglerl._C is missing or was built for another Python. "
        "Build it with 'pip install -e .' in a clone (needs a C++ compiler), "
        "or reinstall the package."
    ) from error

__all__ = ["C", "build_info", "thread_count"]

if C.threading_backend() == "none":
    warnings.warn(
        "No OpenMP runtime (GOMP_parallel) was found in this process: eaglerl's CPU ops run on "
        "one thread.",
        stacklevel=2,
    )


def thread_count() -> int:
    """Return the number of threads that native ops may use now, as `torch.set_num_threads` set it.

    Within a cycle `torch.get_num_threads` may be lower (see `eaglerl.eagle3.thread_limit`). The
    extension applies the same limit to its own regions, except where it tries more.
    """
    return C.cycle_threads() or torch.get_num_threads()


@functools.cache
def _fixed_info() -> dict[str, str | bool]:
    return {
        "compiler": C.compiler,
        "threading": C.threading_backend(),
        "cuda": C.has_cuda,
        "available_isas": ", ".join(C.available_isas()),
    }


def build_info() -> dict[str, str | bool]:
    """Describe how the extension was built and what it uses on this machine.

    Returns:
        ``compiler``; ``isa``, the instruction set in use; ``available_isas``; ``threading``
        ("gomp", or "none" where loops are serial); ``cuda``, whether CUDA kernels were built.
    """
    return {"isa": C.cpu_isa(), **_fixed_info()}
