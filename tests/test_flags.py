"""The command line before anything runs: its help, and what is said of a slip."""

import re
import shlex
from collections.abc import Callable

import pytest

from llmbench.cli import COMMANDS, main
from llmbench.config import Sweep
from llmbench.flags import parser

SECRET = "5ecret"

Said = Callable[..., tuple[int, str, str]]

GROUPS = [
    "what to measure",
    "what a request says beside its prompt",
    "load",
    "what it says",
    "when to stop",
    "trust",
    "output",
]
SET_OTHERWISE = {"search", "together", "least"}
"""What of a sweep is set by commands, not by its flags."""


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """What a command line that never runs leaves: its code, its output, and its one line."""

    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(args)
        return (int(left.value.code or 0), *capsys.readouterr())

    return run


# ── help ─────────────────────────────────────────────────────────────────────────────────────────


def flags_by_group(text: str) -> dict[str, list[str]]:
    """The flags of a help under their headings."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if heading := re.fullmatch(r"([a-z ]+):", line):
            its = found.setdefault(heading[1], [])
        elif flag := re.match(r"  (--[a-z-]+)", line):
            its.append(flag[1])
    return found


@pytest.mark.parametrize("columns", [80, 100, 200])
@pytest.mark.parametrize("command", ["", *COMMANDS, "models quantize"])
def test_help_fits_the_terminal(
    said: Said, monkeypatch: pytest.MonkeyPatch, command: str, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, text, problem = said(*command.split(), "--help")
    assert (code, problem) == (0, "")
    assert max(map(len, text.splitlines())) <= min(columns, 100)


def test_the_first_help_is_one_screen(said: Said) -> None:
    _, text, _ = said("--help")
    assert len(text.splitlines()) <= 40
    listed = re.findall(
        r"^  ([a-z][a-z-]+) +[a-z]", text.partition("\ncommands:\n")[2], re.MULTILINE
    )
    assert listed == list(COMMANDS)
    for code in ("0", "1", "2", "3", "4", "130"):
        assert re.search(rf"^ .*\b{code} [a-z]", text.partition("exit codes:\n")[2], re.MULTILINE)


@pytest.mark.parametrize(("command", "before"), [("sweep", []), ("capacity", ["the search"])])
def test_every_flag_is_in_a_group(said: Said, command: str, before: list[str]) -> None:
    _, text, _ = said(command, "--help")
    groups = flags_by_group(text)
    assert list(groups) == ["examples", "options", *before, *GROUPS]
    assert groups["examples"] == groups["options"] == []
    flags = [flag for group in GROUPS for flag in groups[group]]
    assert all(groups[group] for group in GROUPS)
    assert len(set(flags)) == len(flags)
    keys = {flag.removeprefix("--").replace("-", "_") for flag in flags}
    settings = {
        "header" if each == "headers" else each
        for each in set(Sweep.__struct_fields__) - SET_OTHERWISE
    }
    assert settings - {"calibrate"} == keys - {"no_calibrate", "config", "dry_run"}


@pytest.mark.parametrize(("command", "least"), [("", 4), ("sweep", 4), ("capacity", 2)])
def test_the_examples_of_a_help_are_command_lines(said: Said, command: str, least: int) -> None:
    _, text, _ = said(*command.split(), "--help")
    shown = text.partition("\nexamples:\n")[2].replace("\\\n", "")
    examples = re.findall(r"^ +(llmbench .*?)(?:   .*)?$", re.sub(" {8,}-", " -", shown), re.M)
    assert len(examples) >= least
    for example in examples:
        _, *words = shlex.split(example)
        assert parser(COMMANDS, words[0]).parse_args(words).command == words[0]


# ── slips ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("swep", "llmbench: unknown command 'swep'; did you mean 'sweep'?"),
        ("sweeep --help", "llmbench: unknown command 'sweeep'; did you mean 'sweep'?"),
        ("xyz", f"llmbench: unknown command 'xyz'; known are {', '.join(COMMANDS)}"),
        ("", "llmbench: missing: COMMAND; see llmbench --help"),
        (
            "--target localhost:80",
            "llmbench: a command is missing; did you mean llmbench sweep --target localhost:80?",
        ),
        (
            "sweep --concurency 1",
            "llmbench sweep: unknown flag --concurency; did you mean --concurrency?",
        ),
        (
            "report run --formt=json",
            "llmbench report: unknown flag --formt; did you mean --format?",
        ),
        ("sweep --xyzzy", "llmbench sweep: unknown flag --xyzzy; see llmbench sweep --help"),
        ("sweep -c 1", "llmbench sweep: unknown flag -c; see llmbench sweep --help"),
        (
            "sweep --format tabel",
            "llmbench sweep: --format: unknown value 'tabel'; did you mean 'table'?",
        ),
        ("sweep --api chatt", "llmbench sweep: --api: unknown value 'chatt'; did you mean 'chat'?"),
        (
            "sweep --api x",
            "llmbench sweep: --api: unknown value 'x'; "
            "known are chat, completions, responses, messages",
        ),
        (
            "models quantise",
            "llmbench models: unknown action 'quantise'; did you mean 'quantize'?",
        ),
        (
            "models vllm:m",
            "llmbench models: unknown action 'vllm:m'; known are quantize, export, onnx, path",
        ),
        (
            "sweep http://localhost:8000",
            "llmbench sweep: unexpected 'http://localhost:8000'; did you mean "
            "--target http://localhost:8000?",
        ),
        (
            "doctor vllm:m",
            "llmbench doctor: unexpected 'vllm:m'; did you mean --target vllm:m?",
        ),
        (
            "report run vllm:m",
            "llmbench report: unexpected 'vllm:m'; see llmbench report --help",
        ),
        (
            "sweep --concurrency 1 8",
            "llmbench sweep: unexpected '8'; see llmbench sweep --help",
        ),
        ("sweep --target", "llmbench sweep: --target needs a value; see llmbench sweep --help"),
        (
            "sweep --target --model m",
            "llmbench sweep: --target needs a value; see llmbench sweep --help",
        ),
        (
            "sweep --dry-run=1",
            "llmbench sweep: --dry-run takes no value; see llmbench sweep --help",
        ),
        ("compare", "llmbench compare: missing: RUN; see llmbench compare --help"),
    ],
)
def test_a_slip_is_one_line(said: Said, line: str, words: str) -> None:
    assert said(*line.split()) == (2, "", f"{words}\n")


@pytest.mark.parametrize(
    "line",
    [
        f"sweep --apikey={SECRET}",
        f"sweep --apikey {SECRET}",
        f"sweep https://user:{SECRET}@h",
        f"sweep http://h?key={SECRET}",
        f"http://h?key={SECRET}",
    ],
)
def test_a_slip_does_not_repeat_a_secret(said: Said, line: str) -> None:
    code, _, words = said(*line.split())
    assert code == 2
    assert "did you mean" in words
    assert SECRET not in words


def test_a_flag_may_be_cut_short() -> None:
    args = parser(COMMANDS, "sweep").parse_args(["sweep", "--conc", "1,2"])
    assert args.concurrency == [1, 2]


def test_a_flag_that_is_cut_too_short(said: Said) -> None:
    code, _, words = said("sweep", "--tim", "1", "--c", "1")
    assert code == 2
    assert re.fullmatch(r"llmbench sweep: ambiguous flag: --c .*--concurrency.*\n", words)
