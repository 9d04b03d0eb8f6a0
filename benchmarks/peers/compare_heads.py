"""Run exported heads in the engines they are for, and count what is accepted.

    python benchmarks/peers/compare_heads.py FOLDER [--engine vllm|openvino|llama.cpp ...]

The packaged model in float32 decodes questions greedily with chains of drafted tokens, in each
engine with the head that `eaglerl export-head` writes for it, and in eaglerl with the same head.
The counts of the two must agree within 1 % at every position, over the questions to which both
write the same text. FOLDER gets the engines and the heads, and keeps them. vLLM takes 3.4 GB, the
converters 2 GB, and llama.cpp is compiled, half an hour on two cores.
"""

from __future__ import annotations

import itertools
import json
import operator
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from compare_peers import read_prompts
from llama_cpp import LlamaServer, build, source
from peer_environments import OPENVINO, converters, environment, make_folder, run
from rich.console import Console
from rich.table import Table
from server_processes import VLLM, WITHOUT
from transformers import AutoTokenizer

from eaglerl.eagle3 import Eagle3DraftHead, load_target
from eaglerl.eagle3.chain_acceptance import ChainAcceptance, chain_acceptance
from eaglerl.eagle3.head.export_head import HeadExport, plan_export
from eaglerl.eagle3.head.fc_norm_stand_ins import feature_rms
from eaglerl.eagle3.head.feature_layer_check import PAGE
from eaglerl.eagle3.head.feature_layers import eagle_feature_layers
from eaglerl.eagle3.target.target_files import read_target_config
from eaglerl.prepare import default_draft_path, prepare_model

HERE = Path(__file__).resolve().parent
#: Differences of a rate, or of the mean length, that count as agreement.
TOLERANCE = 0.01
# Written into the converted head: which outputs of layers OpenVINO GenAI takes. Its argument
# hidden_layers_list cannot be given in Python, whose integers become int64 and not int32.
_PLACE_LAYERS = """
import json, os, sys
import openvino as ov
folder, layers = sys.argv[1], json.loads(sys.argv[2])
model = ov.Core().read_model(f"{folder}/openvino_model.xml")
model.set_rt_info(layers, ["hidden_layers_list"])
ov.save_model(model, f"{folder}/placed.xml", compress_to_fp16=False)
for kind in ("xml", "bin"):
    os.replace(f"{folder}/placed.{kind}", f"{folder}/openvino_model.{kind}")
"""


