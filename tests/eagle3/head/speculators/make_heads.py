"""Writes the heads beside this file with speculators' own classes, and what its forward computes.

They were made with transformers 5.24.0, which is newer than speculators declares. Run with
speculators 0.9.0 importable: ``python make_heads.py FOLDER``. Dynamo must be off
(``TORCHDYNAMO_DISABLE=1``): the forward pass is compiled otherwise.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

VOCAB, DRAFT_VOCAB, HIDDEN, LENGTH, STEPS = 60, 24, 32, 20, 3


def write_verifier(folder: Path) -> None:
    """The config of a target, which the draft layer's sizes come from."""
    LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)


def make_model(verifier: Path, layer_type: str, window: int, generator: torch.Generator):
    """A head with the defaults of speculators' trainer, none of whose tensors has its default."""
    from speculators.config import SpeculatorsConfig, VerifierConfig
    from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig
    from speculators.proposals.greedy import GreedyTokenProposalConfig
    from speculators.train import cli

    layer = cli.create_transformer_layer_config(str(verifier), 1, layer_type, None, window, [])
    layer._attn_implementation = "eager"
    config = Eagle3SpeculatorConfig(
        transformer_layer_config=layer,
        draft_vocab_size=DRAFT_VOCAB,
        norm_before_residual=True,
        norm_before_fc=True,
        norm_output=True,
        eagle_aux_hidden_state_layer_ids=[2, 4, 5],
        speculators_config=SpeculatorsConfig(
            algorithm="eagle3",
            proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=STEPS)],
            default_proposal_method="greedy",
            verifier=VerifierConfig.from_pretrained(str(verifier)),
        ),
    )
    model = Eagle3DraftModel(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = parameter.shape[-1] ** -0.5
            parameter.copy_(1 + 0.3 * noise if parameter.dim() == 1 else noise * scale)
        ids = torch.randperm(VOCAB, generator=generator)[:DRAFT_VOCAB].sort().values
        model.d2t.copy_(ids - torch.arange(DRAFT_VOCAB))
        model.t2d.fill_(False)
        model.t2d[ids] = True
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write_verifier(folder / "verifier")
    for layer_type, window in (("llama", 2048), ("llama", 6), ("qwen3", 6)):
        generator = torch.Generator().manual_seed(3)
        model = make_model(folder / "verifier", layer_type, window, generator)
        head = folder / f"{layer_type}-{window}"
        model.save_pretrained(head)
        token_ids = torch.randint(VOCAB, (LENGTH,), generator=generator)
        features = torch.randn(LENGTH, 3 * HIDDEN, generator=generator)
        logits: list[torch.Tensor] = []
        model.lm_head.register_forward_hook(lambda _, __, out, kept=logits: kept.append(out[0]))
        with torch.no_grad():
            documents = torch.zeros(1, LENGTH, dtype=torch.int64)
            model(features[None], token_ids[None], documents, ttt_steps=STEPS)
        result = {"token_ids": token_ids, "features": features, "logits": torch.stack(logits)}
        save_file(result, head / "expected.safetensors")


if __name__ == "__main__":
    main()
