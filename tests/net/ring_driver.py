"""Fills and empties a receive ring on the loopback of the namespace it is run in; JSON on stdout."""

from __future__ import annotations

import json
import select
import socket
import struct
import subprocess

from smtstack.io.ring import SOL_PACKET, ReceiveRing

#: For experiments (IEEE 802): nobody else listens.
ETHERTYPE = 0x88B5
PACKET_STATISTICS = 6
PACKET_IGNORE_OUTGOING = 23
HEADER = bytes(12) + ETHERTYPE.to_bytes(2, "big")


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with (socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender,
          socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as receiver):
        sender.bind(("lo", 0))
        receiver.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        ring = ReceiveRing(receiver, 1514)
        receiver.bind(("lo", ETHERTYPE))
        poll = select.poll()
        poll.register(receiver, select.POLLIN)

        def send(number: int, size: int = 60) -> None:
            sender.send(HEADER + number.to_bytes(4, "big") + bytes(size - 18))

        def numbers(limit: int = 1 << 20) -> list[int]:
            return [int.from_bytes(frame[14:18], "big") for frame in ring.take(limit) if frame[:14] == HEADER]

        batches = 2 * ring.slots // 60
        in_order = True
        for batch in range(batches):
            sent = range(batch * 60, batch * 60 + 60)
            for number in sent:
                send(number, 60 + number % 1400)
            frames = ring.take(1 << 20)
            in_order = in_order and [(int.from_bytes(f[14:18], "big"), len(f)) for f in frames] == [
                (n, 60 + n % 1400) for n in sent]

        for number in range(7):
            send(number)
        limited = [(bool(poll.poll(0)), len(ring.take(3))) for _turn in range(4)]

        receiver.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        for number in range(ring.slots + 10):
            send(number)
        kept = numbers()
        _packets, dropped = struct.unpack("II", receiver.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        send(7)
        afterwards = numbers()

        send(0, 60_000)
        send(0)
        long, short = ring.take(2)
        print(json.dumps({"rounds": batches * 60 / ring.slots, "in_order": in_order, "limited": limited,
                          "slots": ring.slots, "kept": kept, "dropped": dropped, "afterwards": afterwards,
                          "cut": [len(long), int.from_bytes(short[14:18], "big"), len(short)]}))
        ring.close()


if __name__ == "__main__":
    main()
