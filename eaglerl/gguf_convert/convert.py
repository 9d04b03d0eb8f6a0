"""The conversion of one file: config, tokenizer, and the weights where they are asked for."""

from __future__ import annotations

from pathlib import Path

from eaglerl.files import link_or_copy
from eaglerl.gguf_convert.float32_weights import Progress, check_weights, write_float32
from eaglerl.gguf_convert.gguf_config import read_config
from eaglerl.gguf_convert.gguf_file import GGUFFile, read_gguf

GGUF_NAME = "model.gguf"
"""Name of the GGUF file itself in the folder."""
_WEIGHTS_BEGIN, _WEIGHTS_END = 0.3, 0.95


def convert_gguf(
    source: Path, output: Path, *, float32: bool = False, progress: Progress | None = None
) -> None:
    """Write config and tokenizer of a GGUF file as a transformers folder, with the file itself.

    Args:
        source: GGUF file of one of `ARCHITECTURES`, in any quantization that `gguf` can expand.
        output: existing folder. Files of the same names are overwritten, except complete files of
            weights, so that an interrupted conversion is resumed. The GGUF file in it is a hard
            link to `source` where the file system allows it, otherwise a copy.
        float32: write the weights in float32, too, as transformers' `from_pretrained` needs them.
        progress: called with each step and the fraction of the whole that is done.

    Raises:
        ValueError: the file is damaged, of another architecture, or has something that cannot be
            converted; the message names it.
    """
    report = progress or (lambda _stage, _fraction: None)
    report("loading libraries", 0.0)
    from transformers import GenerationConfig

    report("reading the model's metadata", 0.1)
    file = read_gguf(source)
    config = read_config(file)
    report("converting the tokenizer", 0.2)
    # Before the weights, which take the longest: what cannot be converted is refused early.
    _convert_tokenizer(file, config.vocab_size, output)
    config.save_pretrained(output)
    GenerationConfig.from_model_config(config).save_pretrained(output)

    def report_weights(stage: str, share: float) -> None:
        report(stage, _WEIGHTS_BEGIN + share * (_WEIGHTS_END - _WEIGHTS_BEGIN))

    if float32:
        write_float32(file, config, output, report_weights)
    else:
        check_weights(file, report_weights)
    link_or_copy(source, output / GGUF_NAME)
    report("done", 1.0)


def add_float32(folder: Path, output: Path, *, progress: Progress | None = None) -> list[str]:
    """Write the weights of a converted folder in float32, as `convert_gguf` does if asked to.

    Args:
        folder: what `convert_gguf` wrote.
        output: existing folder for the weights. Those that it holds are taken for complete.
        progress: called with each step and the fraction of the whole that is done.

    Returns:
        The names of the files; of several, their index comes last.

    Raises:
        ValueError: the GGUF file is damaged.
    """
    report = progress or (lambda _stage, _fraction: None)
    report("reading the model's metadata", 0.0)
    file = read_gguf(folder / GGUF_NAME)
    names = write_float32(file, read_config(file), output, report)
    report("done", 1.0)
    return names


def _convert_tokenizer(file: GGUFFile, vocab_size: int, output: Path) -> None:
    from transformers import AutoTokenizer

    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise file.error("there is no tokenizer: tokenizer.ggml.tokens must be a list of texts")
    if len(tokens) > vocab_size:
        raise file.error(
            f"tokenizer.ggml.tokens has {len(tokens)} texts for {vocab_size} rows of embeddings"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            file.path.parent, gguf_file=file.path.name, local_files_only=True
        )
    except Exception as error:
        # A damaged file can raise any exception in transformers and tokenizers.
        raise file.error(
            f"its tokenizer cannot be converted: {type(error).__name__}: {error}"
        ) from error
    tokenizer.save_pretrained(output)
