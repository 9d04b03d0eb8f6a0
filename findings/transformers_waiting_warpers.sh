#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0: two of the samplers' warpers make the host wait for the device
# at every token, and so cannot be captured in a CUDA graph.
#
# Every warper of GenerationConfig's sampling options is called once with logits on the meta device,
# which has no values: whatever needs one on the host raises there. Expected: warpers are arithmetic
# on logits, so none does.
#
# Seen: eta_cutoff and top_h ask for one. Both make a torch.distributions.Categorical, whose
# constructor checks its argument in Python ("if not valid.all()"), unless Python runs with -O or
# Distribution.set_default_validate_args(False) was called; then neither asks.
#   temperature, top_k, top_p, min_p, typical_p, epsilon_cutoff: computed without the host
#   eta_cutoff, top_h: Tensor.item() cannot be called on meta tensors
#   unchecked: all eight are computed without the host
#
# Ends with an error if any of this is no longer seen.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import torch
import transformers
from transformers.generation import logits_process

WARPERS = {
    "temperature": logits_process.TemperatureLogitsWarper(0.7),
    "top_k": logits_process.TopKLogitsWarper(5),
    "top_p": logits_process.TopPLogitsWarper(0.9),
    "min_p": logits_process.MinPLogitsWarper(0.1),
    "typical_p": logits_process.TypicalLogitsWarper(0.9),
    "epsilon_cutoff": logits_process.EpsilonLogitsWarper(0.01),
    # generate() gives this one the device of the logits.
    "eta_cutoff": logits_process.EtaLogitsWarper(0.01, device="meta"),
    "top_h": logits_process.TopHLogitsWarper(0.5),
}


def waiting():
    found = {}
    for name, warper in WARPERS.items():
        try:
            warper(None, torch.empty(2, 50, device="meta"))
        except RuntimeError as error:
            found[name] = str(error)
    return found


print(f"transformers {transformers.__version__}, torch {torch.__version__}")
checked = waiting()
print("ask for a value on the host:", checked)
assert set(checked) == {"eta_cutoff", "top_h"}, checked
assert all("item() cannot be called on meta" in message for message in checked.values()), checked
torch.distributions.Distribution.set_default_validate_args(False)
unchecked = waiting()
print("without the check:", unchecked)
assert not unchecked, unchecked
PYTHON
