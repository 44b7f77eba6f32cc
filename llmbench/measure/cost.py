"""What inference costs: by the token as a price list says, or by the hour of the hardware."""

from llmbench.records import Cell, Cost, Price

PER_MILLION = 1e6
SECONDS_PER_HOUR = 3600


def cost(cell: Cell, price: Price) -> Cost | None:
    """The cost of a thousand requests and of a million output tokens of ``cell``, in the currency
    of ``price``. ``None`` where tokens are not counted or nothing went through.

    By the token: the lengths that the server counted, cached prompt tokens at their own price. By
    the hour: the hourly price spread over the rate of the cell, at full use.
    """
    prompt, output = cell.measured_prompt_tokens, cell.measured_output_tokens
    if cell.verdict == "invalid" or output is None or not output.p50:
        return None
    if price.hour is not None:
        if not cell.requests_per_s:
            return None
        request = price.hour / SECONDS_PER_HOUR / cell.requests_per_s
    else:
        tokens_in = prompt.p50 if prompt is not None else cell.prompt_tokens
        cached = (cell.cached_share or 0.0) * tokens_in
        cached_price = price.input if price.cached is None else price.cached
        request = (
            (tokens_in - cached) * price.input + cached * cached_price + output.p50 * price.output
        ) / PER_MILLION
    return Cost(1e3 * request, request / output.p50 * PER_MILLION)
