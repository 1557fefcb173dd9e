"""The end of UDP that ``run udp`` starts: what it counts, and what it does not."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any, cast

from smtstack.hostcalls.ports import DatagramPort
from workloads.experiments.trust.program import End, Orders

PEER = (0x0A000002, 7000)
Datagram = tuple[int, int, bytes]


class Scripted:
    """A port whose datagrams come in the given batches; what is sent goes to ``sent``, or is answered."""

    def __init__(self, batches: Sequence[Sequence[bytes]] = (),
                 answer: Callable[[bytes], Sequence[bytes]] | None = None) -> None:
        self.batches = [list(batch) for batch in batches]
        self.sent: list[bytes] = []
        self._answer = answer

    def send(self, datagrams: Sequence[Datagram]) -> None:
        for _ip, _port, data in datagrams:
            self.sent.append(data)
            if self._answer is not None:
                self.batches.append(list(self._answer(data)))

    def receive(self, _most: int) -> list[Datagram]:
        return [(*PEER, data) for data in self.batches.pop(0)] if self.batches else []

    def wait(self, _ns: int) -> None:
        pass

    def counters(self) -> dict[str, int]:
        return {}


class Over:
    """The next order is always there."""

    def waiting(self) -> bool:
        return True


def end_of(port: Scripted, order: int) -> End:
    end = End(cast(DatagramPort, port), PEER, cast(Orders, Over()))
    end.begin(order)
    return end


def blasted(order: int, size: int, seconds: float = 0.0001) -> list[bytes]:
    port = Scripted()
    end_of(port, order).blast(size, seconds)
    assert port.sent
    return port.sent


def test_what_was_sent_for_an_earlier_order_is_neither_counted_nor_wrong():
    late, own = blasted(1, 16)[:5], blasted(2, 1460)[:3]
    told = end_of(Scripted([late[:2], [own[0], late[2]], late[3:], own[1:]]), 2).count(1460)
    assert (told["came"], told["wrong"]) == (3, 0)


def test_what_was_changed_or_came_twice_or_from_the_future_is_wrong():
    own = blasted(2, 64)[:3]
    changed = own[1][:-1] + b"\0"
    told = end_of(Scripted([[own[0], own[0], changed, own[2][:4], blasted(3, 64)[0]]]), 2).count(64)
    assert (told["came"], told["wrong"]) == (5, 4)


def test_an_echo_sends_back_its_own_order_only():
    port = Scripted([blasted(1, 64)[:2], blasted(2, 64)[:2]])
    end_of(port, 2).echo(64)
    assert port.sent == blasted(2, 64)[:2]


def asked(answer: Callable[[bytes], Sequence[bytes]], tmp_path: Any, count: int = 3) -> tuple[dict[str, Any], int]:
    raw = tmp_path / "took"
    told = end_of(Scripted(answer=answer), 7).ask(32, count, str(raw), "poll")
    took = array("Q")
    took.frombytes(raw.read_bytes())
    return told, len(took)


def test_an_answer_to_another_order_or_to_what_was_given_up_is_passed_over(tmp_path):
    late = blasted(6, 32)[0]
    before: list[bytes] = []

    def answer(data: bytes) -> list[bytes]:
        before.append(data)
        return [late, before[-2], data] if len(before) > 1 else [late, data]

    told, took = asked(answer, tmp_path)
    assert (told["answered"], told["lost"], told["wrong"], took) == (3, 0, 0, 3)


def test_an_answer_that_was_changed_is_wrong(tmp_path):
    told, _took = asked(lambda data: [data[:-1] + b"\0"], tmp_path)
    assert (told["answered"], told["wrong"]) == (3, 3)
