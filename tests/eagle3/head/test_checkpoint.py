"""Files of a head: three layouts, two formats, and every broken invariant."""

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eaglerl.eagle3.head import draft_checkpoint as checkpoint
from eaglerl.eagle3.head.draft_checkpoint import complete_state_dict
from eaglerl.eagle3.head.draft_config import Eagle3Config
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.head.module_draft import ModuleDraft

from ..heads import (
    DRAFT_VOCAB,
    VOCAB,
    eagle_json,
    eagle_tensors,
    make_config,
    make_head,
    specforge_json,
    speculators_json,
    speculators_tensors,
    write_files,
)

Tensors = dict[str, torch.Tensor]


def logits_of(head: Eagle3DraftHead) -> torch.Tensor:
    """Draft logits after a short prompt."""
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(VOCAB, (5,), generator=generator)
    features = torch.randn(5, 3 * head.config.feature_hidden_size, generator=generator)
    return ModuleDraft(head, capacity=8).extend(tokens, features)[1]


@pytest.fixture
def head() -> Eagle3DraftHead:
    return make_head(make_config())


def test_three_layouts_give_identical_logits(tmp_path: Path, head: Eagle3DraftHead) -> None:
    config, table = head.config, head.embed_tokens
    folders = [
        write_files(tmp_path / "eagle", eagle_json(config), eagle_tensors(head)),
        write_files(tmp_path / "specforge", specforge_json(config), eagle_tensors(head)),
        write_files(tmp_path / "speculators", speculators_json(config), speculators_tensors(head)),
    ]
    expected = logits_of(head)
    for folder in folders:
        loaded = Eagle3DraftHead.from_pretrained(
            folder, embed_tokens=table, aux_layer_convention="output"
        )
        assert torch.equal(logits_of(loaded), expected)
        assert torch.equal(loaded.draft_to_target, head.draft_to_target)
        assert not loaded.training


@pytest.mark.parametrize(
    "changes",
    [
        {"fc_norm": True},
        {"norm_before_fc": True},
        {"norm_before_residual": True},
        {"norm_output": False},
        {"norm_feedback": True},
        {"draft_vocab_size": VOCAB},
        {"target_hidden_size": 20},
        {"qk_norm": True},
        {"sliding_window": 3},
        {"feature_layers": (1, 2, 4)},
    ],
)
def test_saved_heads_load_again(tmp_path: Path, changes: dict[str, object]) -> None:
    head = make_head(make_config(**changes))
    head.save_pretrained(tmp_path / "new" / "folder")
    loaded = Eagle3DraftHead.from_pretrained(
        tmp_path / "new" / "folder", embed_tokens=head.embed_tokens
    )
    assert loaded.config == head.config
    assert torch.equal(logits_of(loaded), logits_of(head))
    assert loaded.owns_embedding == (head.config.target_hidden_size is not None)


def test_save_writes_eagles_keys_in_the_wanted_dtype(tmp_path: Path, head: Eagle3DraftHead) -> None:
    head.save_pretrained(tmp_path, dtype=torch.float16)
    written = load_file(tmp_path / "model.safetensors")
    assert set(written) == set(eagle_tensors(head))
    assert {tensor.dtype for tensor in written.values()} == {
        torch.float16,
        torch.int64,
        torch.bool,
    }
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = Eagle3DraftHead.from_pretrained(tmp_path)
    assert loaded.fc.weight.dtype == torch.float32
    assert torch.equal(loaded.fc.weight, head.fc.weight.half().float())
    assert loaded.embed_tokens is None


