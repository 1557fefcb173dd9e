"""``smtnet reproduce trust-matrix``: {NIC trusted or not} x {host trusted or not}, and what each may see.

Nothing in the table is only stated. Messages are full of canaries, and a NIC that is not trusted asks for
plaintext all the same. Then the wire, what the NIC was given, and the memory that is shared with the host are
searched for canaries and for the key; each search has a control that finds.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smtstack.capture.pcapfile import Reader
from smtstack.errors import SmtError
from smtstack.nicshare.state import NicState
from topo.link_options import LinkOptions
from topo.network import SmtNet, open_network
from topo.running import PATIENCE_S, Program, finish, python_program
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.experiments.trust.canary import CANARY, CELLS, COUNT, QUICK_COUNT
from workloads.fleet import credentials
from workloads.options.common import PlainResults
from workloads.options.declare import group, option
from workloads.results.folder import csv_text
from workloads.results.published import Published
from workloads.results.table import aligned

_MODULE = "workloads.experiments.trust.canary"
_REFUSED = "nic+ host-"
_CONTROL = "control"
_EXAMPLES = """examples:
  smtnet reproduce trust-matrix
  smtnet reproduce trust-matrix --quick --json

Writes results/<UTC time>-trust-matrix/: trust-matrix.csv and .txt. Takes half a minute. Exit code 1 if anybody
sees what he must not, or a control finds nothing.
"""


@dataclass(frozen=True)
class Options:
    """What ``smtnet reproduce trust-matrix`` takes on its command line."""

    quick: bool = option("--quick", action="store_true", help=f"{QUICK_COUNT} messages a cell in place of {COUNT}")
    end: PlainResults = group(PlainResults)


def measure(plan: Options, running: Running) -> Outcome:
    """Each cell on the same network."""
    cells: dict[str, dict[str, Any]] = {}
    count = QUICK_COUNT if plan.quick else COUNT
    with tempfile.TemporaryDirectory(dir="/run") as place, \
            open_network("star,2", LinkOptions(hosting="ring"), "bridge", progress=running.progress.say) as net:
        made = credentials.make(Path(place, "keys"), "smt", {host.name: host.IP() for host in net.hosts})
        for number, name in enumerate(CELLS):
            running.progress.step(name)
            folder = Path(place, str(number))
            folder.mkdir()
            cells[name] = _refusal(net, made.folder, folder, name) if name == _REFUSED else _cell(
                net, made.folder, folder, name, count)
    wrong = judge(cells, count)
    table = as_text(cells)
    flat = [{"cell": name, **cell} for name, cell in cells.items()]
    return Outcome((), {"cells": cells, "wrong": wrong}, table, table=False,
                   files={"trust-matrix.csv": csv_text(flat), "trust-matrix.txt": table + "\n"},
                   fidelity={"ok": True, "reasons": []}, failed="; ".join(wrong))


def _programs(net: SmtNet, keys: Path, folder: Path, name: str, roles: Sequence[str]) -> list[Program]:
    client, server = net.hosts
    hosts = {"server": (server, ()), "client": (client, (server.IP(),))}
    return [Program(host, f"{name} {role}", python_program(
        _MODULE, role, name, str(host.defaultIntf()), host.IP(), str(keys / host.name), *more),
        folder / f"{role}.log") for role, (host, more) in hosts.items() if role in roles]


def _refusal(net: SmtNet, keys: Path, folder: Path, name: str) -> dict[str, Any]:
    """A NIC that is trusted behind a host that is not: there is no such thing."""
    (client,) = _programs(net, keys, folder, name, ["client"])
    return {"refused": str(client.failure())}


def _cell(net: SmtNet, keys: Path, folder: Path, name: str, count: int) -> dict[str, Any]:
    client_host = net.hosts[0]
    nic = NicState.open(str(client_host.defaultIntf()), pid=client_host.pid, persistent=True)
    nic.reset()
    _hosting, offload, _trusted, _profile = CELLS[name]
    if not offload:
        # It asks for what it is not to have.
        nic.set_feature("tls-hw-tx-offload", True)
    given = folder / "nic.pcapng"
    nic.start_tap(given, host_side=True)
    wire = folder / "wire.pcap"
    with _sniffing(net, wire), ExitStack() as stack:
        programs = _programs(net, keys, folder, name, ["server", "client"])
        for program in programs:
            stack.callback(program.process.wait)
            stack.callback(program.process.terminate)
        for program in programs:
            program.wait_for("ready")
        client = programs[1]
        client.tell({"count": count})
        told = client.answer()
        process = _memory(client.pid, [CANARY, *([bytes.fromhex(told["key"])] if told["key"] else [])])
    nic.stop_tap()
    nic.reset()
    if told["right"] != count:
        raise SmtError(f"{name}: {told['right']} of {count} RPCs were answered")
    key = bytes.fromhex(told["key"])
    on_wire, to_nic = wire.read_bytes(), given.read_bytes()
    shared = told["shared"]
    return {
        "wire_plaintext": on_wire.count(CANARY), "wire_keys": on_wire.count(key) if key else 0,
        "wire_sizes": _sizes(wire, client_host.IP(), count // 4),
        "nic_frames": len(_frames(given)), "nic_plaintext": to_nic.count(CANARY),
        "nic_keys": told["contexts"], "nic_asked": not offload,
        "nic_asked_in_vain": told["asked_in_vain"],
        "host_shared_plaintext": shared[-2] if shared else None,
        "host_shared_keys": shared[0] if len(shared) > 2 else None,
        "host_shared_control": shared[-1] if shared else None,
        "host_memory_plaintext": process[0], "host_memory_keys": process[1] if key else 0}


@contextmanager
def _sniffing(net: SmtNet, path: Path) -> Iterator[None]:
    """Record at the switch's end of the client's cable: at the server's, the ring takes packets off the interface
    before anybody else there sees them."""
    (link,) = [link for link in net.links if net.hosts[0] in (link.intf1.node, link.intf2.node)]
    there = link.intf2 if link.intf1.node is net.hosts[0] else link.intf1
    said = path.with_suffix(".log")
    with said.open("w") as log:
        sniffer = subprocess.Popen(python_program("topo.sniffer", there.name, str(path)),
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            end = time.monotonic() + PATIENCE_S
            while "sniffing" not in said.read_text():
                if sniffer.poll() is not None or time.monotonic() > end:
                    raise SmtError(f"{there.name} cannot be recorded: {said.read_text()}")
                time.sleep(0.01)
            yield
        finally:
            sniffer.terminate()
            missed = finish(sniffer)
    if '"missed": 0' not in missed:
        raise SmtError(f"the recording of {there.name} proves nothing: {missed.strip() or said.read_text()}")


def _sizes(path: Path, source: str, least: int) -> int:
    """How many lengths the packets with data have: two kinds of messages that differ are two, for whoever
    counts. ``least``: packets of a length that makes it one."""
    sent = bytes(map(int, source.split(".")))
    lengths = [len(frame) for frame in _frames(path) if frame[26:30] == sent and len(frame) > 250]
    return len({length for length in lengths if lengths.count(length) >= least})


def _frames(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        return [captured.frame for captured in Reader(file).frames_untrusted()]


def _memory(pid: int, needles: Sequence[bytes]) -> list[int]:
    """How often each is in what root reads of a process' own memory."""
    found = [0] * len(needles)
    maps = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) rw.. \S+ \S+ \d+ *(\S*)$",
                      Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE)
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for start, end, path in maps:
            if path.startswith(("/memfd:", "/dev", "anon_inode", "[v", "socket:")):
                continue
            try:
                memory.seek(int(start, 16))
                data = memory.read(int(end, 16) - int(start, 16))
            except OSError:
                continue
            for number, needle in enumerate(needles):
                found[number] += data.count(needle)
    return found


