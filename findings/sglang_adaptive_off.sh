#!/usr/bin/env bash
# SGLang 0.5.23: adaptive speculation that is off drafts half of all batches.
#
# With --speculative-adaptive, a batch size may have the tier 0, which decodes plainly where drafts
# do not pay; from 8 requests on it has so by default. Expected: while no draft is ever accepted,
# nearly all batches are decoded plainly, with a trial now and then.
#
# Seen: every second interval of five batches drafts, for good, because the rule leaves tier 0 after
# each interval ("Probe the smallest positive step after a zero-step nospec interval") and nothing
# makes the next probe wait longer than the last one. 1,000 of 2,000 batches of 16 requests draft a
# token that is not accepted.
#
# The module is read out of the package, without torch and CUDA: the four names that it imports from
# the rest of SGLang are not used by the rule. Ends with an error if this is no longer seen.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip download -q --no-deps -d "$work" sglang==0.5.23
python3 - "$work"/sglang-*.whl << 'PYTHON'
import sys
import types
import zipfile

for name, attributes in {
    "sglang.srt.arg_groups.overrides": ("resolved_view", "resolving_view"),
    "sglang.srt.runtime_context": ("attn_dp_enabled_of",),
    "sglang.srt.speculative.spec_info": ("SpeculativeAlgorithm",),
    "sglang.srt.utils": (),
}.items():
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:count]), types.ModuleType(".".join(parts[:count])))
    for attribute in attributes:
        setattr(sys.modules[name], attribute, None)
sys.modules["sglang.srt.utils"].log_info_on_rank0 = lambda logger, message: None

with zipfile.ZipFile(sys.argv[1]) as wheel:
    source = wheel.read("sglang/srt/speculative/adaptive_spec_params.py").decode()
module = types.ModuleType("adaptive_spec_params")
sys.modules[module.__name__] = module
exec(compile(source, module.__name__, "exec"), module.__dict__)

# As the worker does: the tier is asked for before each batch, the result told after it.
policy = module.AdaptiveSpeculativeParams(initial_steps=3)
tiers = []
for _ in range(2000):
    tiers.append(policy.get_steps_for_batch(16))
    policy.on_verify_complete([0] * 16, 16)
drafted = sum(tier > 0 for tier in tiers[1000:])
print(f"tiers of 16 requests: {module.DEFAULT_ADAPTIVE_CONFIG['8']['candidate_steps']}")
print(f"no draft was ever accepted; of the last 1000 batches, {drafted} drafted")
print("of 40 batches:", *tiers[-40:])
if drafted < 400:
    sys.exit("tier 0 is kept now")
PYTHON
