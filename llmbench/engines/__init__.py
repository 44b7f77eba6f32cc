"""Engines that llmbench starts itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from llmbench.engines.llamacpp import LlamaCpp
from llmbench.records import Load, Target

TEMPLATE_TOKENS = 128
"""Room in a context for what a chat template adds while a prompt's length is being found."""


@asynccontextmanager
async def running(
    target: Target, loads: list[Load], folder: Path, progress: bool
) -> AsyncIterator[tuple[Target, str]]:
    """Run the engine of ``target``, with room for every load; yield the target as it can be reached
    and what the engine calls itself. Its log goes to ``folder``."""
    longest = max(load.prompt_tokens + load.output_tokens for load in loads)
    async with LlamaCpp(
        Path(target.model) if target.model else None,
        parallel=max(load.concurrency for load in loads),
        context=longest + TEMPLATE_TOKENS,
        threads=target.threads,
        log_path=folder / f"{target.engine}.log",
        progress=progress,
    ) as engine:
        reachable = msgspec.structs.replace(
            target, url=engine.url, model=engine.model, quantization=engine.quantization
        )
        yield reachable, engine.version
