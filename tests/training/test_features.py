"""Features against transformers' hidden states; shards on disk."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from eaglerl.training import feature_model, features
from eaglerl.training.data import is_held_out, read_rows, split_rows
from eaglerl.training.feature_model import FeatureModel
from eaglerl.training.features import FeatureDataset, extract_features, read_index


@pytest.fixture
def rows(tiny_data):
    return read_rows([tiny_data])


def test_features_are_the_hidden_states(tiny_target, rows, monkeypatch):
    # Small enough that the rows need several batches, with padding in them.
    monkeypatch.setattr(feature_model, "BATCH_TOKENS", 64)
    sequences = [row.token_ids for row in rows]
    model = AutoModelForCausalLM.from_pretrained(tiny_target, dtype=torch.float32)
    results = FeatureModel.from_pretrained(tiny_target)(sequences)
    for ids, got in zip(sequences, results, strict=True):
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        features = torch.cat([states[index][0] for index in (2, 3, 4)], dim=-1)
        # fp16 keeps eleven bits.
        torch.testing.assert_close(got.features.float(), features, rtol=2**-10, atol=1e-4)
        torch.testing.assert_close(got.final_hidden.float(), states[-1][0], rtol=2**-10, atol=1e-4)


def test_bfloat16_products_leave_the_residual_stream_wide(tiny_target, rows):
    sequences = [row.token_ids for row in rows]
    exact = FeatureModel.from_pretrained(tiny_target)(sequences)
    fast = FeatureModel.from_pretrained(tiny_target, dtype=torch.bfloat16)(sequences)
    for one, other in zip(exact, fast, strict=True):
        # Eight bits in the factors of seven layers' products.
        difference = (one.final_hidden.float() - other.final_hidden.float()).norm()
        assert float(difference) < 0.05 * float(one.final_hidden.float().norm())


def test_explicit_layers(tiny_target):
    ids = [[3, 4, 5]]
    default = FeatureModel.from_pretrained(tiny_target)(ids)[0].features
    other = FeatureModel.from_pretrained(tiny_target, (2, 3, 6))(ids)[0].features
    assert torch.equal(default[:, :32], other[:, :32])
    assert not torch.equal(default[:, 32:], other[:, 32:])
    with pytest.raises(ValueError, match="feature_layers"):
        FeatureModel.from_pretrained(tiny_target, (2, 3, 7))


def test_a_dataset_gives_back_every_row(tiny_target, rows, tmp_path):
    shards = extract_features(tiny_target, rows, tmp_path / "f", shard_rows=16)
    assert {len(shard.rows) for shard in shards} >= {16}
    wanted = rows[::-3]
    dataset = FeatureDataset(tmp_path / "f", shards, wanted)
    expected = FeatureModel.from_pretrained(tiny_target)([row.token_ids for row in wanted])
    assert len(dataset) == len(wanted)
    for index, row in enumerate(wanted):
        sequence = dataset[index]
        assert tuple(sequence.token_ids.tolist()) == row.token_ids
        assert sequence.prompt_length == len(row.prompt)
        # Other batches, so other orders of summation, then fp16.
        torch.testing.assert_close(
            sequence.features, expected[index].features, rtol=2**-9, atol=1e-3
        )


def test_held_out_rows_have_shards_of_their_own(tiny_target, rows, tmp_path):
    shards = extract_features(tiny_target, rows, tmp_path / "f", shard_rows=16)
    prompts = {row.digest: row.prompt for row in rows}
    for shard in shards:
        sides = {is_held_out(prompts[digest]) for digest in shard.rows}
        assert sides == {shard.split == "held_out"}
    assert {shard.split for shard in shards} == {"train", "held_out"}


def test_rows_added_later_come_into_further_shards(tiny_target, rows, tmp_path, monkeypatch):
    folder = tmp_path / "f"
    first = extract_features(tiny_target, rows[:40], folder, shard_rows=16)
    before = {shard.file: (folder / shard.file).stat().st_mtime_ns for shard in first}
    both = extract_features(tiny_target, rows, folder, shard_rows=16)
    assert before.items() <= {s.file: (folder / s.file).stat().st_mtime_ns for s in both}.items()
    assert sorted(d for shard in both for d in shard.rows) == sorted(row.digest for row in rows)
    # If nothing is missing, the target is not loaded.
    monkeypatch.delattr(features, "FeatureModel")
    assert extract_features(tiny_target, rows, folder, shard_rows=16) == both


def test_an_interrupted_extraction_goes_on(tiny_target, rows, tmp_path):
    folder = tmp_path / "f"
    calls = []

    def stop(stage: str, fraction: float) -> None:
        calls.append(fraction)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_features(tiny_target, rows, folder, shard_rows=16, progress=stop)
    half = read_index(folder)
    assert len(half) == 2
    whole = extract_features(tiny_target, rows, folder, shard_rows=16)
    assert whole[:2] == half
    train, held_out = split_rows(rows)
    FeatureDataset(folder, whole, train + held_out)
    assert not list(folder.glob("*.tmp"))


def test_features_of_another_target_are_refused(tiny_target, rows, tmp_path):
    folder = tmp_path / "f"
    extract_features(tiny_target, rows[:3], folder)
    index = json.loads((folder / "index.json").read_text())
    index["source"]["target"]["hidden_size"] = 999
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="999"):
        extract_features(tiny_target, rows, folder)


def test_missing_rows_and_files_are_told(tiny_target, rows, tmp_path):
    shards = extract_features(tiny_target, rows[:5], tmp_path)
    with pytest.raises(ValueError, match=r"55 of 60 are missing"):
        FeatureDataset(tmp_path, shards, rows)
    (tmp_path / shards[0].file).unlink()
    with pytest.raises(ValueError, match="there is no"):
        FeatureDataset(tmp_path, shards, rows[:5])


def test_a_second_process_is_told_to_wait(tiny_target, rows, tmp_path):
    def again(stage: str, fraction: float) -> None:
        with pytest.raises(RuntimeError, match="another process"):
            extract_features(tiny_target, rows, tmp_path)

    assert extract_features(tiny_target, rows[:3], tmp_path, progress=again)
    assert extract_features(tiny_target, rows[:3], tmp_path)
