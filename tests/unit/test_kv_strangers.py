"""Whoever speaks another protocol to the port of the key-value store: nothing is done, the connection ends."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.kv import resp
from workloads.kv.backend import EmbeddedStore
from workloads.kv.commands import COMMANDS
from workloads.kv.limits import Limits
from workloads.kv.resp import CommandParser
from workloads.kv.server import _GUARD, RespStreamServer
from workloads.kv.store import Keyspace
from workloads.kv.strangers import Stranger
from workloads.transports.stream import Stream

#: What a stranger hides for us: it would empty the store, or write to it.
EVIL = b"FLUSHALL\r\nSET evil 1\r\n*1\r\n$8\r\nFLUSHALL\r\n"
_BODY = b"Host: victim:6379\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (len(EVIL), EVIL)
#: Those of HTTP, and, as a page can make some up, commands of ours.
METHODS = ["GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE", "PROPFIND", "MKCOL",
           "COPY", "MOVE", "LOCK", "SEARCH", "PURGE", "get", "post", *(name.upper() for name in COMMANDS)]
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(32)) + b"\x20" + EVIL * 2
SMB = bytes.fromhex("00000054ff534d4272") + EVIL

STRANGERS = {
    **{f"{method} with headers": method.encode() + b" /x%20y HTTP/1.1\r\n" + _BODY for method in METHODS},
    **{f"{method} as HTTP 1.0": method.encode() + b" /key HTTP/1.0\r\n" + _BODY for method in METHODS},
    "OPTIONS *": b"OPTIONS * HTTP/1.1\r\n" + _BODY,
    "through a proxy": b"GET http://victim/ HTTP/1.1\r\n" + _BODY,
    "websocket": b"GET /chat HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                 b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" + EVIL,
    "empty lines first": b"\r\n\r\nPOST / HTTP/1.1\r\n" + _BODY,
    "line feeds only": b"POST / HTTP/1.1\nHost: x\n\n" + EVIL,
    "a header": b"Host: x\r\n" + EVIL,
    "another header": b"User-Agent: x\r\n" + EVIL,
    "POST alone": b"POST\r\n" + EVIL,
    "HTTP 2": HTTP2 + EVIL,
    "TLS": CLIENT_HELLO,
    "SSL 2": bytes.fromhex("802e0100020015000000100100800200800300800400800500800600") + EVIL,
    "SMTP": b"EHLO mail.example\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n" + EVIL + b".\r\nQUIT\r\n",
    "old SMTP": b"HELO mail.example\r\n" + EVIL,
    "LMTP": b"LHLO x\r\n" + EVIL,
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n" + EVIL,
    "FTP": b"USER anonymous\r\nPASS x\r\n" + EVIL,
    "POP3": b"CAPA\r\nUSER x\r\n" + EVIL,
    "IMAP": b"a001 LOGIN x y\r\n" + EVIL,
    "IRC": b"NICK x\r\nUSER x 0 * :x\r\n" + EVIL,
    "RTSP": b"DESCRIBE rtsp://x/y RTSP/1.0\r\nCSeq: 1\r\n\r\n" + EVIL,
    "RTSP options": b"OPTIONS rtsp://x/y RTSP/1.0\r\nCSeq: 1\r\n\r\n" + EVIL,
    "SIP": b"INVITE sip:a@b SIP/2.0\r\nVia: SIP/2.0/TCP x\r\n\r\n" + EVIL,
    "SIP options": b"OPTIONS sip:nm SIP/2.0\r\nVia: SIP/2.0/TCP nm\r\n\r\n" + EVIL,
    "ICAP": b"REQMOD icap://x/y ICAP/1.0\r\n\r\n" + EVIL,
    "PROXY 1": b"PROXY TCP4 1.2.3.4 5.6.7.8 1234 6379\r\n" + EVIL,
    "PROXY 2": b"\r\n\r\n\0\r\nQUIT\n" + bytes.fromhex("2111000c") + bytes(12) + EVIL,
    **{f"memcached {verb}": verb.encode() + b" k 0 0 %d\r\n%b\r\n" % (len(EVIL), EVIL)
       for verb in ("set", "add", "replace", "append", "prepend", "SET")},
    "memcached cas": b"cas k 0 0 10 77\r\n" + EVIL, "memcached noreply": b"set k 0 -1 10 noreply\r\n" + EVIL,
    "memcached meta": b"ms k 10\r\n" + EVIL, "memcached gets": b"gets k\r\n" + EVIL,
    "memcached multi": b"get k l m\r\n" + EVIL, "memcached incr": b"incr k 5\r\n" + EVIL,
    "memcached delete": b"delete k\r\n" + EVIL, "memcached stats": b"stats\r\n" + EVIL,
    "memcached version": b"version\r\n" + EVIL, "memcached flush": b"flush_all\r\n" + EVIL,
    "memcached binary": bytes.fromhex("80010003080000000000000b00000000") + bytes(8) + EVIL,
    "PostgreSQL": bytes.fromhex("0000000804d2162f") + EVIL,
    "MongoDB": bytes.fromhex("3f0000000100000000000000d4070000") + EVIL,
    "MQTT": bytes.fromhex("101000044d51545404020000") + EVIL,
    "AMQP": b"AMQP\0\0\x09\x01" + EVIL, "LDAP": bytes.fromhex("300c020101600702010304008000") + EVIL,
    "Kafka": bytes.fromhex("0000002400120000") + EVIL, "DNS": bytes.fromhex("001d12340100000100000000") + EVIL,
    "RDP": bytes.fromhex("0300002b26e00000000000") + EVIL, "SMB": SMB, "X11": b"l\0\x0b\0\0\0\0\0" + EVIL,
    "BitTorrent": b"\x13BitTorrent protocol" + EVIL, "VNC": b"RFB 003.008\n" + EVIL,
    "telnet options": b"\xff\xfd\x01\xff\xfd\x1f" + EVIL, "rsync": b"@RSYNCD: 31.0\n" + EVIL,
    "git": b"0033git-upload-pack /x\0host=y\0" + EVIL, "XMPP": b"<?xml version='1.0'?>\n" + EVIL,
    "JSON": b'{"method": "x"}\n' + EVIL, "gopher": b"/path\r\n" + EVIL, "NATS": b"PUB x 5\r\n" + EVIL,
    "STOMP": b"CONNECT\naccept-version:1.2\n\n\0" + EVIL, "ZooKeeper": b"ruok",
    "beanstalk": b"put 0 0 1 9\r\n" + EVIL,
    "finger": b"root\r\n" + EVIL, "UTF-8": "é\r\n".encode() + EVIL, "escape": b"\x1b[A\r\n" + EVIL,
    "array of another kind": b"*POST / HTTP/1.1\r\n" + EVIL, "an IMAP server": b"* OK ready\r\n" + EVIL,
}


def parse(pieces):
    """What a server's parser makes of pieces."""
    parser = CommandParser(Limits(), _GUARD.check)
    commands: list[resp.Command] = []
    for piece in pieces:
        more, wrong = parser.take(piece)
        commands += more
        if wrong is not None:
            return commands, wrong
    return commands, None


