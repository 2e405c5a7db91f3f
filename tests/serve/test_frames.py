"""Binary live messages: there and back, and no bytes that break the reader."""

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewstep.errors import RequestError
from fewstep.serve.frames import LIMIT, SIZE, Codec, Flag, Kind, Message, unpacked

U32 = st.integers(0, 2**32 - 1)
MESSAGES = st.builds(
    Message,
    kind=st.sampled_from(Kind),
    codec=st.sampled_from(Codec),
    seq=U32,
    payload=st.binary(min_size=1, max_size=64),
    flags=st.sampled_from([Flag.NONE, Flag.FINAL, Flag.FINAL | Flag.REFINED, Flag.UNCHANGED]),
    revision=U32,
    sender_ms=U32,
    source_seq=U32,
    server_ms=st.integers(0, 65535).map(lambda tenths: tenths / 10),
    queue_ms=st.integers(0, 65535).map(lambda tenths: tenths / 10),
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(MESSAGES)
def test_there_and_back(message):
    assert unpacked(message.packed()) == message


def test_the_bytes_are_those_of_the_table():
    message = Message(Kind.OUTPUT, Codec.JPEG, 5, b"xy", Flag.FINAL, 7, 1000, 3, 12.3, 0.4)
    by_hand = b"\x01\x02\x01\x02" + struct.pack("<IIII", 5, 7, 1000, 3) + struct.pack("<HH", 123, 4) + b"xy"
    assert message.packed() == by_hand and SIZE == 24


@given(st.binary(max_size=80))
def test_any_bytes_are_a_message_or_a_sentence(data):
    try:
        assert unpacked(data).packed()[4:] == data[4:]
    except RequestError as error:
        assert "live message" in str(error)


@pytest.mark.parametrize("cut", range(25))
def test_a_message_cut_at_every_byte(cut):
    whole = Message(Kind.INPUT, Codec.JPEG, 1, b"p").packed()
    if cut < len(whole):
        with pytest.raises(RequestError, match="header alone has 24"):
            unpacked(whole[:cut])


def test_limits_and_times_that_do_not_fit():
    with pytest.raises(RequestError, match="at most 4194304"):
        unpacked(Message(Kind.INPUT, Codec.JPEG, 1, bytes(LIMIT)).packed())
    late = unpacked(Message(Kind.OUTPUT, Codec.PNG, 2**32 + 1, b"x", server_ms=1e9, queue_ms=-5).packed())
    assert (late.seq, late.server_ms, late.queue_ms) == (1, 6553.5, 0)