def judge(cells: Mapping[str, Mapping[str, Any]], count: int = COUNT) -> list[str]:
    """What must not be, of all cells; and controls that found nothing."""
    wrong = []

    def expect(right: bool, what: str) -> None:
        if not right:
            wrong.append(what)

    both, no_nic, no_host = cells["nic+ host+"], cells["nic- host+"], cells["nic- host-"]
    for name in ("nic+ host+", "nic- host+", "nic- host-"):
        expect(not cells[name]["wire_plaintext"] and not cells[name]["wire_keys"], f"{name}: seen on the wire")
        expect(cells[name]["wire_sizes"] == 2, f"control: {name}: what was recorded are not its packets")
        expect(cells[name]["nic_frames"] >= 2 * count, f"control: {name}: the NIC's packets were not recorded")
    for name, cell in (("nic- host+", no_nic), ("nic- host-", no_host)):
        expect(not cell["nic_plaintext"] and not cell["nic_keys"], f"{name}: the NIC has plaintext or keys")
        expect(cell["nic_asked_in_vain"] > 0, f"{name}: the NIC did not ask")
    expect(no_host["host_shared_plaintext"] == 0 and no_host["host_shared_keys"] == 0,
           "nic- host-: plaintext or keys are in the memory that the host shares")
    expect("TLS offload" in cells[_REFUSED]["refused"], "nic+ host-: not refused")
    expect(both["nic_plaintext"] > 0 and both["nic_keys"] > 0, "control: a trusted NIC was given nothing")
    expect(cells[_CONTROL]["wire_plaintext"] > 0, "control: no canary of plaintext on the wire")
    expect(no_host["host_shared_control"] == 1, "control: a canary in shared memory was not found")
    expect(all(cells[name]["host_memory_plaintext"] > 0 and cells[name]["host_memory_keys"] > 0
               for name in ("nic+ host+", "nic- host+")), "control: key and canary were not found in memory")
    return wrong


