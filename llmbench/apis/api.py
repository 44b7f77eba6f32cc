"""All that one API has of its own: nothing outside this folder need know its name."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from llmbench.apis.dialect import Dialect
from llmbench.apis.ending import DONE, EndMarker
from llmbench.apis.sse import ServerSentEvent
from llmbench.records import Content, Event, Message


def bearer(key: str) -> dict[str, str]:
    """The headers that carry ``key`` to most servers."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def model_ids(body: bytes) -> list[str]:
    """The models in an answer to ``GET /models``, each once: in OpenAI's and Anthropic's shape, as
    a bare list, or by name alone."""
    try:
        listed = msgspec.json.decode(body)
        if isinstance(listed, dict):
            listed = listed.get("data") or listed["models"]
        return list(dict.fromkeys(map(_model_id, listed)))
    except (msgspec.DecodeError, KeyError, TypeError, UnicodeDecodeError):
        return []


def _model_id(model: Any) -> str:
    if not isinstance(model, dict):
        return str(model)
    return str(model["id"] if "id" in model else model["name"])


def named_effort(effort: str) -> dict[str, Any]:
    """The request fields that ask for so much reasoning, in chat's words."""
    return {"reasoning_effort": effort}


class Api(NamedTuple):
    """One API: how it is asked, and how its replies are read.

    ``path`` follows the base URL, and ends a URL that names its endpoint. ``dialects`` are the ways
    to ask for a stream, the most exact first; each names the field that limits the output.
    ``decode`` takes the events of a whole reply and yields one ``Event`` for each; by
    ``end_marker`` a client sees that a stream is over while it comes in. ``headers`` are those that
    carry a key, which may be empty, and whatever else the API demands. ``effort`` says how much to
    reason. ``sdk`` is the method of the openai SDK that speaks it, and empty where none does;
    ``in_process`` says whether engines in process take its requests.
    """

    path: str
    encode: Callable[[str, Sequence[Message], int, Dialect, Content], bytes]
    decode: Callable[[Sequence[ServerSentEvent]], list[Event]]
    dialects: tuple[Dialect, ...]
    end_marker: EndMarker = DONE
    headers: Callable[[str], dict[str, str]] = bearer
    models_path: str = "/models"
    model_ids: Callable[[bytes], list[str]] = model_ids
    effort: Callable[[str], dict[str, Any]] = named_effort
    sdk: str = ""
    in_process: bool = False
