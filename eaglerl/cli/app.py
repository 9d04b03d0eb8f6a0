"""The typer application: all commands of `eaglerl` with their examples."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated

import typer
from rich.markup import escape

from eaglerl.cli.calibrate_command import calibrate
from eaglerl.cli.compare_command import compare
from eaglerl.cli.demo_command import demo
from eaglerl.cli.distill_command import distill
from eaglerl.cli.export_head_command import export_head
from eaglerl.cli.export_policy_command import export_policy
from eaglerl.cli.generate_command import generate
from eaglerl.cli.headroom_command import headroom
from eaglerl.cli.prepare_command import prepare
from eaglerl.cli.record_command import record
from eaglerl.cli.report_command import report
from eaglerl.cli.serve_command import serve
from eaglerl.cli.train_draft_command import train_draft
from eaglerl.cli.train_policy_command import train_policy
from eaglerl.resps.commands.evaluate_command import evaluate

app = typer.Typer(
    name="eaglerl",
    help="EAGLE-3 speculative decoding: the same text as plain decoding, faster.",
    epilog="Start with: eaglerl demo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _add(command: Callable[..., None], *examples: str) -> None:
    """Add a command, with its function's docstring as help and examples below the options."""
    # rich keeps single line breaks, so the docstring's are removed; each example is a paragraph,
    # because rich joins lines without one.
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    help_text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    lines = ["[bold]Examples[/]", *(f"[cyan]{escape(example)}[/]" for example in examples)]
    app.command(help=help_text, epilog="\n\n".join(lines))(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"eaglerl {version('eaglerl')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


_add(prepare, "eaglerl prepare", "eaglerl prepare --gguf model.gguf --name mine")
_add(
    generate,
    'eaglerl generate "Why is the sky blue?" --stats',
    'eaglerl generate --raw "def fibonacci(n):" -n 64 --tree 16/3/4',
    "cat question.txt | eaglerl generate --temperature 0.7 --seed 1",
    'eaglerl generate "Name a planet." --policy policy-ppo-smollm2-135m-instruct',
)
_add(demo, "eaglerl demo", 'eaglerl demo "Tell me a story." --tree 60/7/10')
_add(
    distill,
    "eaglerl distill data.jsonl --response-tokens 20000",
    "eaglerl distill data.jsonl --response-tokens 1000000 --slots 96",
)
_add(
    train_draft,
    "eaglerl train-draft data.jsonl --output runs/first",
    "eaglerl train-draft data-1.jsonl data-2.jsonl --output runs/hour --max-minutes 60",
)
_add(
    record,
    "eaglerl record traces data.jsonl --held-out --max-positions 100000",
    "eaglerl record traces questions/*.jsonl --per-file 20 -n 128",
)
_add(
    compare,
    "eaglerl compare runs/first questions/ --mode generate --mode tuned --mode tree:60/7/10",
    "eaglerl compare runs/first questions/ --mode policy:models/policy --against tuned",
    "eaglerl compare runs/first --json",
)
_add(
    evaluate,
    "eaglerl evaluate --bench-name everyday --answer-file answers.jsonl --total-token 8 --depth 2",
    "eaglerl evaluate --bench-name math --answer-file ppo.jsonl "
    "--use-optimized-sb3-discrete-ppo --optimized-policy-version ofl --actions cpu",
)
_add(
    export_head,
    "eaglerl export-head models/eagle3-smollm2-135m-instruct --for sglang -o head-for-sglang",
    "eaglerl export-head someones-head --for eaglerl --taps 1,14,26 -o head --model llama --check",
)
_add(
    export_policy,
    "eaglerl export-policy --for sglang --acceptance 0.7,0.5,0.35 chain_lengths.py",
    "eaglerl export-policy --for onnx policy-ppo-smollm2-135m-instruct policy.onnx",
)
_add(calibrate, "eaglerl calibrate", "eaglerl calibrate cost.json --passes 16")
_add(
    train_policy,
    "eaglerl train-policy --traces traces --cost cost.json -o runs/ppo",
    "eaglerl train-policy -a dqn --traces traces --cost cost.json --select 8 -o runs/dqn",
    "eaglerl train-policy --prompts questions/math.jsonl --actions cpu --steps 99 -o runs/live",
)
_add(
    report,
    "eaglerl report runs/first -o report.html",
    "eaglerl report runs/greedy runs/sampled --questions questions/",
    "eaglerl report runs/first --traces traces --cost cost.json",
)
_add(
    headroom,
    "eaglerl headroom traces --cost cost.json",
    "eaglerl headroom steps.jsonl --cost costs.csv --batch 1,8,32 -o headroom.html",
    "eaglerl headroom steps.jsonl --cost vllm.log --json",
)
_add(
    serve,
    "eaglerl serve",
    "eaglerl serve --port 8080 --mode tree-lookup",
    "EAGLERL_API_KEY=secret eaglerl serve --host 0.0.0.0",
)
