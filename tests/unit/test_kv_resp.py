"""RESP off the wire: any split gives the same commands, nothing that anybody sends takes memory."""

from __future__ import annotations

import tracemalloc
from argparse import ArgumentTypeError

import hiredis
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workloads.kv import resp
from workloads.kv.limits import Limits, byte_count
from workloads.kv.resp import CommandParser, ReplyCutter, RespError, parse_message, split_arguments

LIMIT = 1000
LIMITS = Limits(bulk=LIMIT, query=LIMIT, arguments=100_000)
AWKWARD = st.sampled_from([b"", b"\r\n", b"a\r\n$3\r\nb", b"*1\r\n"])
ARGUMENTS = st.lists(st.one_of(st.binary(max_size=40), AWKWARD), min_size=1, max_size=70)


def parse(stream: bytes, steps: list[int]) -> tuple[list[resp.Command], str]:
    """What a parser makes of a stream that comes in pieces."""
    parser = CommandParser(LIMITS)
    commands: list[resp.Command] = []
    at = 0
    for step in [*steps, len(stream)]:
        more, wrong = parser.take(stream[at:at + step])
        commands += more
        if wrong is not None:
            return commands, str(wrong)
        at += step
        if at >= len(stream):
            break
    return commands, ""


@given(st.lists(ARGUMENTS, max_size=5), st.lists(st.integers(1, 60), max_size=60))
def test_any_split_gives_the_same_commands(commands, steps):
    commands = [c for c in commands if len(resp.command(c)) <= LIMIT]
    stream = b"".join(map(resp.command, commands))
    assert parse(stream, steps) == (commands, "")
    assert parse(stream, [1] * len(stream)) == (commands, "")


