"""What is asked of a target before it is timed, and what is said where that goes wrong."""

import pytest
from conftest import Peer, raw_server

from llmbench.drive.endpoint import endpoint
from llmbench.drive.limits import Limits
from llmbench.drive.probe import Probe
from llmbench.errors import Unmeasurable
from llmbench.records import Target

KEY = "sk-0123456789-secret"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 No\r\nContent-Length: %d\r\n\r\n%b",
        b"HTTP/1.1 302 Found\r\nContent-Length: %d\r\nLocation: /%b\r\n\r\n" + b" " * len(KEY),
        b"HTTP/1.1 200 OK\r\nX: %d\r\nContent-Type: text/event-stream\r\n %b\x00\r\n\r\n",
        b"nonsense %d %b\r\n\r\n",
    ],
)
async def test_a_key_that_comes_back_before_the_load_is_in_no_message(
    monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    """A server may repeat it in the words of an error, in a place, in a broken line. What a probe
    says of it goes to the terminal, to ``run.json`` and to ``summary.json``."""

    async def repeat(peer: Peer, _: int) -> None:
        while True:
            await peer.request()
            await peer.send(answer % (len(KEY), KEY.encode()))

    monkeypatch.setenv("OUR_KEY", KEY)
    async with raw_server(repeat) as server:
        target = Target(spec="", name="t", url=f"{server.url}/v1", model="m", key_env="OUR_KEY")
        async with Probe(target, endpoint(target), "salt", Limits(60.0)) as probe:
            with pytest.raises(Unmeasurable) as caught:
                await probe.find_dialect()
    assert KEY not in str(caught.value)
