"""What a server's ``/metrics`` says of where its requests' time went, in Prometheus' text format.

Only servers that count the time of each request are read: vLLM and SGLang. llama.cpp's server has
no count of requests, adds up its prompt time once a batch however many prompts share that, and
states every request's own times in the reply; TGI does not tell prefill from decode.
"""

from collections import defaultdict
from collections.abc import Container, Iterator
from math import inf

from prometheus_client.parser import text_string_to_metric_families

from llmbench.records import CachedTokens, ServerTime

# The histograms, in seconds with one sample a request, and our names for what they time. ``ttft``
# and ``e2e`` are no stages: they run from a request's arrival to its first and to its last token.
_HISTOGRAMS = {
    "vllm:request_queue_time_seconds": "queue",
    "vllm:request_prefill_time_seconds": "prefill",
    "vllm:request_decode_time_seconds": "decode",
    "vllm:time_to_first_token_seconds": "ttft",
    "vllm:e2e_request_latency_seconds": "e2e",
    "sglang:queue_time_seconds": "queue",
    "sglang:time_to_first_token_seconds": "ttft",
    "sglang:e2e_request_latency_seconds": "e2e",
}
_SAMPLES = {
    f"{name}_{suffix}": (stage, suffix)
    for name, stage in _HISTOGRAMS.items()
    for suffix in ("sum", "count")
}


def times(text: str) -> dict[str, ServerTime]:
    """The time spent since the server started, by what it went to; the engines behind one server
    are added up. Empty where ``text`` says nothing of it."""
    sums: defaultdict[tuple[str, str], float] = defaultdict(float)
    for name, value in _samples(text, _SAMPLES):
        sums[_SAMPLES[name]] += value
    return {
        stage: ServerTime(sums[stage, "sum"], sums[stage, "count"])
        for stage in dict.fromkeys(_HISTOGRAMS.values())
        if (stage, "sum") in sums and (stage, "count") in sums
    }


_CACHE = {
    "hits": ("vllm:prefix_cache_hits_total", "sglang:cached_tokens_total"),
    "queries": ("vllm:prefix_cache_queries_total", "sglang:prompt_tokens_total"),
}


def cached(text: str) -> CachedTokens | None:
    """The prompt tokens that were looked up in a prefix cache since the server started, and found
    there; ``None`` where ``text`` says nothing of it."""
    counts = {what: [value for _, value in _samples(text, names)] for what, names in _CACHE.items()}
    if not all(counts.values()):
        return None
    return CachedTokens(sum(counts["hits"]), sum(counts["queries"]))


def newly_cached(before: CachedTokens | None, after: CachedTokens | None) -> CachedTokens | None:
    """What was looked up between two readings, where anything was and no counter went back."""
    if before is None or after is None:
        return None
    new = CachedTokens(after.hits - before.hits, after.queries - before.queries)
    return new if 0 <= new.hits <= new.queries < inf and new.queries else None


def difference(
    before: dict[str, ServerTime], after: dict[str, ServerTime]
) -> dict[str, ServerTime]:
    """What was spent between two readings: empty if a counter went back, for then the server was
    restarted in between, or another one answered."""
    spent = {
        stage: ServerTime(
            after[stage].seconds - before[stage].seconds,
            after[stage].requests - before[stage].requests,
        )
        for stage in after
        if stage in before
    }
    if not all(0 <= each.seconds < inf and 0 <= each.requests < inf for each in spent.values()):
        return {}
    return {stage: each for stage, each in spent.items() if each.requests}


def _samples(text: str, names: Container[str]) -> Iterator[tuple[str, float]]:
    """The samples of ``names``, each with its name.

    Each line is parsed by itself: a server has thousands of other lines, and one that is not in the
    format must not cost the rest.
    """
    for line in text.split("\n"):
        name = line.partition("{")[0].partition(" ")[0]
        if name not in names:
            continue
        try:
            for family in text_string_to_metric_families(line):
                for sample in family.samples:
                    yield name, sample.value
        except (ValueError, IndexError, KeyError):  # the parser does not say what it raises
            continue