@pytest.mark.parametrize("name", STRANGERS)
def test_no_command_is_found_in_it_however_it_is_split(name):
    data = STRANGERS[name]
    complaints = set()
    for at in range(1, len(data)):
        commands, wrong = parse([data[:at], data[at:]])
        assert commands == []
        complaints.add(str(wrong))
    commands, wrong = parse([bytes([byte]) for byte in data])
    assert commands == []
    complaints.add(str(wrong))
    commands, wrong = parse([data])
    assert commands == []
    assert {*complaints, str(wrong)} == {str(wrong)}
    assert wrong is not None
    assert "Protocol error" in str(wrong)


class Loopback:
    """A server in this process, and what it keeps."""

    def __init__(self) -> None:
        self.keys = Keyspace()
        self.keys.put(b"precious", b"1")
        self.server = RespStreamServer(lambda sock, peer: Stream(sock, peer, 0), ("127.0.0.1", 0), Limits(),
                                       EmbeddedStore(self.keys))

    def talk(self, *pieces):
        """Send pieces, each once the one before was looked at; what came, and whether that was the end."""
        with socket.create_connection(self.server.address) as client:
            client.setblocking(False)
            said = b""
            for piece in [*pieces, b""]:
                try:
                    client.sendall(piece)
                except (ConnectionResetError, BrokenPipeError):
                    return said, True
                for _turn in range(4):
                    self.server.drive(0)
                try:
                    while data := client.recv(65_536):
                        said += data
                    return said, True
                except BlockingIOError:
                    pass
                except ConnectionResetError:
                    return said, True
            return said, False


@contextmanager
def loopback() -> Iterator[Loopback]:
    served = Loopback()
    try:
        yield served
    finally:
        served.server.close()


