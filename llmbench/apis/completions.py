"""OpenAI completions: ``POST /completions``, a bare prompt without a chat template."""

from collections.abc import Sequence

import msgspec

from llmbench.apis.api import Api
from llmbench.apis.chunks import decode_all
from llmbench.apis.dialect import DIALECTS, Dialect, options
from llmbench.apis.server_times import with_server_times
from llmbench.errors import UserError
from llmbench.records import Content, Message


def encode(
    model: str, messages: Sequence[Message], output_tokens: int, dialect: Dialect, content: Content
) -> bytes:
    """The request's JSON document: the texts of ``messages``, and a wish for ``output_tokens``."""
    if not all(message.is_plain for message in messages):
        raise UserError("completions take texts alone, no images and no tools: ask --api chat")
    prompt = "\n\n".join(message.text for message in messages)
    return msgspec.json.encode(
        {"model": model, "prompt": prompt} | options(dialect, output_tokens, content)
    )


API = Api(
    path="/completions",
    encode=encode,
    decode=with_server_times(decode_all),
    dialects=DIALECTS,
    sdk="completions.create",
    in_process=True,
)
