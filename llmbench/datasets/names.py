"""What people call the same field: names without case and separators, the likeliest first."""

from functools import cache

_OF_PROMPTS = ("prompt", "input", "context", "request", "prefill", "query")
_OF_REPLIES = ("output", "completion", "generated", "response", "reply", "decode", "generation")
_AMOUNTS = (
    "tokens",
    "length",
    "len",
    "token_count",
    "tokens_count",
    "token_len",
    "token_length",
    "seq_len",
    "seq_length",
    "sequence_length",
    "num_tokens",
    "size",
)


@cache
def plain(name: str) -> str:
    """``name`` as it is compared: in small letters, without separators."""
    return "".join(sign for sign in name.lower() if sign.isalnum())


def _lengths(*whose: str) -> tuple[str, ...]:
    names = [f"{who}{amount}" for amount in _AMOUNTS for who in whose]
    names += [f"{number}{who}tokens" for number in ("num", "n") for who in whose]
    return tuple(map(plain, names))


PROMPT_TOKENS = (*_lengths(*_OF_PROMPTS), "isl")
"""What the length of a prompt is called, as ``plain`` has it."""

OUTPUT_TOKENS = (
    *_lengths(*_OF_REPLIES),
    "osl",
    "maxcompletiontokens",
    "maxoutputtokens",
    "maxtokens",
    "maxnewtokens",
    "expectedoutputlen",
)
PROMPTS = ("prompt", "question", "instruction", "input", "text", "query", "text_input", "problem")
SYSTEMS = ("system", "system_prompt")
MESSAGES = ("messages", "conversations", "conversation")
