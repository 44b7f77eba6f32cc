"""What of a sweep's load and content does not go together: one line that says what would."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from llmbench.apis import APIS
from llmbench.datasets import FORMATS, detect, open_dataset
from llmbench.errors import UserError, suggestion
from llmbench.plan.arrivals import read_arrivals, read_rate
from llmbench.plan.lengths import read_length, read_lengths, read_seconds, shown
from llmbench.plan.prompts import DEFAULT_TEXT, texts
from llmbench.plan.until import read_until
from llmbench.records import TEXT_FORMATS, Sample
from llmbench.targets import IN_PROCESS, SAID

if TYPE_CHECKING:
    from llmbench.config import Sweep

BARGE_IN_AFTER = "uniform(0.2,1)"
"""Seconds from a reply's first token to the user's cut, if nothing is said."""

Place = Callable[[str], str]
"""What to call a key where the user gave it: the flag, or the file and the key."""


def check_load(sweep: "Sweep", place: Place) -> None:
    """Raise ``UserError`` for what cannot be planned, before anything runs."""
    for part in (_lengths, _rates, _stops, _conversation, _dataset, _clients):
        part(sweep, place)


def dataset_format(sweep: "Sweep", place: Place) -> str:
    """The format of the dataset, found where it was not named; its first row is read."""
    if not sweep.dataset:
        return ""
    name = sweep.dataset_format
    if name and name not in FORMATS:
        known = suggestion(name, list(FORMATS))
        raise UserError(f"{place('dataset_format')}: no format is called '{shown(name)}'{known}")
    try:
        name = name or detect(sweep.dataset, sweep.dataset_columns)
        rows = open_dataset(
            sweep.dataset,
            name,
            sweep.dataset_columns,
            sweep.skip_broken,
            timed=is_traced(sweep),
        )
        first = next(iter(rows))
        rows.close()
    except UserError as problem:
        words = str(problem).replace("--dataset ", f"{place('dataset')} ")
        if sweep.dataset_columns:  # else it is a flag to give, and not one that was given
            words = words.replace("--dataset-columns", place("dataset_columns"))
        raise UserError(words) from None
    if first.at_s is None and is_traced(sweep):
        raise UserError(f"{place('request_rate')}: {sweep.dataset} ({name}) says no times")
    _check_can_ask(sweep, first, place)
    if name in TEXT_FORMATS and sweep.shared_prefix:
        raise UserError(f"{place('shared_prefix')}: the prompts of a dataset are what they are")
    if name in TEXT_FORMATS and sweep.text != DEFAULT_TEXT:
        raise UserError(f"{place('text')}: the prompts come from {place('dataset')}")
    return name


def _check_can_ask(sweep: "Sweep", row: Sample, place: Place) -> None:
    """Refuse rows with more than texts where a target takes texts alone."""
    what = "tools" if row.fields else "images, audio or calls of tools"
    if not row.fields and all(message.is_plain for message in row.messages):
        return
    for target in sweep.targets():
        if target.engine in IN_PROCESS or target.api == "completions":
            why = "is called in process" if target.engine in IN_PROCESS else "is asked completions"
            raise UserError(
                f"{place('dataset')}: its rows have {what}, and {target.name} {why}; serve it over "
                "HTTP, and ask --api chat"
            )


def _lengths(sweep: "Sweep", place: Place) -> None:
    pairs = read_lengths(",".join(map(str, sweep.prompt_tokens or [1])), place("prompt_tokens"))
    reply = read_length(str(sweep.output_tokens or 1), place("output_tokens"))
    if sweep.batch_size and not all((own or reply).fixed for _, own in pairs):
        key = "output_tokens" if not reply.fixed else "prompt_tokens"
        raise UserError(f"{place(key)}: the replies of a static batch have one length")
    if sweep.output_tokens is not None and all(own for _, own in pairs):
        raise UserError(
            f"{place('output_tokens')}: each length in {place('prompt_tokens')} has its own already"
        )
    if sweep.text not in (known := texts()):
        meant = suggestion(sweep.text, known)
        raise UserError(f"{place('text')}: no text is called '{shown(sweep.text)}'{meant}")


def _rates(sweep: "Sweep", place: Place) -> None:
    rates = [read_rate(str(rate), place("request_rate")) for rate in sweep.request_rate or ()]
    if len({str(rate) for rate in rates}) < len(rates):
        raise UserError(f"{place('request_rate')}: something stands there twice")
    read_arrivals(sweep.arrivals, place("arrivals"))
    traced = is_traced(sweep)
    if traced and sweep.until and not sweep.requests:
        raise UserError(f"{place('until')}: of a trace, give --requests: the most to measure")
    if sweep.arrivals != "poisson" and all(rate.mean is None for rate in rates):
        raise UserError(f"{place('arrivals')}: only a --request-rate in numbers has arrivals")
    if traced and not sweep.dataset:
        raise UserError(f"{place('request_rate')}: trace: name the trace with --dataset FILE")
    if sweep.speed != 1 and not traced:
        raise UserError(f"{place('speed')}: only a replay has one: --request-rate trace")
    if sweep.max_concurrency and not rates:
        raise UserError(
            f"{place('max_concurrency')}: it caps a --request-rate; a closed loop has --concurrency"
        )


def is_traced(sweep: "Sweep") -> bool:
    """Whether the requests come when the rows of the dataset say."""
    return any(read_rate(str(rate)).mean is None for rate in sweep.request_rate or ())


def _stops(sweep: "Sweep", place: Place) -> None:
    if sweep.until:
        until = read_until(sweep.until, place("until"))
        if sweep.requests and sweep.requests < until.fewest:
            raise UserError(
                f"{place('requests')}: TTFT {until.quantile} needs {until.fewest} requests to have "
                f"an interval at a look of {place('until')}"
            )
    for key, plain in (("start", "spread"), ("segments", None)):
        if getattr(sweep, key) != plain and (sweep.request_rate or sweep.batch_size):
            raise UserError(f"{place(key)}: only the streams of a --concurrency have it")
    most = str(sweep.max_failures)
    share = re.fullmatch(r"(\d+(?:\.\d+)?)%", most)
    if most and not (re.fullmatch("[0-9]+", most) or (share and float(share[1]) <= 100)):
        raise UserError(
            f"{place('max_failures')} '{shown(most)}': write a number of requests, or a share "
            "such as 20%"
        )


def _conversation(sweep: "Sweep", place: Place) -> None:
    if sweep.think_time != "":
        read_seconds(str(sweep.think_time), place("think_time"))
        if sweep.turns == 1:
            raise UserError(
                f"{place('think_time')}: there is nothing to think about in one turn; give --turns"
            )
    if sweep.barge_in:
        read_seconds(str(sweep.barge_in_after), place("barge_in_after"))
        if sweep.turns == 1:
            raise UserError(
                f"{place('barge_in')}: users cut off a reply to say their next turn; give --turns"
            )
    elif sweep.barge_in_after != BARGE_IN_AFTER:
        raise UserError(f"{place('barge_in_after')}: no reply is cut off; give --barge-in")
    if sweep.batch_size and (sweep.turns > 1 or sweep.dataset):
        key = "dataset" if sweep.dataset else "turns"
        raise UserError(f"{place(key)}: static batches have one turn, of one length")
    if sweep.shared_prefix and "warm" in sweep.cache:
        raise UserError(
            f"{place('shared_prefix')}: with --cache warm whole prompts are shared; give one"
        )


def _dataset(sweep: "Sweep", place: Place) -> None:
    for key in ("dataset_format", "dataset_columns", "skip_broken"):
        if getattr(sweep, key) and not sweep.dataset:
            raise UserError(f"{place(key)}: there is no --dataset that it could be about")


def _clients(sweep: "Sweep", place: Place) -> None:
    if sweep.first_token_timeout and sweep.first_token_timeout >= sweep.timeout:
        raise UserError(
            f"{place('first_token_timeout')}: must be less than the timeout, {sweep.timeout:g} s"
        )
    for key in ("first_token_timeout", "barge_in"):
        if getattr(sweep, key) and sweep.client != ["wire"]:
            raise UserError(f"{place(key)}: only the wire client can do that")
    if sweep.insecure and sweep.ca_file:
        raise UserError(f"{place('insecure')}: nothing is verified then; leave --ca-file out")
    targets = sweep.targets()
    for target in targets:
        if "openai" in sweep.client and not APIS[target.api].sdk:
            raise UserError(
                f"{place('client')}: openai's SDK does not speak {target.api}; take wire or aiohttp"
            )
    for target in targets if sweep.agreement else ():
        if target.body.get("temperature"):
            raise UserError(
                f"{place('agreement')}: its replies are greedy, and {target.name} is asked for a "
                "temperature; leave one of the two out"
            )
    inside = [target.name for target in targets if target.engine in IN_PROCESS]
    if not inside:
        return
    for key in SAID:
        if getattr(sweep, key) not in ({}, "", None):
            raise UserError(f"{place(key)}: {inside[0]} is called in process; serve it over HTTP")
    for key, given in (("cache", "warm" in sweep.cache), ("shared_prefix", sweep.shared_prefix)):
        if given:
            raise UserError(
                f"{place(key)}: {inside[0]} is called in process, where prefix caches are off; "
                f"serve it over HTTP"
            )
    for key in ("first_token_timeout", "barge_in"):
        if getattr(sweep, key):
            raise UserError(f"{place(key)}: {inside[0]} is called in process; serve it over HTTP")
