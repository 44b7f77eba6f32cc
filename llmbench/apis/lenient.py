"""What servers send in place of what OpenAI's would, brought into the usual shape.

Numbers, objects and lists of parts stand where text is usual, counts are floats or strings, halves
of a surrogate pair come alone, and one event holds several documents. Only values are looked at
here; what they mean is said once, in ``chunks``. What cannot be read raises ``ValueError``.
"""

import json
import re
from typing import Any

Document = dict[str, Any]

_JSON = json.JSONDecoder()  # as the SDKs have it: lone surrogates and NaN pass
_BETWEEN = re.compile(r"\s*(?:data:\s*)*")
_DONE = "[DONE]"

MOST_TOKENS = 1_000_000_000

_TEXTS = ("text", "thinking", "reasoning", "summary", "refusal", "content", "value", "parts")
"""Where the text of an object is, the likelier first."""

_GOOD_CODES = (None, "", 0, 200, "0", "200", "success", "OK", "ok")
"""Codes that come with a message, and with no error."""

_AS_IS = ("error", "object", "timings")
_COUNTS = (
    *("prompt_tokens", "completion_tokens", "total_tokens"),
    *("prompt_cache_hit_tokens", "cache_read_input_tokens"),
    *("cached_tokens", "reasoning_tokens"),
)


def documents(text: str) -> tuple[list[Any], bool]:
    """The JSON documents in ``text``, those of a list one by one and no nulls, and whether
    ``[DONE]`` follows them."""
    found: list[Any] = []
    at = 0
    while (between := _BETWEEN.match(text, at)) and (at := between.end()) < len(text):
        if text.startswith(_DONE, at):
            return found, True
        document, at = _JSON.raw_decode(text, at)
        is_list = isinstance(document, list) and bool(document)
        found += [each for each in (document if is_list else [document]) if each is not None]
    return found, False


def chunk(document: Any) -> Document:
    """A chunk."""
    if not isinstance(document, dict):
        raise ValueError(f"it is {_kind(document)}, not an object")
    choices, groq = document.get("choices") or None, document.get("x_groq")
    if not isinstance(choices, list | None):
        raise ValueError(f"its choices are {_kind(choices)}, not a list")
    return {name: document.get(name) for name in _AS_IS} | {
        "choices": [_choice(each) for each in choices or () if each is not None],
        "usage": _usage(document.get("usage")),
        "x_groq": {"usage": _usage(groq.get("usage")), "error": groq.get("error")}
        if isinstance(groq, dict)
        else None,
    }


def _choice(choice: Any) -> Document:
    if not isinstance(choice, dict):
        raise ValueError(f"a choice is {_kind(choice)}, not an object")
    delta = choice.get("delta") or None  # some languages write an empty object as a list
    ids, count = choice.get("token_ids"), choice.get("token_count")
    if not isinstance(delta, dict | None):
        raise ValueError(f"a delta is {_kind(delta)}, not an object")
    finish, words = _finish(choice.get("finish_reason"))
    return {
        "delta": None if delta is None else _delta(delta),
        "text": _text(choice.get("text")),
        "finish_reason": finish,
        "native_finish_reason": words or _finish(choice.get("native_finish_reason"))[0],
        "token_ids": [0] * len(ids) if isinstance(ids, list) else None,
        "token_count": _count(count),
        "usage": _usage(choice.get("usage")),
        "error": choice.get("error"),
    }


def _delta(delta: Document) -> Document:
    thought, answer = _apart(delta.get("content"))
    calls, call = delta.get("tool_calls"), delta.get("function_call")
    return {
        "role": clean(delta["role"]) if isinstance(delta.get("role"), str) else None,
        "content": answer,
        "refusal": _text(delta.get("refusal")),
        "reasoning_content": _text(delta.get("reasoning_content"))
        or _text(delta.get("reasoning"))
        or _text(delta.get("thinking"))
        or details(delta.get("reasoning_details"))
        or thought,
        "tool_calls": calls if isinstance(calls, list | None) else [calls],
        "function_call": call if isinstance(call, dict | None) else {"arguments": call},
    }


