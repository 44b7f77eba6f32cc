"""Requests as OpenAI's APIs and their batches have them, one JSON object a line."""

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from llmbench.datasets import turns
from llmbench.datasets.fields import shown, text
from llmbench.datasets.json_rows import json_samples
from llmbench.datasets.rows import Broken, Unusable
from llmbench.records import Message, Sample

BODIES = ("body", "params", "payload")
"""Where a line of a batch has its request."""

_GENERATING = ("/completions", "/responses", "/messages")


def read_openai(file: BinaryIO, _columns: dict[str, str]) -> Iterator[Sample | Broken]:
    """One sample an object, ``{"messages": …}``, or a batch's ``{"body": {"messages": …}}``."""
    return json_samples(file, sample)


def sample(row: dict[str, Any]) -> Sample:
    """The sample of one object."""
    name = next((name for name in BODIES if name in row and "messages" not in row), None)
    if name is None:
        said = turns.messages(row.get("messages"), "messages", "message")
        return _sample(row, said)
    request = _body(row, name)
    return _sample(request, _said(request))


def asked(said: list[Message], row: Mapping[str, Any]) -> list[Message]:
    """What is asked in a request of ``said``. A reply at its end is dropped: the model is to give
    its own."""
    last = len(said)
    while last and said[last - 1].role == "assistant":
        last -= 1
    return turns.to_be_answered(said[:last], row)


def _sample(request: dict[str, Any], said: list[Message]) -> Sample:
    return Sample(
        messages=asked(said, request),
        fields=turns.tools(request),
        output_tokens=turns.output_tokens(request),
    )


def _body(row: dict[str, Any], name: str) -> dict[str, Any]:
    request = turns.unpacked(row[name], name)
    if not isinstance(request, dict):
        raise Unusable(f"{name} is not an object: {shown(request)}")
    url = row.get("url")
    if isinstance(url, str) and not url.rstrip("/").endswith(_GENERATING):
        raise Unusable(f"url is {shown(url)}, which is asked for no text")
    return request


def _said(request: dict[str, Any]) -> list[Message]:
    """What is said in a request to any of the APIs: ``messages``, ``input`` (with ``instructions``)
    or a bare ``prompt``."""
    name = next((each for each in ("input", "prompt") if request.get(each) is not None), "")
    if request.get("messages") is not None or not name:
        return turns.messages(request.get("messages"), "messages", "message")
    if isinstance(request[name], str):
        said = [Message("user", text(request[name], name))]
    else:
        said = turns.messages(request[name], name, "message")
    if isinstance(request.get("instructions"), str):
        said.insert(0, Message("system", text(request["instructions"], "instructions")))
    return said
