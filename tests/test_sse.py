"""The event-stream parser, against the WHATWG rules and a second parser that reads byte by byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.apis import sse
from llmbench.apis.sse import ServerSentEvent, parse

BOM = b"\xef\xbb\xbf"


def reference(body: bytes) -> list[ServerSentEvent]:
    """The standard, read literally: one byte at a time, with the state that it names."""
    at = 3 if body[:3] == BOM else 0
    events: list[ServerSentEvent] = []
    line, data, name = b"", b"", b""
    after_cr = False
    while at < len(body):
        char = body[at : at + 1]
        at += 1
        if after_cr and char == b"\n":
            after_cr = False
            continue
        after_cr = char == b"\r"
        if char not in (b"\r", b"\n"):
            line += char
            continue
        if not line:
            if data:
                events.append((at, data[:-1], name.decode("utf-8", "replace")))
            data = name = b""
        elif line[0:1] != b":":
            colon = line.find(b":")
            field = line if colon < 0 else line[:colon]
            value = b"" if colon < 0 else line[colon + 1 :]
            if value[:1] == b" ":
                value = value[1:]
            if field == b"data":
                data += value + b"\n"
            elif field == b"event":
                name = value
        line = b""
    return events


CASES: dict[str, tuple[bytes, list[ServerSentEvent]]] = {
    "nothing": (b"", []),
    "one": (b"data: a\n\n", [(9, b"a", "")]),
    "two": (b"data: a\n\ndata: bc\n\n", [(9, b"a", ""), (19, b"bc", "")]),
    "crlf, complete by the CR": (
        b"data: a\r\n\r\ndata: b\r\n\r\n",
        [(10, b"a", ""), (21, b"b", "")],
    ),
    "cr": (b"data: a\r\rdata: b\r\r", [(9, b"a", ""), (18, b"b", "")]),
    "cr then crlf": (b"data: a\r\r\ndata: b\n\n", [(9, b"a", ""), (19, b"b", "")]),
    "lf then crlf": (b"data: a\n\r\n", [(9, b"a", "")]),
    "crlf then lf": (b"data: a\r\n\n", [(10, b"a", "")]),
    "lf then cr": (b"data: a\n\rdata: b\n\n", [(9, b"a", ""), (18, b"b", "")]),
    "crlf then cr": (b"data: a\r\n\rdata: b\n\n", [(10, b"a", ""), (19, b"b", "")]),
    "one crlf is not a blank line": (b"data: a\r\ndata: b\r\n\r\n", [(19, b"a\nb", "")]),
    "a cr inside a line ends it": (b"data: a\rdata: b\n\n", [(17, b"a\nb", "")]),
    "no space": (b"data:a\n\n", [(8, b"a", "")]),
    "only one space goes": (b"data:  a \n\n", [(11, b" a ", "")]),
    "a tab stays": (b"data:\ta\n\n", [(9, b"\ta", "")]),
    "several data lines": (b"data: a\ndata:b\ndata: c\n\n", [(24, b"a\nb\nc", "")]),
    "empty data": (b"data:\n\n", [(7, b"", "")]),
    "empty data with a space": (b"data: \n\n", [(8, b"", "")]),
    "data without a colon": (b"data\n\n", [(6, b"", "")]),
    "two empty data lines": (b"data\ndata\n\n", [(11, b"\n", "")]),
    "a colon in the data": (b'data: {"a":1}\n\n', [(15, b'{"a":1}', "")]),
    "a comment inside": (b": ping\ndata: a\n: pong\n\n", [(23, b"a", "")]),
    "a lone comment": (b": ping\n\ndata: a\n\n", [(17, b"a", "")]),
    "a lone colon": (b":\n\ndata: a\n\n", [(12, b"a", "")]),
    "a lone comment, crlf": (b": ping\r\n\r\ndata: a\r\n\r\n", [(20, b"a", "")]),
    "a comment that looks like data": (b":data: a\n\ndata: b\n\n", [(19, b"b", "")]),
    "fields of no concern": (
        b"id: 7\nretry: 10\nfoo: x\nbar\ndata: a\n\n",
        [(36, b"a", "")],
    ),
    "a name that only begins with data": (b"data2: x\nxdata: y\ndata: a\n\n", [(27, b"a", "")]),
    "fields mind the case": (b"Data: x\nDATA: y\n\ndata: a\n\n", [(26, b"a", "")]),
    "a space before the field": (b" data: x\n\ndata: a\n\n", [(19, b"a", "")]),
    "a space before the colon": (b"data : x\n\ndata: a\n\n", [(19, b"a", "")]),
    "a named event": (b"event: error\ndata: a\n\n", [(22, b"a", "error")]),
    "named after its data": (b"data: a\nevent:error\n\n", [(21, b"a", "error")]),
    "the last name counts": (b"event: x\nevent: y\ndata: a\n\n", [(27, b"a", "y")]),
    "a name is for one event": (b"event: x\n\ndata: a\n\n", [(19, b"a", "")]),
    "a name that is not UTF-8": (b"event: \xff\ndata: a\n\n", [(18, b"a", "\ufffd")]),
    "blank lines in a row": (
        b"\n\n\ndata: a\n\n\n\n\ndata: b\n\n",
        [(12, b"a", ""), (24, b"b", "")],
    ),
    "one blank line first": (b"\ndata: a\n\n", [(10, b"a", "")]),
    "one blank crlf first": (b"\r\ndata: a\r\n\r\n", [(12, b"a", "")]),
    "cut off after its line": (b"data: a\n\ndata: b\n", [(9, b"a", "")]),
    "cut off within its line": (b"data: a\n\ndata: b", [(9, b"a", "")]),
    "cut off after a crlf": (b"data: a\r\n", []),
    "a byte order mark": (BOM + b"data: a\n\n", [(12, b"a", "")]),
    "a byte order mark, crlf": (BOM + b"data: a\r\n\r\n", [(13, b"a", "")]),
    "two byte order marks": (BOM + BOM + b"data: a\n\ndata: b\n\n", [(24, b"b", "")]),
    "a byte order mark later": (b"data: a\n\n" + BOM + b"data: b\n\n", [(9, b"a", "")]),
    "wide characters": ("data: é光🙂\n\n".encode(), [(17, "é光🙂".encode(), "")]),
    "line separators that are none": (
        "data: a\u2028b\u0085c\x0b\x0cd\n\n".encode(),
        [(19, "a\u2028b\u0085c\x0b\x0cd".encode(), "")],
    ),
    "bytes that are not UTF-8": (b"data: \xc3\x28\xff\n\n", [(11, b"\xc3\x28\xff", "")]),
    "a null byte": (b"data: a\0b\n\n", [(11, b"a\0b", "")]),
}


@pytest.mark.parametrize(("body", "expected"), CASES.values(), ids=CASES)
def test_a_whole_body(body: bytes, expected: list[ServerSentEvent]) -> None:
    assert list(parse(body)) == expected
    assert reference(body) == expected


@pytest.mark.parametrize(("body", "expected"), CASES.values(), ids=CASES)
def test_byte_by_byte(body: bytes, expected: list[ServerSentEvent]) -> None:
    for size in range(len(body) + 1):
        assert list(parse(body[:size])) == [event for event in expected if event[0] <= size]


def test_openais_own_stream() -> None:
    body = b'data: {"choices":[]}\n\ndata: [DONE]\n\n'
    assert list(parse(body)) == [(22, b'{"choices":[]}', ""), (36, b"[DONE]", "")]


PIECES = [
    *(b"data", b"data:", b"data: ", b"event", b"event: ", b"id: 1", b"retry:", b"foo"),
    *(b":", b": ping", b" ", b"x", b"{}", b"[DONE]", "é".encode(), "🙂".encode(), b"\xc3", BOM),
    *([b"\n", b"\r", b"\r\n", b"\n\n"] * 3),
]
ANY_BODY = st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join)
LF_BODY = ANY_BODY.map(lambda body: body.replace(b"\r", b""))
LINE_ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])
VALUES = st.text("a :\té光🙂\u2028", max_size=8)


@given(ANY_BODY)
def test_any_body_is_parsed_as_the_reference_does(body: bytes) -> None:
    assert list(parse(body)) == reference(body)


@given(LF_BODY)
def test_the_quick_way_is_the_general_one(body: bytes) -> None:
    start = 3 if body.startswith(BOM) else 0
    assert list(parse(body)) == list(sse._parse_any(body, start)) == reference(body)


@given(ANY_BODY, ANY_BODY)
def test_what_follows_never_changes_what_was(body: bytes, more: bytes) -> None:
    before = list(parse(body))
    assert [event for event in parse(body + more) if event[0] <= len(body)] == before


@given(ANY_BODY)
def test_any_prefix_has_the_events_that_ended_in_it(body: bytes) -> None:
    events = list(parse(body))
    for size in range(len(body) + 1):
        assert list(parse(body[:size])) == [event for event in events if event[0] <= size]


@st.composite
def written_events(draw: st.DrawFn) -> tuple[bytes, list[ServerSentEvent]]:
    """A body as some server might write it, and its events as they were meant."""
    body = draw(st.sampled_from([b"", BOM]))
    meant: list[ServerSentEvent] = []
    for _ in range(draw(st.integers(0, 4))):
        lines, name = [], ""
        values = [value.encode() for value in draw(st.lists(VALUES, max_size=3))]
        for value in values:
            lines.append(b"data: " + value)
            if draw(st.booleans()):
                lines.append(b":" + draw(VALUES).encode())
        if draw(st.booleans()):
            name = draw(VALUES)
            lines.insert(draw(st.integers(0, len(lines))), b"event: " + name.encode())
        for line in lines:
            body += line + draw(LINE_ENDS)
            if body.endswith(b"\r"):
                body += draw(st.sampled_from([b"", b"\n"]))
        blank = draw(LINE_ENDS)
        if body.endswith(b"\r") and blank == b"\n":  # those two would be one line end
            blank = b"\r"
        body += blank
        if values:
            end = len(body) - (blank == b"\r\n")
            meant.append((end, b"\n".join(values), name))
    return body, meant


@given(written_events())
def test_what_was_written_is_read(written: tuple[bytes, list[ServerSentEvent]]) -> None:
    body, meant = written
    assert list(parse(body)) == meant
