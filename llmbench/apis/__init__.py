"""The APIs that llmbench speaks: each encodes a call and decodes the events of its reply."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from llmbench.apis import chat, completions
from llmbench.apis.dialect import Dialect
from llmbench.apis.ending import DONE, EndMarker
from llmbench.apis.sse import ServerSentEvent
from llmbench.records import Content, Event, Message


class Api(NamedTuple):
    """One API: where it lives below the base URL, its encoder and its decoder, and how
    its streams say that they are over."""

    path: str
    encode: Callable[[str, Sequence[Message], int, Dialect, Content], bytes]
    decode: Callable[[Sequence[ServerSentEvent]], list[Event]]
    end_marker: EndMarker = DONE


APIS = {
    "chat": Api(chat.PATH, chat.encode, chat.decode_all),
    "completions": Api(completions.PATH, completions.encode, completions.decode_all),
}