def run_worker(python: Path, worker: str, task: dict[str, Any]) -> dict[str, Any]:
    """Run a worker of another environment.

    Args:
        python: the environment's interpreter.
        worker: name of a script of this folder.
        task: what it reads.

    Returns:
        What it wrote.

    Raises:
        RuntimeError: it failed; the message shows the end of its stderr.
    """
    done = subprocess.run(
        [python, HERE / worker],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        check=False,
        # Of its own environment, not of this one's; one thread, since others may use the cores.
        env=os.environ | {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        shown = "\n".join(done.stderr.splitlines()[-15:])
        raise RuntimeError(f"{worker} ended with {done.returncode}:\n{shown}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def ask_vllm(python: Path, task: dict[str, Any]) -> ChainAcceptance:
    """Return what vLLM accepts; ``python`` is the interpreter of its environment."""
    answer = run_worker(python, "vllm_head_worker.py", task)
    texts = tuple(tuple(text) for text in answer["texts"])
    return ChainAcceptance(answer["cycles"], tuple(answer["accepted"]), texts)


def in_vllm(folder: Path, plan: HeadExport, task: dict[str, Any]) -> ChainAcceptance:
    """Run vLLM, which reads the exported folder as it is."""
    programs = environment(folder / "vllm", VLLM, WITHOUT)
    head = make_folder(folder / "head-vllm", plan.write)
    return ask_vllm(programs / "python", task | {"head": str(head)})


def in_openvino(folder: Path, plan: HeadExport, task: dict[str, Any]) -> ChainAcceptance:
    """Convert target and head, name the layers in the head, and run OpenVINO GenAI."""
    python = environment(folder / "openvino", OPENVINO) / "python"
    written = make_folder(folder / "head-openvino", plan.write)
    layers = eagle_feature_layers(read_target_config(task["target"]).num_hidden_layers)

    def convert(model: str | Path, to: Path) -> None:
        command = [converters(folder) / "optimum-cli", "export", "openvino", "--model", model]
        command += ["--task", "text-generation-with-past", "--weight-format", "fp32"]
        # Its code of EAGLE-3 is copied into a cache of modules.
        variables = os.environ | {"HF_HOME": str(folder / "huggingface"), "PYTHONPATH": ""}
        run([*command, "--trust-remote-code", to], env=variables)

    def convert_head(to: Path) -> None:
        convert(written, to)
        run([python, "-c", _PLACE_LAYERS, to, json.dumps([layer - 1 for layer in layers])])

    head = make_folder(folder / "openvino-head", convert_head)
    target = make_folder(folder / "openvino-f32", lambda to: convert(task["target"], to))
    names = {"target": str(target), "head": str(head)}
    answer = run_worker(python, "openvino_head_worker.py", task | names)
    return _counted(answer["sizes"], answer["texts"], task)


def in_llama_cpp(folder: Path, plan: HeadExport, task: dict[str, Any]) -> ChainAcceptance:
    """Convert target and head, and run llama-server."""
    head = make_folder(folder / "head-llama.cpp-f32", plan.write)
    target = Path(task["target"])
    files = []
    for model in (head, target):
        file = folder / f"{model.name}-f32.gguf"
        if not file.exists():
            command = [converters(folder) / "python", source(folder) / "convert_hf_to_gguf.py"]
            command += [model, "--outtype", "f32", "--outfile", file]
            run(command + (["--target-model-dir", target] if model == head else []))
        files.append(file)
    options = ["--spec-type", "draft-eagle3", "--spec-draft-model", str(files[0])]
    options += ["--spec-draft-n-max", str(task["chain"]), "--spec-draft-p-min", "0"]
    for cache in ("-ctk", "-ctv", "-ctkd", "-ctvd"):
        options += [cache, "f32"]
    server = LlamaServer(
        "llama.cpp", build(folder) / "llama-server", files[1], options, 1, folder / "logs" / "heads"
    )
    server.renew()
    try:
        return _ask(server, task)
    finally:
        server.close()


def _ask(server: LlamaServer, task: dict[str, Any]) -> ChainAcceptance:
    # The last cycles, which are cut short, come after those that count.
    most = task["tokens"] + task["chain"] + 1
    answers = [server.cycles(prompt, most) for prompt in task["prompts"]]
    return _counted([sizes for _, sizes in answers], [text for text, _ in answers], task)


def _counted(
    sizes: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], task: dict[str, Any]
) -> ChainAcceptance:
    return ChainAcceptance.of(sizes, texts, chain=task["chain"], new_tokens=task["tokens"])


RUN = {"vllm": in_vllm, "openvino": in_openvino, "llama.cpp": in_llama_cpp}


def with_equal_texts(
    ours: ChainAcceptance, theirs: ChainAcceptance
) -> tuple[ChainAcceptance, ChainAcceptance]:
    """Return both without the prompts whose texts differ, if both know the cycles of each prompt.

    Another text is accepted at another rate, whatever the head.
    """
    if not ours.sizes or not theirs.sizes:
        return ours, theirs
    same = [ours.texts[i] == theirs.texts[i] for i in range(len(ours.texts))]
    one, other = (
        ChainAcceptance.of(
            itertools.compress(each.sizes, same),
            itertools.compress(each.texts, same),
            chain=len(each.accepted),
            new_tokens=len(each.texts[0]),
        )
        for each in (ours, theirs)
    )
    return one, other


def worst_difference(ours: ChainAcceptance, theirs: ChainAcceptance) -> float:
    """Return the largest difference between two rates of a position, or their mean lengths."""
    pairs = [*zip(ours.rates, theirs.rates, strict=True), (ours.mean_length, theirs.mean_length)]
    return max(abs(one - other) for one, other in pairs)


def _row(engine: str, result: ChainAcceptance) -> list[str]:
    rates = " ".join(f"{rate:.4f}" for rate in result.rates)
    return [engine, str(result.cycles), rates, f"{result.mean_length:.4f}"]


def main(
    folder: Annotated[Path, typer.Argument(help="Folder for the engines and the heads.")],
    engine: Annotated[list[str] | None, typer.Option(help="Which engines; all by default.")] = None,
    per_file: Annotated[int, typer.Option(min=1, help="First questions of a file.")] = 4,
    chains: Annotated[str, typer.Option(help="Lengths of the chains, N,...")] = "3,5",
    tokens: Annotated[int, typer.Option(min=2, help="New tokens per prompt.")] = 64,
) -> None:
    """Compare the engines and print the table; end with status 1 if one differs."""
    unknown = set(engine or ()) - set(RUN)
    if unknown:
        raise typer.BadParameter(f"engine must be of {list(RUN)}, got {sorted(unknown)}")
    folder = folder.resolve()
    model = prepare_model(cache_dir=folder / "float32", float32=True)
    prompts = list(
        read_prompts([HERE.parents[1] / "questions"], "all", per_file, model, tokens).values()
    )
    target = load_target(model, precision="float32")
    head = Eagle3DraftHead.from_pretrained(default_draft_path())
    rms = feature_rms(target, AutoTokenizer.from_pretrained(model)(PAGE).input_ids)
    table = Table("engine", "cycles", "accepted at position 1, 2, ...", "tokens per cycle", "texts")
    differences = []
    for name in engine or RUN:
        plan = plan_export(head, name, num_target_layers=target.num_layers, rms=rms)
        for chain in map(int, chains.split(",")):
            task = {"target": str(model), "chain": chain, "tokens": tokens, "prompts": prompts}
            theirs = RUN[name](folder, plan, task)
            ours = chain_acceptance(target, plan.head, prompts, chain=chain, new_tokens=tokens)
            same = sum(map(operator.eq, ours.texts, theirs.texts))
            ours, theirs = with_equal_texts(ours, theirs)
            table.add_row(*_row(f"{name}, {chain}", theirs), f"{same} of {len(prompts)} equal")
            table.add_row(*_row("eaglerl, the same head", ours), "")
            differences.append(worst_difference(ours, theirs))
    Console(width=120).print(table)
    sys.exit(max(differences) > TOLERANCE)


if __name__ == "__main__":
    typer.run(main)
