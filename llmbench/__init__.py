"""llmbench: the ruler for LLM token latency."""

__version__ = "0.1.0"
