"""OpenAI chat completions: ``POST /chat/completions``."""

from collections.abc import Sequence

import msgspec

from llmbench.apis.api import Api
from llmbench.apis.chunks import decode_all
from llmbench.apis.dialect import DIALECTS, Dialect, options
from llmbench.apis.server_times import with_server_times
from llmbench.records import Content, Message


def encode(
    model: str, messages: Sequence[Message], output_tokens: int, dialect: Dialect, content: Content
) -> bytes:
    """The request's JSON document: ``messages``, and a wish for ``output_tokens`` tokens."""
    return msgspec.json.encode(
        {"model": model, "messages": messages} | options(dialect, output_tokens, content)
    )


API = Api(
    path="/chat/completions",
    encode=encode,
    decode=with_server_times(decode_all),
    dialects=DIALECTS,
    sdk="chat.completions.create",
    in_process=True,
)
