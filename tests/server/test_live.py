"""Live sessions: control, and what is told of every cycle."""

import json

import httpx
import pytest
from fastapi.testclient import TestClient

from eaglerl.server import create_app

from .events import events
from .tiny import NAME, PATIENCE, greedy_text, tiny_service, wait_until

PROMPT = "hello hello"
REQUEST = {"prompt": PROMPT, "chat": False, "max_tokens": 50, "modes": ["tree-lookup"]}


def run(client: TestClient, **fields: object) -> list[tuple[str, dict]]:
    response = client.post("/live/sessions", json=REQUEST | fields)
    assert response.status_code == 200, response.text
    return list(events(response))


@pytest.mark.parametrize("mode", ["plain", "tree:12/3/4", "lookup", "tree-lookup"])
def test_the_cycles_tell_the_text_and_how_it_came(client, mode: str) -> None:
    told = run(client, modes=[mode])
    assert [name for name, _ in told[:2]] == ["session", "begin"]
    assert [name for name, _ in told[-2:]] == ["finished", "end"]
    pieces = [content["tokens"] for name, content in told if name in ("begin", "cycle")]
    text = "".join(token["text"] for tokens in pieces for token in tokens)
    assert text + told[-2][1]["text"] == greedy_text(PROMPT, 50)
    last, accepted, looked = pieces[0][0]["id"], 0, 0
    for cycle in (content for name, content in told if name == "cycle"):
        nodes = cycle["nodes"]
        assert nodes[0] | {"text": ""} == {
            "parent": -1,
            "id": last,
            "text": "",
            "score": 0.0,
            "accepted": True,
            "source": "root",
        }
        assert all(0 <= node["parent"] < place for place, node in enumerate(nodes) if place)
        # Accepted nodes are a path, and its tokens are those that were emitted.
        path = [place for place, node in enumerate(nodes) if node["accepted"]]
        assert [nodes[place]["parent"] for place in path[1:]] == path[:-1]
        emitted = [nodes[place]["id"] for place in path[1:]] + [cycle["bonus"]["id"]]
        assert [token["id"] for token in cycle["tokens"]] == emitted[: len(cycle["tokens"])]
        assert len(nodes) == cycle["rows"]
        assert cycle["acceptance_length"] == len(path)
        head = [node for node in nodes if node["source"] in ("head", "both")]
        assert len(head) == cycle["total_tokens"] - 1
        assert all((node["score"] is None) == (node["source"] == "lookup") for node in nodes)
        chain = [node for node in nodes if node["source"] in ("lookup", "both")]
        assert len(chain) == cycle["lookup"]["tokens"]
        assert sum(node["accepted"] for node in chain) == cycle["lookup"]["accepted"]
        accepted += len(path) - 1
        looked += cycle["lookup"]["accepted"]
        # No request is decoded beside it.
        assert cycle["answers"] == 0
        last = emitted[-1]
    assert (accepted > 0) == (mode != "plain")
    assert (looked > 0) == ("lookup" in mode)


def test_every_cycle_tells_how_many_times_plain_it_is(client, service) -> None:
    for mode in ("plain", "tree-lookup"):
        told = run(client, modes=[mode])
        totals = [content["totals"] for name, content in told if name == "cycle"]
        assert all(0 < total["times_plain"] < 1000 for total in totals)
    # What is measured beside it is given back like the rest.
    wait_until(lambda: service.engine.load["live"] == 0)
    assert [content for name, content in run(client, max_tokens=1) if name == "cycle"] == []


def test_two_modes_write_the_same_text(client) -> None:
    told = run(client, modes=["plain", "tree-lookup"], temperature=0.8, seed=4)
    texts = ["", ""]
    for name, content in told:
        if name in ("begin", "cycle"):
            texts[content["lane"]] += "".join(token["text"] for token in content["tokens"])
    assert texts[0] == texts[1] != ""
    assert [name for name, _ in told].count("finished") == 2


def test_run_pause_and_step(served) -> None:
    address, service = served
    with httpx.Client(base_url=address, timeout=PATIENCE) as client:
        request = REQUEST | {"modes": ["plain", "tree-lookup"], "paused": True}
        with client.stream("POST", "/live/sessions", json=request) as response:
            stream = events(response)
            session = next(stream)[1]
            assert [lane["mode"] for lane in session["lanes"]] == request["modes"]
            assert session["running"] is False

            def control(action: str) -> None:
                url = f"{address}/live/sessions/{session['id']}/control"
                assert httpx.post(url, json={"action": action}).status_code == 204

            assert [next(stream)[0] for _ in range(2)] == ["begin"] * 2
            for number in (1, 2, 3):
                control("step")
                assert next(stream) == ("state", {"running": False})
                cycles = [next(stream)[1] for _ in range(2)]
                assert sorted(cycle["lane"] for cycle in cycles) == [0, 1]
                assert [cycle["cycle"] for cycle in cycles] == [number] * 2
            control("run")
            assert next(stream) == ("state", {"running": True})
            rest = list(stream)
            assert rest[-1][0] == "end"
            cycles = [content for name, content in rest if name == "cycle"]
            assert sum(cycle["lane"] == 0 for cycle in cycles) == 49 - 3
        wait_until(lambda: service.engine.load["live"] == 0)
        gone = client.post(f"/live/sessions/{session['id']}/control", json={"action": "run"})
        assert gone.status_code == 404


def test_a_session_that_is_left_alone_ends() -> None:
    service = tiny_service(live_idle_seconds=0.2)
    with TestClient(create_app(service)) as client:
        told = run(client, paused=True)
        assert told[-1][0] == "error"
        assert told[-1][1]["error"]["code"] == "idle"
        wait_until(lambda: service.engine.load["live"] == 0)


@pytest.mark.parametrize(
    ("fields", "status", "parameter"),
    [
        ({"modes": []}, 400, "modes"),
        ({"modes": ["plain"] * 3}, 400, "modes"),
        ({"modes": ["fastest"]}, 400, "modes"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": "x" * 1100}, 413, "prompt"),
        ({"max_tokens": 3000}, 413, "max_tokens"),
        ({"temperature": 3}, 400, "temperature"),
        ({"speed": 1}, 400, "speed"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_a_session_cannot_be(client, fields, status, parameter) -> None:
    response = client.post("/live/sessions", json=REQUEST | fields)
    assert response.status_code == status
    assert response.json()["error"]["param"] == parameter


def test_the_page_is_told_what_there_is_to_choose_from(client) -> None:
    info = client.get("/live/info").json()
    assert info["model"] == NAME
    assert info["default_mode"] == "best-constant"
    assert {"plain", "lookup"} <= {mode["name"] for mode in info["modes"]}


def test_the_page_loads_nothing_from_elsewhere(client) -> None:
    page = client.get("/")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert page.headers["content-type"].startswith("text/html")
    names = ["app.js", "draw.js", "history.js", "lane.js", "stream.js", "tree.js", "style.css"]
    texts = [page.text, *(client.get(f"/static/{name}").text for name in names)]
    for text in texts:
        assert "https://" not in text
        # A namespace is a name, not an address that is asked.
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")


def test_an_action_that_is_none(client) -> None:
    response = client.post("/live/sessions/none/control", json={"action": "jump"})
    assert response.status_code == 400
    assert "action" in json.dumps(response.json())
