"""Options that several commands share, and the loading of what they name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from eaglerl.cli.shared.terminal import DebugOption, busy, notes, progress_bar
from eaglerl.packaged_models import DEFAULT_MODEL

if TYPE_CHECKING:
    import torch

    from eaglerl.eagle3 import SpeculativeDecoder
    from eaglerl.eagle3.cache.kv_cache import KVCacheDtype
    from eaglerl.eagle3.head.make_draft_runner import DraftDtype
    from eaglerl.eagle3.target.make_target import TargetPrecision
    from eaglerl.eagle3.target.weight_files import WeightFormat

_MODEL_PANEL = "Model"
DRAFTING_PANEL = "Drafting"
SAMPLING_PANEL = "Sampling"

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|FOLDER",
        help="Target model: a name that `prepare` knows, or a folder.",
        rich_help_panel=_MODEL_PANEL,
    ),
]
DraftOption = Annotated[
    Path | None,
    typer.Option(
        "--draft",
        "-d",
        metavar="FOLDER",
        help="Folder of the EAGLE-3 draft head; default: the head that comes with the model.",
        show_default=False,
        rich_help_panel=_MODEL_PANEL,
    ),
]
DraftDtypeOption = Annotated[
    str,
    typer.Option(
        metavar="DTYPE",
        help="Precision of the head's weights: auto, float32, bfloat16 or int8. "
        "It changes the speed, never the output.",
        rich_help_panel=_MODEL_PANEL,
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        metavar="PRECISION",
        help="Precision of the target: native multiplies the weights as they are stored; "
        "bfloat16 and int8 multiply them with rounded activations, which changes the text; "
        "float32 expands them. auto is native where the model has a GGUF file.",
        rich_help_panel=_MODEL_PANEL,
    ),
]
WeightsOption = Annotated[
    str,
    typer.Option(
        metavar="FORMAT",
        help="Format of the target's matrices in other precisions than float32: stored, or q8_0, "
        "q4_0 or q4_1 to quantise them to 8 or 4 bits while loading, which changes the text; "
        "bf16, f16, f32.",
        rich_help_panel=_MODEL_PANEL,
    ),
]
KVCacheDtypeOption = Annotated[
    str,
    typer.Option(
        metavar="DTYPE",
        help="KV cache of the target: bfloat16 and float16 halve its memory and change the text; "
        "auto is float32 on the CPU.",
        rich_help_panel=_MODEL_PANEL,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="CPU threads; default: one per core.",
        show_default=False,
        rich_help_panel=_MODEL_PANEL,
    ),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Decode on the nodes of a Ray cluster: auto for the one that this machine belongs to, "
        "local for one of this machine alone, or ray://HOST:10001. Needs the extra ray.",
        show_default=False,
    ),
]
FeatureLayersOption = Annotated[
    str | None,
    typer.Option(
        "--feature-layers",
        metavar="L,M,H",
        help="Layers whose inputs are the head's features, counted from 0; default: 2, N/2, N-3. "
        "Targets with few layers need this option. The head's config stores the choice.",
        show_default=False,
        rich_help_panel=_MODEL_PANEL,
    ),
]
TreeOption = Annotated[
    str | None,
    typer.Option(
        "--tree",
        metavar="T/D/K",
        help="Constant draft tree: rows verified per cycle, draft rounds after the first, width.",
        show_default=False,
        rich_help_panel=DRAFTING_PANEL,
    ),
]
PlainOption = Annotated[
    bool,
    typer.Option(
        "--plain",
        help="Decode one token per cycle, without drafting; needs no --draft.",
        rich_help_panel=DRAFTING_PANEL,
    ),
]
PolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        metavar="FOLDER|NAME|auto|none",
        help="What chooses the draft tree: auto learns while decoding; none is a small constant "
        "tree; or a trained policy, by its folder or the name of one that comes with eaglerl. "
        "Default: auto.",
        show_default=False,
        rich_help_panel=DRAFTING_PANEL,
    ),
]
TopPOption = Annotated[
    float,
    typer.Option(
        metavar="P", help="Nucleus size; 1 for all tokens.", rich_help_panel=SAMPLING_PANEL
    ),
]
StopAfterOption = Annotated[
    int,
    typer.Option("--max-new-tokens", "-n", min=1, metavar="N", help="Stop after this many tokens."),
]
SplitOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Which half of the questions, by a hash of the prompt: test, train, or all of them.",
    ),
]
TreeWidthsOption = Annotated[
    str, typer.Option("--top-k", metavar="K,...", help="Widths of the trees, ascending.")
]
TrainingDtypeOption = Annotated[
    str,
    typer.Option(
        metavar="DTYPE",
        help="float32, bfloat16, or auto: bfloat16 where the CPU has instructions for it.",
    ),
]


def question_paths(paths: Iterable[Path]) -> list[Path]:
    """Return files and folders of questions; for a missing ``questions/``, the packaged samples.

    An installed wheel has no folder ``questions/`` in the working directory, but the commands in
    the documents name it. The packaged samples are used then, and a note says so.
    """
    from eaglerl.prepare import sample_questions_path

    found: list[Path] = []
    taken = False
    for path in paths:
        if path.exists() or path.parts[:1] != ("questions",) or Path("questions").exists():
            found.append(path)
            continue
        samples, rest = sample_questions_path(), "/".join(path.parts[1:])
        # A shell passes a pattern on unchanged where nothing matches.
        matches = sorted(samples.glob(rest)) if rest else [samples]
        taken |= bool(matches)
        found.extend(matches or [path])
    if taken:
        notes().print("note: there is no folder questions/ here; using the packaged samples")
    return found


def resolve_model(model: str) -> Path:
    """Return the folder of a model that is given by its name or folder; prepare it if needed.

    Raises:
        ValueError: `model` is neither a known name nor a folder with a config.
    """
    from eaglerl.prepare import MODELS, is_prepared, model_path, prepare_model
    from eaglerl.prepared_folder import warn_if_without_gguf

    if model in MODELS:
        with progress_bar() as progress:
            return prepare_model(model, progress=progress)
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        warn_if_without_gguf(folder)
        return folder
    # A name that `prepare --gguf` gave has no slash.
    if Path(model).name == model and is_prepared(model_path(model)):
        warn_if_without_gguf(model_path(model))
        return model_path(model)
    if folder.suffix == ".gguf" and folder.is_file():
        raise ValueError(
            f"--model must be a folder, got a GGUF file; first run: eaglerl prepare --gguf {model}"
        )
    raise ValueError(
        f"--model must be one of {sorted(MODELS)}, a name that `eaglerl prepare --gguf` gave, or a "
        f"folder with a config.json, got {model!r}"
    )


def resolve_draft(draft: Path | None, model: str) -> Path:
    """Return the folder of the draft head: the one given, else the one that comes with `model`.

    Raises:
        ValueError: none is given and none comes with `model`, or the folder has no config.
    """
    from eaglerl.prepare import MODELS, default_draft_path

    if draft is None:
        if model not in MODELS:
            raise ValueError(
                f"--draft must be given: no head comes with the model {model!r}; "
                "plain decoding (--plain) needs none"
            )
        return default_draft_path(model)
    folder = draft.expanduser()
    if not (folder / "config.json").is_file():
        raise ValueError(f"--draft must be a folder with a config.json, got {str(draft)!r}")
    return folder


@dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """The options of a command that loads a target and its draft head."""

    model: ModelOption = DEFAULT_MODEL
    draft: DraftOption = None
    draft_dtype: DraftDtypeOption = "auto"
    precision: PrecisionOption = "auto"
    weights: WeightsOption = "stored"
    kv_cache_dtype: KVCacheDtypeOption = "auto"
    threads: ThreadsOption = None
    debug: DebugOption = False


def load_decoder(settings: DecoderSettings, *, plain: bool = False) -> SpeculativeDecoder:
    """Load target, draft head and tokenizer, with a note on the terminal.

    Args:
        settings: which, in what precision, and on how many threads of the CPU.
        plain: decode plainly, for which no head is loaded unless the settings name one.

    Raises:
        ValueError: a setting names no model, head, precision, format of weights or dtype.
    """
    model, draft = settings.model, settings.draft
    target_path = resolve_model(model)
    draft_path = None if plain and draft is None else resolve_draft(draft, model)
    with busy("loading the model"):
        import torch
        from transformers.utils.logging import disable_progress_bar

        from eaglerl.eagle3 import SpeculativeDecoder

        # transformers' own progress bar would be drawn over ours.
        disable_progress_bar()
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        return SpeculativeDecoder.from_pretrained(
            target_path,
            draft_path,
            draft_dtype=cast("DraftDtype", settings.draft_dtype),  # checked there
            precision=cast("TargetPrecision", settings.precision),
            weights=cast("WeightFormat", settings.weights),
            kv_cache_dtype=cast("KVCacheDtype", settings.kv_cache_dtype),
        )


def encode(decoder: SpeculativeDecoder, prompt: str, *, chat: bool | None = None) -> torch.Tensor:
    """Return a prompt's token ids, (1, n) int64.

    Args:
        decoder: whose target reads the prompt.
        prompt: the text.
        chat: put the text into the model's chat template as the user's turn; None does so if
            there is a template.

    Raises:
        ValueError: `chat` is true and there is no chat template.
    """
    import torch

    tokenizer = decoder.tokenizer
    assert tokenizer is not None, "a decoder that is loaded from folders has its tokenizer"
    if chat is None:
        chat = tokenizer.chat_template is not None
    if not chat:
        return torch.tensor([tokenizer(prompt).input_ids], dtype=torch.int64)
    if tokenizer.chat_template is None:
        raise ValueError("the model has no chat template; use --raw")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return torch.tensor([ids], dtype=torch.int64)
