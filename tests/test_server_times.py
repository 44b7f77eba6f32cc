"""The times that servers state in their replies, each in words of its own."""

import json
from typing import Any

import pytest
from test_timeline import event, said, seen

from llmbench.apis import APIS
from llmbench.apis.server_times import server_times
from llmbench.measure.timeline import decode
from llmbench.records import Event


def of(**document: Any) -> dict[str, Any]:
    return server_times(json.dumps(document).encode())


SECONDS = {"queue_time": 0.25, "prompt_time": 0.5, "completion_time": 2, "total_time": 2.75}
MS = {"queue_ms": 250.0, "prompt_ms": 500.0, "predicted_ms": 2000.0}


@pytest.mark.parametrize(
    ("document", "stages"),
    [
        ({"x_groq": {"id": "1", "usage": SECONDS}}, MS),
        ({"usage": SECONDS | {"prompt_tokens": 3}}, MS),
        ({"time_info": SECONDS | {"created": 1.7e9}}, MS),
        ({"timings": MS | {"prompt_n": 3, "cache_n": 0}}, MS),
        (
            {
                "usage": {},
                "metrics": {
                    "queue_time_ms": 250,
                    "time_to_first_token_ms": 500,
                    "generation_time_ms": 2000,
                    "mean_itl_ms": 9,
                },
            },
            MS,
        ),
        (
            {
                "perf_metrics": {
                    "prefill-queue-duration": "0.125",
                    "generation-queue-duration": "0.125",
                    "prefill-duration": "0.5",
                    "generation-duration": 2.0,
                    "tokenizer-queue-duration": 0,
                    "tokenizer-duration": 0.001,
                }
            },
            MS | {"tokenize_ms": 1.0},
        ),
        (
            {
                "perf_metrics": {
                    "server-time-to-first-token": "0.5",
                    "server-processing-time": "2.5",
                    "cached-prompt-tokens": "7",
                }
            },
            {"prompt_ms": 500.0, "predicted_ms": 2000.0},
        ),
        ({"type": "response.completed", "response": {"metrics": {"queue_time_ms": 1}}}, None),
    ],
)
def test_what_each_server_states(document: dict[str, Any], stages: dict[str, float] | None) -> None:
    assert of(**document) == (stages or {"queue_ms": 1.0})


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"usage": {"prompt_tokens": 3, "total_time": "soon"}},
        {"time_info": {"queue_time": -1, "prompt_time": True, "completion_time": None}},
        {"metrics": [1], "timings": "late", "x_groq": {"usage": None}},
        {"perf_metrics": {"prefill-duration": "nan"}},
    ],
)
def test_what_is_no_time(document: dict[str, Any]) -> None:
    assert of(**document) == {}


def test_what_cannot_be_read_states_nothing() -> None:
    assert server_times(b'{"time_info": ') == {}
    assert server_times(b'["time_info"]') == {}


def chunks(*documents: Any) -> list[Event]:
    data = [*(json.dumps(each).encode() for each in documents), b"[DONE]"]
    return APIS["chat"].decode([(0, each, "") for each in data])


def test_the_event_that_states_them_has_them() -> None:
    said = {"choices": [{"index": 0, "delta": {"content": '"time_info" is what I say'}}]}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "time_info": SECONDS}
    assert [event.timings for event in chunks(said, end)] == [None, MS, None]


def test_they_are_stages_of_the_reply() -> None:
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "time_info": SECONDS}
    timeline = decode(seen((1, said()), (2, event(end))), APIS["chat"].decode)
    assert timeline.stages_ms == {"queue": 250.0, "prefill": 500.0, "decode": 2000.0}
