"""Health, and what Prometheus is told."""

from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from eaglerl.cost.cost_table import CostTable
from eaglerl.server import Limits, Modes, Service, create_app, standard_modes

from .tiny import NAME, tiny_decoder, tiny_service, wait_until

IDLE = {"active": 0, "waiting": 0, "live": 0}


def told(client: TestClient) -> dict[str, list]:
    """The samples of every name."""
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples: dict[str, list] = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(sample)
    return samples


def value(samples: dict[str, list], name: str, **labels: str) -> float:
    found = [
        sample.value
        for sample in samples.get(name, [])
        if labels.items() <= sample.labels.items() and sample.labels["model_name"] == NAME
    ]
    assert found, name
    return sum(found)


def test_what_was_decoded_is_counted() -> None:
    service = tiny_service()
    with TestClient(create_app(service)) as client:
        before = told(client)
        # All is there from the start, at zero: a rate needs both ends.
        for name in (
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:kv_cache_usage_perc",
            "eaglerl:sequences",
            "vllm:inter_token_latency_seconds_count",
            "vllm:prefix_cache_queries_total",
            "vllm:prefix_cache_hits_total",
            "vllm:prompt_tokens_total",
            "vllm:generation_tokens_total",
            "vllm:request_success_total",
            "vllm:time_to_first_token_seconds_count",
            "vllm:e2e_request_latency_seconds_count",
            "vllm:request_queue_time_seconds_count",
            "vllm:request_prefill_time_seconds_count",
            "vllm:request_decode_time_seconds_count",
            "vllm:spec_decode_num_drafts_total",
            "vllm:spec_decode_num_draft_tokens_total",
            "vllm:spec_decode_num_accepted_tokens_total",
            "eaglerl:tokens_per_second",
        ):
            assert value(before, name) == 0
        totals = dict.fromkeys(("drafted", "accepted", "cycles", "prompt", "answer"), 0)
        for mode in ("plain", "tree-lookup", "tree-8-2-4", "tree-9-2-4"):
            body = {"model": NAME, "prompt": "hello", "max_tokens": 30, "mode": mode, "n": 2}
            answer = client.post("/v1/completions", json=body | {"temperature": 0}).json()
            speculative = answer["speculative"]
            totals["drafted"] += speculative["drafted_tokens"]
            totals["accepted"] += speculative["accepted_tokens"]
            totals["cycles"] += speculative["cycles"]
            totals["prompt"] += 2 * answer["usage"]["prompt_tokens"]
            totals["answer"] += answer["usage"]["completion_tokens"]
        wait_until(lambda: service.engine.load == IDLE)
        after = told(client)
        assert value(after, "vllm:spec_decode_num_draft_tokens_total") == totals["drafted"]
        assert value(after, "vllm:spec_decode_num_accepted_tokens_total") == totals["accepted"]
        assert (
            value(after, "vllm:spec_decode_num_accepted_tokens_per_pos_total")
            == (totals["accepted"])
        )
        assert value(after, "eaglerl:acceptance_length_count") == totals["cycles"]
        assert value(after, "eaglerl:acceptance_length_sum") == (
            totals["cycles"] + totals["accepted"]
        )
        assert value(after, "eaglerl:drafted_in_vain_tokens_total") == (
            totals["drafted"] - totals["accepted"]
        )
        assert value(after, "eaglerl:drafted_in_vain_tokens_total", mode="plain") == 0
        assert value(after, "vllm:prompt_tokens_total") == totals["prompt"]
        assert value(after, "vllm:generation_tokens_total") == totals["answer"]
        assert value(after, "vllm:prefix_cache_queries_total") == totals["prompt"]
        # Each of eight answers has a first token, and those after it.
        between = "vllm:inter_token_latency_seconds_count"
        assert value(after, between) >= totals["answer"] - 8 * 32
        assert value(after, between) < totals["answer"]
        assert value(after, "vllm:request_success_total", finished_reason="length") == 4
        for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
            assert value(after, f"vllm:{name}_seconds_count") == 4
        assert value(after, "eaglerl:cycle_seconds_total", part="policy") > 0
        assert value(after, "eaglerl:tokens_per_second") > 0
        # A client cannot make labels: constant trees of whatever size are one.
        modes = {sample.labels["mode"] for sample in after["eaglerl:acceptance_length_count"]}
        assert modes == {"plain", "tree-lookup", "tree:T/D/K"}
        arms = [sample for sample in after["eaglerl:active_arm"] if sample.value == 1]
        assert {sample.labels["mode"] for sample in arms} == modes
        assert len(arms) == len(modes)
        assert "eaglerl:cost_error" not in after


def test_a_failure_and_a_withdrawal_are_told_apart() -> None:
    service = tiny_service(max_prompt_tokens=50)
    with TestClient(create_app(service)) as client:
        body = {"model": NAME, "prompt": "a", "max_tokens": 5}
        assert client.post("/v1/completions", json=body | {"prompt": "x" * 60}).status_code == 413
        assert value(told(client), "vllm:request_success_total") == 0
        request = service.metrics.request("plain", 3)
        request.failed(RuntimeError("broken"))
        assert value(told(client), "eaglerl:request_failures_total") == 1


def test_the_cost_table_is_held_against_the_clock() -> None:
    grids = {"total_tokens": (1, 64), "verify_base": (1e-9, 1e-9), "verify_slope": (0.0, 0.0)}
    cost = CostTable(
        "here", "float32", top_ks=(3, 4), first_pass=(0.0, 0.0), later_pass=(0.0, 0.0), **grids
    )
    modes = Modes(standard_modes(), "best-constant")
    service = Service(
        tiny_decoder(),
        modes,
        model_name=NAME,
        limits=Limits(),
        cost=cost,
    )
    with TestClient(create_app(service)) as client:
        assert value(told(client), "eaglerl:cost_error") == 0
        body = {"model": NAME, "prompt": "hello", "max_tokens": 10}
        assert client.post("/v1/completions", json=body).status_code == 200
        # No cycle takes a nanosecond.
        assert value(told(client), "eaglerl:cost_error") > 100


def test_prompts_that_begin_like_earlier_ones_are_counted() -> None:
    with TestClient(create_app(tiny_service())) as client:
        body = {"model": NAME, "prompt": "system prompt " * 10, "max_tokens": 5, "temperature": 0}
        first, again = (client.post("/v1/completions", json=body).json() for _ in range(2))
        assert first["choices"] == again["choices"]
        for answer, cached in ((first, 0), (again, 128)):
            assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": cached}
        assert value(told(client), "vllm:prefix_cache_queries_total") == 280
        # Whole blocks of 32 tokens.
        assert value(told(client), "vllm:prefix_cache_hits_total") == 128


def test_health_follows_the_engine() -> None:
    service = tiny_service()
    app = create_app(service, api_key="secret")
    with TestClient(app) as client:
        healthy = client.get("/health")
        assert healthy.status_code == 200
        assert healthy.json() == {"status": "ok", **IDLE}
        service.engine.stop()
        ill = client.get("/health")
        assert ill.status_code == 503
        assert ill.headers["Retry-After"] == "1"
        assert ill.json()["error"]["code"] == "unhealthy"
        assert client.get("/metrics").status_code == 200
