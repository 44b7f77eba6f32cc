"""Do the stall metrics equal a schedule that is known?

    python benchmarks/stalls.py [--requests 72] [--concurrency 8]

A truth server makes every eighth token 60 ms late, and logs when it sent each. What one who listens
meets is worked out from the stored stamps, from the server's log and from the schedule itself, and
the greatest differences of any reply are printed.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

from tabulate import tabulate

from llmbench.apis import APIS
from llmbench.measure.speech import Answer, Manner, Speech, read, speech
from llmbench.store import RunDirectory
from llmbench.truth.process import TruthServer
from llmbench.truth.script import Script, schedule_ns

SCRIPT = Script(ttft_ms=20.0, itl_ms=10.0, output_tokens=28, stall_every=8, stall_ms=60.0)
MANNER = Manner(words_per_min=5_000.0, start_delay_s=0.0)
FIGURES = ("stalled_s", "start_delay_s", "longest_pause_s")


def heard(answer: Answer, sent_ns: list[int]) -> Speech:
    """What a listener meets where the pieces of ``answer`` come at ``sent_ns``."""
    at_ns = [each - sent_ns[0] for each in sent_ns]
    return speech(Answer(texts=answer.texts, at_ns=at_ns, end_ns=at_ns[-1]), MANNER)


def measure(server: TruthServer, requests: int, concurrency: int, folder: Path) -> RunDirectory:
    command = [sys.executable, "-m", "llmbench", "sweep", "--target", server.url, "--warmup", "0"]
    command += ["--requests", str(requests), "--concurrency", str(concurrency)]
    command += ["--output-tokens", str(SCRIPT.output_tokens), "--no-calibrate"]
    subprocess.run([*command, "--out", str(folder)], check=True, capture_output=True)
    return RunDirectory.open(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=72)
    parser.add_argument("--concurrency", type=int, default=8)
    args = parser.parse_args()
    worst = {name: [0.0, 0.0] for name in FIGURES}
    planned_s, equal, count = dict.fromkeys(FIGURES, 0.0), 0, 0
    with TruthServer(SCRIPT) as server, tempfile.TemporaryDirectory() as folder:
        run = measure(server, args.requests, args.concurrency, Path(folder) / "run")
        log = {reply.request_id: reply for reply in server.log()}
        for trace in run.traces():
            if trace.phase != "measured":
                continue
            timeline, answer = read(trace, APIS["chat"].decode)
            found = speech(answer, MANNER, timeline.failure)
            by_log = heard(answer, list(log[trace.request_id].token_sent_ns))
            by_plan = heard(answer, list(schedule_ns(SCRIPT, SCRIPT.output_tokens, Random(0))))
            equal += found.stalls == by_log.stalls == by_plan.stalls
            count += 1
            for name in FIGURES:
                planned_s[name] = getattr(by_plan, name)
                for index, truth in enumerate((by_log, by_plan)):
                    off = abs(getattr(found, name) - getattr(truth, name))
                    worst[name][index] = max(worst[name][index], off)
    rows = [
        [
            name.removesuffix("_s"),
            *(f"{1e3 * each:.3f}" for each in (planned_s[name], *worst[name])),
        ]
        for name in FIGURES
    ]
    heads = [
        "figure",
        "schedule\nms",
        "off from the\nlog, at most ms",
        "off from the\nschedule, ms",
    ]
    print(tabulate(rows, heads, disable_numparse=True, colalign=["left", *["right"] * 3]))
    print(f"{count} replies; the number of stalls is the schedule's in {equal}")


if __name__ == "__main__":
    main()