@given(st.lists(st.one_of(
    st.binary(max_size=30),
    st.sampled_from([b"*1\r\n", b"*2\r\n", b"*0\r\n", b"*-1\r\n", b"$4\r\n", b"PING\r\n", b"$0\r\n\r\n", b"\r\n",
                     b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n", b"$-1\r\n", b"*1000000000\r\n", b"$536870912\r\n"])),
    max_size=30), st.lists(st.integers(1, 40), max_size=40))
@example([b"*1\r\n$4\r\nPINGxx"], [])
@example([b"*1\r\n", b"\0" * 33], [5])
@example([b"*1\r\n$", b"1" * 31, b"\r\n"], [37])
def test_anything_split_anywhere_gives_the_same_commands_and_the_same_complaint(pieces, steps):
    stream = b"".join(pieces)
    assert parse(stream, steps) == parse(stream, [])


@given(st.lists(ARGUMENTS, min_size=1, max_size=4))
def test_hiredis_reads_the_same_commands(commands):
    reader = hiredis.Reader()
    reader.feed(b"".join(map(resp.command, commands)))
    expected = [reader.gets() for _ in commands]
    assert expected == commands
    assert parse_message(b"".join(map(resp.command, commands)), 1 << 20) == (expected, None)


HOSTILE = {
    b"*1000000000\r\n": "invalid multibulk length: at most 100000 arguments (--proto-max-multibulk-len)",
    b"*99999999999999999999999\r\n": "invalid multibulk length: at most 100000 arguments "
                                      "(--proto-max-multibulk-len)",
    b"*1\r\n$536870912\r\n": "invalid bulk length: at most 1000 bytes (--proto-max-bulk-len)",
    b"*1\r\n$-1\r\n": "invalid bulk length",
    b"*1\r\n$01\r\n": "invalid bulk length",
    b"*+1\r\n": "invalid multibulk length",
    b"*1\r\n*1\r\n": "expected '$', got '*'",
    b"*1\r\n:5\r\n": "expected '$', got ':'",
    b"*1\r\n$4\r\nPING*9": "a string is longer than its length",
    b"*" + b"1" * 100: "too big mbulk count string",
    b"*1\r\n$" + b"1" * 100: "too big bulk count string",
    b"x" * 65_537: "too big inline request: at most 65536 bytes (--proto-inline-max-size)",
    b"SET a \"b\r\n": "unbalanced quotes in request",
    # Each argument is within the limit, all of them are not.
    b"*3\r\n$3\r\nSET\r\n$600\r\n" + b"x" * 600 + b"\r\n$600\r\n":
        "too big command: at most 1000 bytes (--client-query-buffer-limit)",
    b"*2\r\n$3\r\nGET\r\n$990\r\n" + b"x" * 990 + b"\r\n": "too big command: at most 1000 bytes "
                                                                "(--client-query-buffer-limit)",
}


@pytest.mark.parametrize("stream", HOSTILE)
def test_hostile_requests_are_refused(stream):
    assert parse(stream, []) == ([], f"Protocol error: {HOSTILE[stream]}")
    # What came whole before is done.
    assert parse(b"*1\r\n$4\r\nPING\r\n" + stream, [])[0] == [[b"PING"]]


@pytest.mark.parametrize("stream", [b"*100000\r\n$1\r\n", b"*1\r\n" * 100_000, b"*1000000000\r\n",
                                    b"*1\r\n$536870912\r\n" + b"x" * 65_536, b"\xff" * 65_536,
                                    b"*100000\r\n" + b"$9\r\n123456789\r\n" * 10_000])
def test_a_claim_reserves_nothing(stream):
    tracemalloc.start()
    try:
        parser = CommandParser(LIMITS)
        for at in range(0, len(stream), 16_384):
            if parser.take(stream[at:at + 16_384])[1] is not None:
                break
        assert len(parser) <= LIMIT + 65_536
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_what_stands_where_a_limit_is():
    """Exactly at each limit is allowed, one more is not."""
    limits = Limits(bulk=20_000, arguments=1000, query=60_000, inline=9000)
    for allowed, refused in [
            (resp.command([b"x" * 20_000]), b"*1\r\n$20001\r\n"),
            (resp.command([b"x"] * 1000), b"*1001\r\n"),
            (resp.command([b"x" * 19_000] * 3 + [b"y" * 2950]), b"*4\r\n" + b"$19000\r\n" + b"x" * 19_000 + b"\r\n"
             + (b"$19000\r\n" + b"x" * 19_000 + b"\r\n") * 2 + b"$2980\r\n"),
            (b"x" * 9000 + b"\n", b"x" * 9001)]:
        for step in (len(refused), 7000, 13):
            for data, right in ((allowed, True), (refused, False)):
                parser = CommandParser(limits)
                results = [parser.take(data[at:at + step]) for at in range(0, len(data), step)]
                assert [wrong for _commands, wrong in results[:-1]] == [None] * (len(results) - 1)
                assert (results[-1][1] is None) is right
                assert sum(len(commands) for commands, _wrong in results) == int(right)


@given(st.integers(60_000, 200_000), st.lists(st.integers(1, 90_000), min_size=1, max_size=8), st.booleans())
def test_large_arguments_in_any_pieces(size, steps, wrong):
    value = b"0123456789" * (size // 10)
    stream = resp.command([b"SET", b"k", value, b"EX", value]) + b"*1\r\n$4\r\nPING\r\n"
    if wrong:
        stream = stream.replace(value + b"\r\n$2", value + b"xx$2")
    parser = CommandParser(Limits())
    commands: list[resp.Command] = []
    at, complaint = 0, None
    for step in [*steps, len(stream)]:
        more, complaint = parser.take(stream[at:at + step])
        commands += more
        at += step
        if complaint is not None:
            break
    assert (complaint is not None) is wrong
    assert commands == ([] if wrong else [[b"SET", b"k", value, b"EX", value], [b"PING"]])


def test_a_number_of_bytes_is_written_as_redis_writes_it():
    assert [byte_count(t) for t in ("0", "5", "5b", "1k", "1kb", "2m", "64MB", "1g", "1Gb")] == [
        0, 5, 5, 1000, 1024, 2_000_000, 64 << 20, 10**9, 1 << 30]
    for wrong in ("", "-1", "1tb", "1.5mb", "mb", "1 kb"):
        with pytest.raises(ArgumentTypeError, match="is no number of bytes, as 64mb"):
            byte_count(wrong)


def test_a_message_holds_whole_commands_only():
    ping, get = b"*1\r\n$4\r\nPING\r\n", b"*2\r\n$3\r\nGET\r\n$2\r\n\r\n\r\n"
    assert parse_message(ping + get, LIMIT) == ([[b"PING"], [b"GET", b"\r\n"]], None)
    assert parse_message(b"PING a\r\n", LIMIT) == ([[b"PING", b"a"]], None)
    for cut in [b"", b"\r\n", b"PING", b"*0\r\n", *(get[:at] for at in range(len(get))),
                *((ping + get)[:len(ping) + at] for at in range(1, len(get)))]:
        assert parse_message(cut, LIMIT)[1] is not None, cut


def test_lines_of_text_are_split_as_redis_splits_them():
    assert split_arguments(b"  SET\ta   b ") == [b"SET", b"a", b"b"]
    assert split_arguments(b'SET "a b" "\\x41\\n\\"\\q"') == [b"SET", b"a b", b'A\n"q']
    assert split_arguments(b"SET '' 'it\\'s \\n'") == [b"SET", b"", b"it's \\n"]
    for wrong in (b'"a', b"'a", b'"a"b', b"'a'b", b'"a\\'):
        with pytest.raises(RespError):
            split_arguments(wrong)


@given(st.lists(st.integers(1, 30), max_size=40))
def test_replies_are_cut_where_they_end(steps):
    replies = [b"+OK\r\n", b":1\r\n", b"$-1\r\n", b"*-1\r\n", b"_\r\n", b"$4\r\n\r\n\r\n\r\n", b"*0\r\n",
               b"*2\r\n*2\r\n:1\r\n$1\r\na\r\n*0\r\n", b"%1\r\n+a\r\n*1\r\n,1.5\r\n", b"~1\r\n#t\r\n",
               b"-ERR no\r\n", b"=6\r\ntxt:ab\r\n", b"(1234567890123456789012\r\n", b"%0\r\n"]
    stream = b"".join(replies)
    cutter = ReplyCutter()
    found: list[bytes] = []
    at = 0
    for step in [*steps, len(stream)]:
        found += cutter.take(stream[at:at + step])
        at = min(len(stream), at + step)
    assert found == replies


def test_a_reply_that_is_none_is_refused():
    with pytest.raises(RespError, match="type 'H'"):
        ReplyCutter().take(b"HTTP/1.1 400 Bad Request\r\n")
