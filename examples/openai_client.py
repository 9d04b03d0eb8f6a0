"""eaglerl behind OpenAI's client: start a server, ask it, and compare two modes of drafting.

    python examples/openai_client.py [TARGET HEAD]

Needs the extra `server` and the package `openai`. The mode is a suffix of the model's name; it
changes the speed, never the answer.
"""

import re
import signal
import subprocess
import sys

from openai import OpenAI


def start_server(*folders: str) -> tuple[subprocess.Popen[str], str]:
    """Start `eaglerl serve` on a free port and return its process and address."""
    command = [sys.executable, "-m", "eaglerl", "serve", "--port", "0"]
    for option, folder in zip(("--model", "--draft"), folders, strict=False):
        command += [option, folder]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            return server, found[0]
    raise RuntimeError(f"the server ended with exit code {server.wait()}")


def main(*folders: str) -> None:
    """Ask the same question in two modes."""
    server, address = start_server(*folders)
    try:
        client = OpenAI(base_url=f"{address}/v1", api_key="none")
        model = client.models.list().data[0].id.partition(":")[0]
        answers = []
        for mode in ("plain", "tree-lookup"):
            answer = client.chat.completions.create(
                model=f"{model}:{mode}",
                messages=[{"role": "user", "content": "Why is the sky blue?"}],
                max_tokens=48,
                temperature=0,
            )
            answers.append(answer.choices[0].message.content)
            speculative = answer.model_extra["speculative"]
            print(f"{mode:12} {speculative['tokens_per_second']:6.1f} tokens/s")
        print("same answer:", answers[0] == answers[1])
        print(answers[0])
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