def test_failed_save_leaves_the_old_files(
    tmp_path: Path, head: Eagle3DraftHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    head.save_pretrained(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    write_bytes = Path.write_bytes

    def fail(path: Path, data: bytes) -> int:
        write_bytes(path, data[: len(data) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        make_head(make_config(), seed=1).save_pretrained(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_bin_files(tmp_path: Path, head: Eagle3DraftHead) -> None:
    (tmp_path / "config.json").write_text(json.dumps(eagle_json(head.config)))
    torch.save(eagle_tensors(head), tmp_path / "pytorch_model.bin")
    loaded = Eagle3DraftHead.from_pretrained(tmp_path, embed_tokens=head.embed_tokens)
    assert torch.equal(logits_of(loaded), logits_of(head))


class _Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("evil"),)


def test_bin_files_cannot_run_code(
    tmp_path: Path, head: Eagle3DraftHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(eagle_json(head.config)))
    torch.save(eagle_tensors(head) | {"norm.weight": _Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin' cannot be read"):
        Eagle3DraftHead.from_pretrained(tmp_path)
    assert not (tmp_path / "evil").exists()


def test_sharded_files(tmp_path: Path, head: Eagle3DraftHead) -> None:
    tensors = eagle_tensors(head)
    (tmp_path / "config.json").write_text(json.dumps(eagle_json(head.config)))
    names = {key: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(tensors)}
    for name in set(names.values()):
        save_file({key: tensors[key] for key in tensors if names[key] == name}, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    loaded = Eagle3DraftHead.from_pretrained(tmp_path, embed_tokens=head.embed_tokens)
    assert torch.equal(logits_of(loaded), logits_of(head))
    index.write_text(json.dumps({"weight_map": {"fc.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match="elsewhere"):
        Eagle3DraftHead.from_pretrained(tmp_path)
    index.write_text("[]")
    with pytest.raises(ValueError, match=r"index of weights .* must be an object"):
        Eagle3DraftHead.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight_map": {"a": "model.safetensors.index.json"}}, "'model.safetensors.index.json'"),
        ({"weight_map": {"a": "/etc/passwd"}}, "'/etc/passwd'"),
        ({"weight_map": {"a": ".."}}, "'..'"),
        ({"weight_map": {"a": "missing.safetensors"}}, "missing.safetensors.*no such file"),
        ({"weight_map": {"a": "pipe.safetensors"}}, "must be a regular file, got a pipe"),
        ({"weight_map": {"a": ["x"]}}, r"'weight_map.a' of the index .* must be a text"),
        ({"weight_map": {}}, "weight_map"),
    ],
)
def test_an_index_names_regular_files_of_its_folder(
    tmp_path: Path, head: Eagle3DraftHead, content: object, message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(eagle_json(head.config)))
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        Eagle3DraftHead.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_must_be_finite(tmp_path: Path, head: Eagle3DraftHead, value: float) -> None:
    tensors = eagle_tensors(head)
    tensors["midlayer.mlp.up_proj.weight"][3, 1] = value
    write_files(tmp_path, eagle_json(head.config), tensors)
    with pytest.raises(ValueError, match=r"midlayer\.mlp\.up_proj\.weight.* must be finite"):
        Eagle3DraftHead.from_pretrained(tmp_path)


def test_a_bin_file_names_no_more_than_it_holds(tmp_path: Path, head: Eagle3DraftHead) -> None:
    (tmp_path / "config.json").write_text(json.dumps(eagle_json(head.config)))
    vast = torch.zeros(1).expand(1 << 20, 1 << 20)
    torch.save({"fc.weight": vast}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="elements are all in the file"):
        Eagle3DraftHead.from_pretrained(tmp_path)


def test_prefixes_and_rotary_buffers(tmp_path: Path, head: Eagle3DraftHead) -> None:
    tensors = {f"model.{key}": tensor for key, tensor in speculators_tensors(head).items()}
    tensors["lm_head.weight"] = tensors.pop("model.lm_head.weight")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    write_files(tmp_path, eagle_json(head.config), tensors)
    loaded = Eagle3DraftHead.from_pretrained(tmp_path, embed_tokens=head.embed_tokens)
    assert torch.equal(logits_of(loaded), logits_of(head))


@pytest.mark.parametrize("absent", ["t2d", "d2t"])
def test_one_vocabulary_map_gives_the_other(
    tmp_path: Path, head: Eagle3DraftHead, absent: str
) -> None:
    """NVIDIA ModelOpt writes d2t alone."""
    tensors = eagle_tensors(head)
    del tensors[absent]
    write_files(tmp_path, eagle_json(head.config), tensors)
    loaded = Eagle3DraftHead.from_pretrained(tmp_path, embed_tokens=head.embed_tokens)
    assert torch.equal(loaded.t2d, head.t2d)
    assert torch.equal(loaded.d2t, head.d2t)
    assert torch.equal(logits_of(loaded), logits_of(head))


def test_tied_in_words_with_an_lm_head_of_its_own(tmp_path: Path, head: Eagle3DraftHead) -> None:
    data = eagle_json(head.config) | {"tie_word_embeddings": True}
    write_files(tmp_path, data, eagle_tensors(head))
    loaded = Eagle3DraftHead.from_pretrained(tmp_path, embed_tokens=head.embed_tokens)
    assert torch.equal(logits_of(loaded), logits_of(head))
    assert not loaded.config.tie_word_embeddings


def test_tied_lm_head_is_the_table(tmp_path: Path) -> None:
    head = make_head(make_config(draft_vocab_size=VOCAB))
    with torch.no_grad():
        head.lm_head.weight.copy_(head.embed_tokens)
    tensors = eagle_tensors(head)
    del tensors["lm_head.weight"]
    data = eagle_json(head.config) | {"tie_word_embeddings": True}
    write_files(tmp_path, data, tensors)
    loaded = Eagle3DraftHead.from_pretrained(tmp_path, embed_tokens=head.embed_tokens)
    assert torch.equal(logits_of(loaded), logits_of(head))
    assert loaded.lm_head.weight.data_ptr() != head.embed_tokens.data_ptr()
    with pytest.raises(ValueError, match=r"lm_head.weight is missing and tied.*embed_tokens"):
        Eagle3DraftHead.from_pretrained(tmp_path)
    write_files(tmp_path, data, tensors | {"embed_tokens.weight": head.embed_tokens})
    assert torch.equal(logits_of(Eagle3DraftHead.from_pretrained(tmp_path)), logits_of(head))


def test_smaller_lm_head_cannot_be_tied(tmp_path: Path, head: Eagle3DraftHead) -> None:
    tensors = eagle_tensors(head)
    del tensors["lm_head.weight"]
    write_files(tmp_path, eagle_json(head.config) | {"tie_word_embeddings": True}, tensors)
    with pytest.raises(ValueError, match=r"cannot be tied.*vocab_size = 60.*draft_vocab_size = 24"):
        Eagle3DraftHead.from_pretrained(tmp_path, embed_tokens=head.embed_tokens)


def test_own_embedding_goes_before_the_targets(tmp_path: Path, head: Eagle3DraftHead) -> None:
    tensors = eagle_tensors(head) | {"embed_tokens.weight": head.embed_tokens.half()}
    write_files(tmp_path, eagle_json(head.config), tensors)
    loaded = Eagle3DraftHead.from_pretrained(tmp_path, embed_tokens=torch.zeros(VOCAB, 32))
    assert torch.equal(loaded.embed_tokens, head.embed_tokens.half().float())
    assert loaded.owns_embedding
    loaded.save_pretrained(tmp_path / "again")
    assert "embed_tokens.weight" in load_file(tmp_path / "again" / "model.safetensors")


def test_own_embedding_is_required_with_target_hidden_size(tmp_path: Path) -> None:
    head = make_head(make_config(target_hidden_size=20))
    data = eagle_json(head.config) | {"target_hidden_size": 20}
    write_files(tmp_path, data, eagle_tensors(head))
    with pytest.raises(ValueError, match=r"missing \['embed_tokens.weight'\]"):
        Eagle3DraftHead.from_pretrained(tmp_path, embed_tokens=head.embed_tokens)


def test_tables_of_the_whole_vocabulary_must_be_the_identity(tmp_path: Path) -> None:
    head = make_head(make_config(draft_vocab_size=VOCAB))
    d2t, t2d = torch.zeros(VOCAB, dtype=torch.int64), torch.ones(VOCAB, dtype=torch.bool)
    data = eagle_json(head.config)
    write_files(tmp_path, data, eagle_tensors(head) | {"d2t": d2t, "t2d": t2d})
    assert Eagle3DraftHead.from_pretrained(tmp_path).draft_to_target is None
    write_files(tmp_path, data, eagle_tensors(head) | {"d2t": d2t + 1, "t2d": t2d})
    with pytest.raises(ValueError, match="d2t must be zero"):
        Eagle3DraftHead.from_pretrained(tmp_path)
    write_files(tmp_path, data, eagle_tensors(head) | {"d2t": d2t, "t2d": ~t2d})
    with pytest.raises(ValueError, match="t2d must be all true"):
        Eagle3DraftHead.from_pretrained(tmp_path)


def drop(*keys: str) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        for key in keys:
            del tensors[key]

    return damage


def both(
    first: Callable[[Tensors], None], second: Callable[[Tensors], None]
) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        first(tensors)
        second(tensors)

    return damage


def put(key: str, make: Callable[[Tensors], torch.Tensor]) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({key: make(tensors)})


def used_ids(tensors: Tensors) -> torch.Tensor:
    return torch.arange(DRAFT_VOCAB) + tensors["d2t"]


def swapped(tensors: Tensors) -> torch.Tensor:
    """Offsets of an otherwise right map whose first two ids are exchanged."""
    ids = used_ids(tensors)
    ids[[0, 1]] = ids[[1, 0]]
    return ids - torch.arange(DRAFT_VOCAB)


def without_last_id(tensors: Tensors) -> torch.Tensor:
    mask = tensors["t2d"].clone()
    mask[used_ids(tensors)[-1]] = False
    return mask


def with_another_id(tensors: Tensors) -> torch.Tensor:
    mask = without_last_id(tensors)
    mask[(~tensors["t2d"]).nonzero()[0]] = True
    return mask


BROKEN: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "missing weight": (drop("fc.weight"), r"missing \['fc.weight'\], unexpected \[\]"),
    "missing norm": (drop("midlayer.hidden_norm.weight"), "midlayer.hidden_norm.weight"),
    "missing maps": (drop("d2t", "t2d"), r"missing \['d2t', 't2d'\]"),
    "missing t2d of ids": (both(drop("t2d"), put("d2t", used_ids)), "d2t must give target ids"),
    "missing t2d, unset d2t": (
        both(drop("t2d"), put("d2t", lambda t: t["d2t"] * 0)),
        "d2t is zero and t2d is missing",
    ),
    "missing d2t of integers": (
        both(drop("d2t"), put("t2d", lambda t: t["t2d"].int())),
        "t2d must be bool of shape",
    ),
    "unexpected": (
        put("fc.bias", lambda _: torch.zeros(32)),
        r"missing \[\], unexpected \['fc.bias'\]",
    ),
    "unasked fc_norm": (put("fc_norm.0.weight", lambda _: torch.ones(32)), "fc_norm.0.weight"),
    "shape": (
        put("midlayer.self_attn.k_proj.weight", lambda _: torch.zeros(64, 64)),
        r"midlayer.self_attn.k_proj.weight must have shape \(32, 64\), got \(64, 64\)",
    ),
    "integers": (put("norm.weight", lambda _: torch.ones(32).int()), "norm.weight.*int32"),
    "second layer": (put("layers.1.norm.weight", lambda _: torch.ones(32)), "layers.1.*P-EAGLE"),
    "mask_hidden": (put("mask_hidden", lambda _: torch.zeros(1, 1, 96)), "mask_hidden.*P-EAGLE"),
    "twice": (put("model.fc.weight", lambda t: t["fc.weight"].clone()), "both mean fc.weight"),
    "float d2t": (put("d2t", lambda t: t["d2t"].float()), "d2t must be of an integer"),
    "integer t2d": (put("t2d", lambda t: t["t2d"].int()), "t2d must be bool, got torch.int32"),
    "short d2t": (put("d2t", lambda t: t["d2t"][:-1].clone()), "d2t must have shape"),
    "ids for offsets": (put("d2t", used_ids), "d2t must give target ids in 0..59"),
    "ids out of order": (put("d2t", swapped), "d2t must give strictly increasing"),
    "negative ids": (put("d2t", lambda t: t["d2t"] - 60), "d2t must give target ids in 0..59"),
    "too few kept": (put("t2d", without_last_id), "t2d must keep.*24.*got 23"),
    "another kept": (put("t2d", with_another_id), "d2t maps draft id 23.*t2d leaves out"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_checkpoints_are_named(tmp_path: Path, head: Eagle3DraftHead, case: str) -> None:
    damage, message = BROKEN[case]
    tensors = eagle_tensors(head)
    damage(tensors)
    write_files(tmp_path, eagle_json(head.config), tensors)
    with pytest.raises(ValueError, match=message):
        Eagle3DraftHead.from_pretrained(tmp_path, embed_tokens=head.embed_tokens)


def test_unset_maps_are_neither_loaded_nor_saved(tmp_path: Path, head: Eagle3DraftHead) -> None:
    unset = {
        "d2t": torch.zeros(DRAFT_VOCAB, dtype=torch.int64),
        "t2d": torch.ones(VOCAB, dtype=torch.bool),
    }
    write_files(tmp_path, eagle_json(head.config), eagle_tensors(head) | unset)
    with pytest.raises(ValueError, match="d2t and t2d are the identity"):
        Eagle3DraftHead.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="d2t and t2d are the identity"):
        Eagle3DraftHead(make_config()).save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_unreadable_files(tmp_path: Path, head: Eagle3DraftHead) -> None:
    (tmp_path / "config.json").write_text(json.dumps(eagle_json(head.config)))
    with pytest.raises(ValueError, match=r"model\.safetensors.*pytorch_model\.bin"):
        Eagle3DraftHead.from_pretrained(tmp_path)
    for name, content in {
        "pytorch_model.bin": b"",
        "model.safetensors": b"no tensors",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}' cannot be read"):
            Eagle3DraftHead.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save([1, 2], tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="mapping of names to tensors"):
        Eagle3DraftHead.from_pretrained(tmp_path)


def test_expected_shapes_follow_the_format() -> None:
    """LLaMA-3.1-8B's shapes, as EAGLE-3 publishes them."""
    config = Eagle3Config(
        hidden_size=4096,
        intermediate_size=14336,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
        draft_vocab_size=32000,
    )
    shapes = checkpoint.expected_shapes(config)
    assert shapes["fc.weight"] == (4096, 12288)
    assert shapes["midlayer.self_attn.q_proj.weight"] == (4096, 8192)
    assert shapes["midlayer.self_attn.v_proj.weight"] == (1024, 8192)
    assert shapes["midlayer.mlp.down_proj.weight"] == (4096, 14336)
    assert shapes["lm_head.weight"] == (32000, 4096)
    assert shapes["d2t"] == (32000,)
    assert shapes["t2d"] == (128256,)


@pytest.mark.parametrize(("step", "warned"), [(1, False), (3, True)])
def test_offsets_that_might_be_ids_are_warned_about(step: int, warned: bool) -> None:
    """Without t2d nothing else tells ids from offsets, and the draft would propose other tokens."""
    config = make_config(vocab_size=60, draft_vocab_size=8)
    kept = torch.arange(8) * step + 5
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = complete_state_dict({"d2t": kept - torch.arange(8)}, config)
    assert state["t2d"].nonzero()[:, 0].tolist() == kept.tolist()
    assert [("as ids would" in str(each.message)) for each in caught] == [True] * warned
