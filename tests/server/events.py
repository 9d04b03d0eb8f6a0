"""Reading server-sent events."""

import json
from collections.abc import Iterator

import httpx


def events(response: httpx.Response) -> Iterator[tuple[str, dict]]:
    """Name and content of every event, as it comes."""
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))