_TITLES = {"nic+ host+": "NIC trusted, host trusted", "nic- host+": "NIC not, host trusted",
           _REFUSED: "NIC trusted, host not", "nic- host-": "neither",
           _CONTROL: "control: homa, no encryption"}


def as_text(cells: Mapping[str, Mapping[str, Any]]) -> str:
    """The table, for people."""
    def pair(cell: Mapping[str, Any], who: str) -> str:
        plaintext, keys = cell[f"{who}_plaintext"], cell[f"{who}_keys"]
        return "-" if plaintext is None else f"{plaintext} / {keys}"

    grid = [["found: canaries / keys", "on the wire", "given to the NIC", "NIC asked in vain",
             "shared with the host", "memory, read by root", "sizes on the wire"]]
    for name, title in _TITLES.items():
        cell = cells[name]
        if "refused" in cell:
            grid.append([title, "refused", "", "", "", "", ""])
            continue
        grid.append([title, pair(cell, "wire"), pair(cell, "nic"),
                     str(cell["nic_asked_in_vain"]) if cell["nic_asked"] else "-", pair(cell, "host_shared"),
                     pair(cell, "host_memory"),
                     "told apart" if cell["wire_sizes"] == 2 else f"{cell['wire_sizes']} of 2"])
    said = textwrap.fill(
        f"{_TITLES[_REFUSED]}: {cells[_REFUSED]['refused']}. Keys of a NIC are contexts that hold one. Memory "
        "read by root is that of the process itself: no SGX is here that would keep the host from it, so it is "
        "found in all rows. Who talks to whom, when and how much all see, in every cell.", 100)
    return aligned(grid) + "\n" + said


EXPERIMENT = Experiment(
    "trust-matrix", command="reproduce", help="what NIC and host may see, by who is trusted",
    description="Canaries are sent with the NIC trusted or not and the host trusted or not, and searched for on "
                "the wire, in what the NIC is given, and in what is shared with the host.",
    examples=_EXAMPLES, options=Options, check=lambda options: options, measure=measure, place=77,
    ends_with="results",
    published=Published("SMT (S&P 2026), section 4.1: what is trusted; RAKIS and rkt-io for hosts that are not",
                        "guarded processes in place of enclaves: their own memory is encrypted by nobody"),
    steps=lambda _plan: ("trust-matrix", len(CELLS)))