def _apart(content: Any) -> tuple[str, str]:
    """The reasoning and the answer in ``content``."""
    parts = content if isinstance(content, list) else [content]
    thought = answer = ""
    for part in parts:
        if _is_thought(part):
            thought += _text(part)
        else:
            answer += _text(part)
    return thought, answer


def _is_thought(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    kind = str(part.get("type", "")).lower()
    return "think" in kind or "reason" in kind or (not kind and bool(part.get("thinking")))


def details(parts: Any) -> str:
    """The reasoning in ``reasoning_details``; what is encrypted has no text."""
    return _text(parts) if isinstance(parts, list) else ""


def _text(value: Any) -> str:
    """What a reader would see of ``value`` where a text is usual."""
    match value:
        case str():
            return value
        case None | bool():
            return ""
        case int() | float():
            return str(value)
        case list():
            return "".join(map(_text, value))
    for name in _TEXTS:
        if value.get(name) is not None:
            return _text(value[name])
    return "" if not value or "type" in value else json.dumps(value, ensure_ascii=False)


def _finish(reason: Any) -> tuple[str, str]:
    """A finish reason, and the words that come with one that is an object."""
    if isinstance(reason, dict):
        words = reason.get("message")
        kind = reason.get("type") or reason.get("reason") or "stop"
        return clean(str(kind)), clean(words) if isinstance(words, str) else ""
    return (clean(str(reason)) if reason else ""), ""


def _usage(usage: Any) -> Document | None:
    if not isinstance(usage, dict):
        return None
    return {name: _count(usage.get(name)) for name in _COUNTS} | {
        "prompt_tokens_details": _detail(usage, "prompt_tokens_details", "cached_tokens"),
        "completion_tokens_details": _detail(
            usage, "completion_tokens_details", "reasoning_tokens"
        ),
    }


def _detail(usage: Document, name: str, count: str) -> Document | None:
    its = usage.get(name)
    return {count: _count(its.get(count))} if isinstance(its, dict) else None


def _count(value: Any) -> int | None:
    """A number of tokens; ``None`` for what is none."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 11:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_TOKENS:
        return None
    return value


def error_within(document: Any) -> Any:
    """The error that a choice, or Groq's part of a chunk, holds; ``None`` without one."""
    if not isinstance(document, dict):
        return None
    choices = document.get("choices")
    inner = [document.get("x_groq"), *(choices if isinstance(choices, list) else ())]
    errors = (each.get("error") for each in inner if isinstance(each, dict))
    return next(filter(None, errors), None)


def states_error(document: Any) -> bool:
    """Whether ``document`` says that something went wrong, in any of the shapes in use."""
    if isinstance(document, list):
        return bool(document) and states_error(document[0])
    if not isinstance(document, dict):
        return False
    if document.get("error") or error_within(document) is not None:
        return True
    if _code_of(document) or document.get("success") is False:
        return not document.get("choices")
    if document.get("choices") or document.get("usage"):
        return document.get("object") == "error"
    kind = str(document.get("type", "")) + str(document.get("object", ""))
    coded = (document.get("message") or document.get("msg")) and (
        document.get("code") not in _GOOD_CODES
    )
    return bool(document.get("detail") or coded or "error" in kind.lower())


_ERROR_CODES = ("error_code", "errorCode", "errcode")


def _code_of(document: Document) -> Any:
    """The code of an error, where there is a place of its own for it; none where that is 0."""
    status = document.get("base_resp")
    code = status.get("status_code") if isinstance(status, dict) else None
    return code or next(filter(None, map(document.get, _ERROR_CODES)), None)


def clean(text: str) -> str:
    """``text`` with what cannot be written as UTF-8 replaced."""
    return joined([text])


def joined(texts: list[str]) -> str:
    """``texts`` end to end, the halves of a surrogate pair put together, a lone one replaced."""
    whole = "".join(texts)
    if whole.isascii():
        return whole
    return whole.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _kind(value: Any) -> str:
    match value:
        case list():
            return "a list"
        case dict():
            return "an object"
    return json.dumps(value)[:20]