def test_the_connection_ends_and_the_store_is_as_it_was():
    with loopback() as served:
        before = list(map(list, served.keys.snapshot()))
        told = 0
        for name, data in STRANGERS.items():
            middle = random.Random(name).randrange(1, len(data))
            for pieces in ([data], [data[:1], data[1:]], [data[:middle], data[middle:]], [data[:-1], data[-1:]]):
                said, ended = served.talk(*pieces)
                assert ended, name
                assert said.count(b"\r\n") <= 1
                assert said == b"" or said.startswith(b"-ERR Protocol error: ")
                assert list(map(list, served.keys.snapshot())) == before, name
                told += 1
        counters = served.server.counters()
        assert counters["protocol_errors"] == told
        # All but the two that begin as an array does.
        assert counters["strangers"] == told - 8
        served.talk(b"POST /secret HTTP/1.1\r\n\r\n")
        assert "it looks like HTTP ('POST /secret HTTP/1.1" in served.server.failure()
        served.talk(CLIENT_HELLO)
        assert "looks like TLS" in served.server.failure()
        assert "--transport tls" in served.server.failure()
        assert served.talk(b"PING\r\n") == (b"+PONG\r\n", False)


@given(st.binary(min_size=1, max_size=200).filter(lambda data: data[:1] not in b"*\r\n\t \"'"))
def test_random_bytes_are_no_commands(data):
    data += b"\r\n" + EVIL
    commands, wrong = parse([data])
    assert wrong is not None or commands[0][0].upper() in {name.upper().encode() for name in COMMANDS}


LEGITIMATE = [
    b"PING\r\n", b"PING\n", b" PING \r\n", b"\r\n\r\nPING\r\n", b"ping\r\n", b"\tPING\t\r\n", b'"PING"\r\n',
    b"'ping'\r\n", b"SET k v\r\nGET k\r\n", b'SET "a b" \'c d\'\r\n', b'SET "\\x00\\n" ""\r\n',
    "SET k é\r\n".encode(), b"SET k HTTP/1.1\r\n", b"GET Host:\r\n", b"SET POST 1\r\n", b"*1\r\n$4\r\nPING\r\n",
    b"*2\r\n$3\r\nGET\r\n$0\r\n\r\n", b"*0\r\nPING\r\n", b"*1\r\n$3\r\nFOO\r\nBAR\r\n", b"ECHO {}\r\n",
    # As people type: once there was a command, a slip of the finger is just that.
    b"PING\r\nPIGN\r\nGET\r\nPING\r\n", b"SET k v EX 10\r\nset k 0 EX 5\r\n", b"mset a 0 b 0\r\n",
    b"zadd z 0 0\r\n", b"append k 5\r\n", b"GET http://x/\r\n",
]


@pytest.mark.parametrize("data", LEGITIMATE)
def test_lines_of_text_are_commands_as_before(data):
    alone = CommandParser(Limits()).take(data)[0]
    assert alone
    assert parse([data]) == (alone, None)
    assert parse([bytes([byte]) for byte in data]) == (alone, None)
    for at in range(1, len(data)):
        assert parse([data[:at], data[at:]]) == (alone, None)


@pytest.mark.parametrize("data", [b"POST / HTTP/1.1\r\n", b"Host: x\r\n", b"set k 0 0 5\r\n", b"ms k 5\r\n",
                                  b"SET /a HTTP/1.1 x HTTP/1.1\r\n", b"DEL /precious HTTP/1.1\r\n",
                                  b"\x16\x03\x01", b"PING\0\r\n", b"{}\r\n"])
def test_some_things_are_never_commands_whatever_came_before(data):
    for before, count in ((b"PING\r\n", 1), (b"GET k\r\n", 1), (b"*1\r\n$4\r\nPING\r\n" * 3, 3)):
        commands, wrong = parse([before + data + EVIL])
        assert len(commands) == count
        assert isinstance(wrong, Stranger)
        commands, wrong = parse([before, data, EVIL])
        assert len(commands) == count
        assert isinstance(wrong, Stranger)


def test_every_command_can_be_typed():
    for entry in COMMANDS.values():
        for word, arity in entry.subcommands.items() or [("1", entry.arity)]:
            words = [entry.name, word, *["1"] * (abs(arity) - 2)]
            assert_typed(" ".join(words[:max(abs(arity), 1)]).encode())


def assert_typed(line: bytes) -> None:
    for text in (line, line.upper()):
        assert parse([bytes([byte]) for byte in text + b"\r\n"]) == ([text.split()], None)


def test_who_does_not_close_is_cut_off(monkeypatch):
    monkeypatch.setattr("workloads.kv.server._PARTING_NS", 0)
    with loopback() as served, socket.create_connection(served.server.address) as client:
        client.sendall(b"POST / HTTP/1.1\r\n")
        for _turn in range(6):
            served.server.drive(0.05)
        assert served.server.counters()["connections"] == 0
