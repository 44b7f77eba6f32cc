"""One request to a target: its API's, with what the user says in every one."""

from collections.abc import Sequence

from llmbench.apis import APIS
from llmbench.apis.body import filled_in, with_fields
from llmbench.apis.dialect import Dialect
from llmbench.records import Content, Message, Target

Marks = tuple[str, str]
"""What the session and the request are called, where the user has marks for that."""


def encode(
    target: Target,
    messages: Sequence[Message],
    output_tokens: int,
    dialect: Dialect,
    content: Content,
    marks: Marks,
) -> bytes:
    """The JSON document to post."""
    said = with_system(messages, target.system_prompt)
    body = APIS[target.api].encode(target.model, said, output_tokens, dialect, content)
    return with_fields(body, filled_in(target.body, *marks))


def path_of(target: Target) -> str:
    """Where to post, below the base."""
    return target.path or APIS[target.api].path


def with_system(messages: Sequence[Message], system_prompt: str) -> Sequence[Message]:
    """``messages`` after the ``system_prompt``, where there is one, in the place of their own."""
    if not system_prompt:
        return messages
    said = messages[1:] if messages[0].role in ("system", "developer") else messages
    return [Message("system", system_prompt), *said]
