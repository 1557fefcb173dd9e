"""Draws the pictures that come from the code: ``python -m docs.draw``, in the checkout, writes them into docs/img.

rpc.svg is the table in smtstack/transport/states.py; architecture.svg is RANK in tests/test_layers.py, with what
imports what; tls-resync.svg is what the driver half of TLS offload posts to the device half, played.
tests/unit/test_pictures.py compares what is committed with what this would draw.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterable
from functools import cache
from html import escape
from itertools import combinations
from pathlib import Path

from smtstack.nic.counters import NicCounters
from smtstack.nic.tls_descriptors import Dump, Fence, SetProgress, SetStatic, TcpSend, TlsDescriptor
from smtstack.nic.tls_driver import TlsTxDriver, TxState
from smtstack.nic.tls_flow import FREEBSD, LINUX
from smtstack.nic.tls_tx import TlsTxDevice
from smtstack.transport.states import CLIENT, SERVER, Input, State
from smtstack.wire.tcp import parse_untrusted
from tests.test_layers import RANK, imports, module_files, unit_of
from tests.tls_rig import FLOW, Stream, text

IMG = Path(__file__).resolve().parent / "img"

#: An input by side, in the words of the table in states.py's docstring.
WORDS = {
    "client": {Input.SESSION: "session is there", Input.DATA: "response data arrives",
               Input.COMPLETE: "response complete", Input.UNKNOWN: "server does not know it"},
    "server": {Input.DATA: "request data arrives", Input.COMPLETE: "request complete",
               Input.REPLY: "application replies", Input.ACK: "acknowledged",
               Input.UNKNOWN: "client does not know it"},
}
TABLES = {"client": CLIENT, "server": SERVER}
BEGINS = {"client": State.WAITING, "server": State.INCOMING}

Move = tuple[State, Input, State]
Edge = tuple[str, str]

_STYLE = """<style>
text { font: 13px sans-serif; fill: #222 } .small { font-size: 11px; fill: #555 } .head { font-weight: bold }
rect { fill: #eef3fa; stroke: #456; rx: 6px } .floor { fill: none; stroke: #ddd; rx: 0 }
.topo, .controllers { fill: #f6f0e3 } .workloads { fill: #eaf5ea } .end { fill: #eee }
.send { fill: #dcefe4 } .dump { fill: #f9dcc9 } .fence { fill: #eee }
path { fill: none; stroke: #456; stroke-width: 1.2; marker-end: url(#to) }
</style>
<defs><marker id="to" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">
<polygon points="0,0 8,4 0,8" fill="#456"/></marker></defs>"""


def _svg(width: int, height: int, parts: Iterable[str]) -> str:
    body = "\n".join(parts)
    size = f'width="{width}" height="{height}"'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {size}>\n{_STYLE}\n'
            f'<rect {size} style="fill: #fff; stroke: none"/>\n{body}\n</svg>\n')


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def _box(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" class="{kind}"/>'


def _path(*points: tuple[float, float]) -> str:
    return '<path d="M' + " L".join(f"{x:g},{y:g}" for x, y in points) + '"/>'


# -- the life of an RPC ------------------------------------------------------------------------------------------


def moves(side: str) -> list[Move]:
    """(state, input, next state) of all that can happen at one side, as its table has it."""
    return [(state, what, after) for state, row in zip(State, TABLES[side], strict=True)
            for what, after in zip(Input, row, strict=True) if after is not None]


def states(side: str) -> list[State]:
    """In the order in which they are reached first."""
    found = [BEGINS[side]]
    for state in found:
        found += dict.fromkeys(after for before, _what, after in moves(side)
                               if before is state and after not in found and after is not State.DEAD)
    return [*found, State.DEAD]


_WIDTH, _HEIGHT, _STEP = 300, 44, 104


def _panel(side: str, left: float) -> list[str]:
    order = states(side)
    top = {state: 60.0 + _STEP * n for n, state in enumerate(order)}
    right, middle = left + _WIDTH, left + _WIDTH / 2
    parts = [_text(middle, 34, f"at the {side}", "head")]
    for state in order:
        stays = [WORDS[side][what] for before, what, after in moves(side) if before is state is after]
        parts.append(_box(left, top[state], _WIDTH, _HEIGHT, "end" if state is State.DEAD else ""))
        parts.append(_text(middle, top[state] + (19 if stays else 27), state.name, "head"))
        if stays:
            parts.append(_text(middle, top[state] + 35, "stays: " + "; ".join(stays), "small"))
    arrows: dict[tuple[State, State], list[str]] = {}
    for before, what, after in moves(side):
        if before is not after:
            arrows.setdefault((before, after), []).append(WORDS[side][what])
    # From the top: what leaves first ends lowest, so that lines do not cross.
    lanes = sorted(((order.index(a), order.index(b)) for a, b in arrows if order.index(b) - order.index(a) > 1),
                   reverse=True)
    for (before, after), words in arrows.items():
        above, below = order.index(before), order.index(after)
        from_y, to_y = top[before] + _HEIGHT, top[after]
        if below - above == 1:
            parts.append(_path((middle, from_y), (middle, to_y)))
            y = (from_y + to_y) / 2 + 4
            parts += [_text(middle + 8, y + 15 * n, w, "", "start") for n, w in enumerate(words)]
        elif below > above:
            n = lanes.index((above, below))
            lane = right + 24 + 112 * n
            start, end = from_y - 12, to_y + _HEIGHT - 8 - 14 * (len(lanes) - 1 - n)
            parts.append(_path((right, start), (lane, start), (lane, end), (right, end)))
            parts += [_text(lane + 6, start + 22 + 15 * m, w, "", "start") for m, w in enumerate(words)]
        else:
            start, end, lane = top[before] + 14, top[after] + _HEIGHT - 14, left - 24
            parts.append(_path((left, start), (lane, start), (lane, end), (left, end)))
            parts += [_text(lane - 6, (start + end) / 2 + 15 * m + 4, w, "", "end") for m, w in enumerate(words)]
    return parts


def rpc() -> str:
    """The picture of an RPC's states, for both sides."""
    note = "From every state: aborted by the application, the peer gone, or no room for it: DEAD."
    return _svg(1280, 470, [*_panel("client", 200), *_panel("server", 670), _text(640, 452, note, "small")])


# -- the map -----------------------------------------------------------------------------------------------------


@cache
def edges() -> frozenset[Edge]:
    """(importing, imported) of units that differ, as the code stands."""
    found = {(unit_of(module), unit_of(name)) for path, module, is_package in module_files()
             for _line, name in imports(ast.parse(path.read_text(encoding="utf-8")), module, is_package)}
    return frozenset((a, b) for a, b in found if a is not None and b is not None and a != b)


def reduced(all_edges: Collection[Edge]) -> list[Edge]:
    """Without those that a way by others stands for, sorted. Imports upwards are left out: there are none."""
    down = {(a, b) for a, b in all_edges if RANK[a] > RANK[b]}
    below: dict[str, set[str]] = {}
    for unit in sorted(RANK, key=lambda u: RANK[u]):
        direct = {b for a, b in down if a == unit}
        below[unit] = direct.union(*(below[b] for b in direct))
    return sorted((a, b) for a, b in down if not any(b in below[c] for a2, c in down if a2 == a and c != b))


#: Where the folders of a package stand: slots, half a box wide.
_COLUMNS = {"topo": range(3), "controllers": range(3), "smtstack": range(3, 9), "workloads": range(9, 13)}
_SLOT, _UNIT, _UNIT_HEIGHT, _FLOOR = 82, 156, 28, 54


class _Plan:
    """Finds a slot for each unit, such that lines are short, cross seldom and run behind no box."""

    def __init__(self, lines: list[Edge]) -> None:
        self._lines = lines
        self._row = _rows()
        self._slots = {unit: _COLUMNS[unit.partition(".")[0]] for unit in RANK}
        self._neighbours = [(u, v) for u, v in combinations(RANK, 2) if RANK[u] == RANK[v]]

    def _x(self, at: dict[str, int], line: Edge, row: float) -> float:
        a, b = line
        return at[a] + (at[b] - at[a]) * (row - self._row[a]) / (self._row[b] - self._row[a])

    def _cost(self, at: dict[str, int]) -> float:
        row = self._row
        if (any(abs(at[u] - at[v]) < 2 for u, v in self._neighbours)
                or any(at[u] not in self._slots[u] for u in at)):
            return float("inf")
        total = 0.0
        for line in self._lines:
            a, b = line
            total += abs(at[a] - at[b])
            total += sum(40 * max(0.0, 1.15 - abs(self._x(at, line, y) - at[unit]))
                         for unit, y in row.items() if row[a] < y < row[b])
        for one, two in combinations(self._lines, 2):
            top, bottom = max(row[one[0]], row[two[0]]), min(row[one[1]], row[two[1]])
            if top < bottom and len({*one, *two}) == 4:
                first, last = (self._x(at, one, y) - self._x(at, two, y) for y in (top, bottom))
                total += 6 * (first * last < 0)
        return total

    def _improved(self, at: dict[str, int]) -> dict[str, int]:
        """Move one after the other, or let two change places, until nothing is better for it."""
        cost = self._cost(at)
        better = True
        while better:
            better = False
            moves_to = [{unit: slot} for unit in RANK for slot in self._slots[unit]]
            for change in moves_to + [{u: at[v], v: at[u]} for u, v in self._neighbours]:
                now = self._cost(at | change)
                if now < cost - 1e-9:
                    at, cost, better = at | change, now, True
        return at

    def places(self) -> dict[str, int]:
        """The best of what several beginnings lead to."""
        begun = []
        for step in (1, -1):
            at: dict[str, int] = {}
            for unit in RANK:
                at[unit] = next(s for s in self._slots[unit][::step]
                                if all(RANK[u] != RANK[unit] or abs(at[u] - s) > 1 for u in at))
            begun.append(at)
        return min(map(self._improved, begun), key=self._cost)


def _rows() -> dict[str, int]:
    floors = {rank: n for n, rank in enumerate(sorted(set(RANK.values()), reverse=True))}
    return {unit: floors[rank] for unit, rank in RANK.items()}


def architecture() -> str:
    """The picture of the map: a box for each folder, a floor for each rank, an arrow for who imports whom."""
    lines = reduced(edges())
    at = _Plan(lines).places()
    row = _rows()
    width = 40 + _SLOT * 14
    middle = {unit: 20 + _SLOT * (at[unit] + 1.0) for unit in RANK}
    top = {unit: 20.0 + _FLOOR * row[unit] for unit in RANK}
    parts = [_path((middle[a], top[a] + _UNIT_HEIGHT), (middle[b], top[b])) for a, b in lines]
    for unit in RANK:
        parts.append(_box(middle[unit] - _UNIT / 2, top[unit], _UNIT, _UNIT_HEIGHT, unit.partition(".")[0]))
        parts.append(_text(middle[unit], top[unit] + 19, unit.replace(".", "/")))
    note = "An arrow: imports. What a way by other arrows says is not drawn. Nothing points upwards."
    bottom = 20 + _FLOOR * (1 + max(row.values()))
    return _svg(width, bottom + 24, [*parts, _text(width / 2, bottom + 8, note, "small")])


# -- what the driver of a NIC that offloads TLS posts ------------------------------------------------------------


class _Nic:
    """Driver half and device half, and a stream of three records; what is posted is looked at before it is
    done."""

    def __init__(self) -> None:
        self.stream = Stream()
        for seed in range(3):
            self.stream.push(text(16_384, seed))
        self.counters = NicCounters()
        self.device = TlsTxDevice(self.counters, 1, 1024)
        self.driver = TlsTxDriver(self.device, self.counters, 1, 1500)
        self.flow(LINUX)
        self.take()

    def flow(self, policy: str) -> None:
        """Know the flow with this policy, without a context."""
        self.state = TxState(self.stream.flow(policy))
        self.driver.flows[FLOW] = self.state

    def take(self) -> None:
        """Get a context."""
        self.state.context = self.device.create_context()
        self.state.expected = self.state.number = -1
        self.state.records.owner = 1

    def send(self, at: int, size: int) -> list[TlsDescriptor]:
        """What is posted for a packet of the stream."""
        frame = self.stream.packet(at, size)
        self.driver.transmit(0, frame, parse_untrusted(frame), 0, True)
        posted = list(self.device._rings[0])
        self.device.process(0)
        self.driver.completed()
        return posted


_MSS = 1448
Step = tuple[str, str, list[tuple[str, str]], str]


def tls_steps() -> list[Step]:
    """(what the kernel sends, the case, (kind, text) of each descriptor, what leaves), as the code has it."""
    nic = _Nic()
    record = len(nic.stream.plain) // 3
    found: list[Step] = []

    def step(what: str, case: str, at: int, size: int, leaves: str) -> None:
        found.append((what, case, _chips(nic.send(at, size)), leaves))

    step("record 0, the first 12 packets", "the first packet of the flow", 0, record, "sealed by the device")
    step("record 1", "in sequence", record, record, "sealed by the device")
    step("packet 8 of record 0 again", "out of sequence: rebuild", 7 * _MSS, _MSS, "sealed by the device")
    step("packet 1 of record 2", "out of sequence: a record begins", 2 * record, _MSS, "sealed by the device")
    nic.state.records.owner = 2
    step("packet 2 of record 2", "the context is another NIC's: linux", 2 * record + _MSS, _MSS,
         "sealed by software")
    nic.flow(FREEBSD)
    step("packet 3 of record 2", "the same: freebsd", 2 * record + 2 * _MSS, _MSS,
         "nothing; a context is asked for")
    nic.take()
    step("packet 3 again", "the context is here: rebuild", 2 * record + 2 * _MSS, _MSS, "sealed by the device")
    nic.stream.map.release((nic.stream.start + record) % 2**32)
    step("packet 8 of record 0 once more", "its record is acknowledged, so gone", 7 * _MSS, _MSS, "nothing")
    return found


def _chips(posted: list[TlsDescriptor]) -> list[tuple[str, str]]:
    """Descriptors as words; DUMPs of one record are one."""
    out: list[tuple[str, str]] = []
    dumps = [len(d.data) for d in posted if isinstance(d, Dump)]
    for d in posted:
        if isinstance(d, SetStatic):
            out.append(("static", f"STATIC record {d.number}"))
        elif isinstance(d, SetProgress):
            out.append(("progress", "PROGRESS"))
        elif isinstance(d, Fence):
            out.append(("fence", "FENCE"))
        elif isinstance(d, Dump):
            if out[-1][0] != "dump":
                out.append(("dump", f"DUMP {sum(dumps):,} B in {len(dumps)}"))
        elif isinstance(d, TcpSend):
            out.append(("send", f"SEND {len(d.payload):,} B" + (f", context {d.context}" if d.context else "")))
    return out


def tls_resync() -> str:
    """The picture of the driver's decisions, one below the other."""
    steps = tls_steps()
    top, line = 58.0, 46.0
    heads = ((20, "the kernel's TCP sends"), (250, "descriptors that the driver posts to the device"),
             (850, "leaves"))
    parts = [_text(x, 32, words, "head", "start") for x, words in heads]
    for number, (what, case, chips, leaves) in enumerate(steps):
        y = top + line * number
        parts.append(_box(10, y - 8, 1060, line - 4, "floor"))
        parts += [_text(20, y + 10, what, "", "start"), _text(20, y + 26, case, "small", "start"),
                  _text(850, y + 18, leaves, "", "start")]
        x = 250.0
        for kind, words in chips:
            width = 14 + 7.2 * len(words)
            parts += [_box(x, y + 2, width, 24, kind), _text(x + width / 2, y + 18, words)]
            x += width + 6
    return _svg(1080, round(top + line * len(steps) + 4), parts)


PICTURES: dict[str, Callable[[], str]] = {"rpc.svg": rpc, "architecture.svg": architecture,
                                          "tls-resync.svg": tls_resync}


def main() -> None:
    """Write all of them."""
    for name, draw in PICTURES.items():
        (IMG / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
