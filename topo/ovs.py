"""An Open vSwitch of our own in a sandbox, and buffers that take a burst.

In user space OVS reads every port through an AF_PACKET socket whose buffer it never sets: 208 KB, of which a
burst of some hundred frames leaves nothing free. (The sysctl behind it cannot be changed in a namespace.) So we
take copies of those sockets out of ovs-vswitchd, and give them a buffer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
import socket
import struct
from collections.abc import Collection, Iterator
from pathlib import Path

from smtstack.errors import ConfigError, SmtError, Unsupported
from topo import sandbox
from topo.commands import program, run
from topo.devices import whose

#: Where OVS's tools look; in a sandbox it is private.
_FOLDER = Path("/run/openvswitch")
_SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
_DAEMONS = ("ovs-vswitchd", "ovsdb-server")
#: Bytes of a port's buffer.
_BUFFER = 8 << 20
_PATIENCE_S = 5.0
_LOG_TAIL = 3
#: Among the external ids of rows that we make in a database which others use as well: whose they are.
MARK = "smtnet"
# Linux <asm/unistd.h> (the same on all architectures), <asm-generic/socket.h>, <linux/sock_diag.h>; Python has
# no names for these.
_SYS_PIDFD_GETFD = 438
_SO_RCVBUFFORCE, _SO_MEMINFO = 33, 55
_MEMINFO_WORDS, _MEMINFO_DROPS = 9, 8
_libc = ctypes.CDLL(None, use_errno=True)


class PrivateOvs:
    """ovsdb-server and ovs-vswitchd of this sandbox; ``ovs-vsctl`` and the like find them by themselves."""

    def __init__(self) -> None:
        self._started = False

    def start(self) -> None:
        """Start both, with an empty database. Raises :class:`Unsupported` where OVS is not installed,
        :class:`SmtError` where one runs here already."""
        if not sandbox.inside():
            raise ConfigError("Open vSwitch is only started in a sandbox; outside of one the machine's is used")
        server, switchd = program("ovsdb-server"), program("ovs-vswitchd")
        running = [f"{name} as process {number}" for name in _DAEMONS if (number := _pid(name)) is not None]
        if running:
            raise SmtError(f"Open vSwitch runs in this sandbox already ({', '.join(running)}), for another "
                           "network or by somebody's hand: end that first")
        _FOLDER.mkdir(exist_ok=True)
        database, sock = _FOLDER / "conf.db", _FOLDER / "db.sock"
        # What is there is of one that has ended in this sandbox: the folder is empty when it begins.
        with contextlib.suppress(FileNotFoundError):
            database.unlink()
        self._started = True
        run(["ovsdb-tool", "create", str(database), str(_SCHEMA)])
        options = ["--pidfile", "--detach", "--no-chdir", "-vconsole:off", "-vsyslog:off"]
        try:
            # --detach returns when the daemon is ready.
            run([server, str(database), f"--remote=punix:{sock}", *options,
                 f"--log-file={_FOLDER}/ovsdb-server.log"])
            run(["ovs-vsctl", "--no-wait", "init"])
            run([switchd, f"unix:{sock}", *options, f"--log-file={_FOLDER}/ovs-vswitchd.log"])
        except SmtError as e:
            self.stop()
            raise SmtError(f"Open vSwitch does not start: {e}{log_tail()}") from None

    def stop(self) -> None:
        """End both, as far as we have started them and they run."""
        started, self._started = self._started, False
        for name in _DAEMONS if started else ():
            pid = _pid(name)
            if pid is not None:
                _end(pid)

    def __enter__(self) -> PrivateOvs:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()


def is_installed() -> bool:
    """Whether OVS's programs are there."""
    try:
        for name in (*_DAEMONS, "ovs-vsctl"):
            program(name)
    except Unsupported:
        return False
    return True


def is_running() -> bool:
    """Whether an ovs-vswitchd answers: ours in a sandbox, else the machine's."""
    pid = _pid("ovs-vswitchd")
    return pid is not None and (_FOLDER / "db.sock").exists()


def pid() -> int | None:
    """The process number of the ovs-vswitchd that runs, ours in a sandbox; None: none does."""
    return _pid("ovs-vswitchd")


def has_kernel_datapath() -> bool:
    """Whether the kernel switches for OVS (module openvswitch); else ovs-vswitchd does itself."""
    try:
        run(["ovs-dpctl", "dump-dps"])
    except SmtError:
        return False
    return True


def vsctl(*arguments: str, switch: str) -> str:
    """ovs-vsctl; the end of the log is part of the error."""
    try:
        # Without an answer it would wait for ever.
        return run(["ovs-vsctl", "--timeout=20", *arguments], where=switch)
    except SmtError as e:
        _command, exists, what = str(e).partition("ovs-vsctl: cannot create ")
        if exists and "already exists" in what:
            raise SmtError(f"{switch}: Open vSwitch cannot create {what}. This network did not make that: "
                           f"{whose()}; end that first, or choose other names") from None
        raise SmtError(f"{e}{log_tail()}") from None


def check_free(bridge: str, where: str) -> None:
    """Raises :class:`SmtError` if there is a bridge or a port of that name, where Open vSwitch runs."""
    if is_running() and bridge in vsctl("--bare", "--columns=name", "list", "port", switch=where).split():
        raise SmtError(f"{where}: Open vSwitch has {bridge} already, which this network did not make: {whose()}; "
                       "end that first, or choose other names")


def remove(mark: str, switch: str) -> None:
    """Remove the bridge and the QoS rows that have this mark. What has none is somebody else's."""
    having = f"external-ids:{MARK}={mark}"
    found = {table: vsctl("--bare", "--columns=_uuid", "find", table, having, switch=switch).split()
             for table in ("bridge", "qos")}
    for bridge in found["bridge"]:
        vsctl("remove", "open_vswitch", ".", "bridges", bridge, switch=switch)
    # Not in the same go: ports refer to them until the bridge is gone.
    if found["qos"]:
        vsctl("destroy", "qos", *found["qos"], switch=switch)


def log_tail() -> str:
    """The last complaints of ovs-vswitchd, for an error text; often empty."""
    try:
        lines = (_FOLDER / "ovs-vswitchd.log").read_text().splitlines()
    except OSError:
        return ""
    bad = [line.split("|", 2)[-1] for line in lines if "|WARN|" in line or "|ERR|" in line or "|EMER|" in line]
    return f" (ovs-vswitchd: {'; '.join(bad[-_LOG_TAIL:])})" if bad else ""


def widen_buffers(ports: Collection[str]) -> int:
    """Give these ports, which exist now, 8 MB each; the number of them. Others are somebody else's."""
    number = 0
    for sock in _packet_sockets(ports):
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        number += 1
    return number


def port_drops(ports: Collection[str]) -> int:
    """Frames that found no room in the buffer of one of these ports, since they were added."""
    drops = 0
    for sock in _packet_sockets(ports):
        words = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * _MEMINFO_WORDS)
        drops += struct.unpack(f"{len(words) // 4}I", words)[_MEMINFO_DROPS]
    return drops


def _packet_sockets(ports: Collection[str]) -> Iterator[socket.socket]:
    pid = _pid("ovs-vswitchd")
    if pid is None:
        raise SmtError(f"ovs-vswitchd does not run{log_tail()}")
    process = os.pidfd_open(pid)
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            try:
                if not os.readlink(entry.path).startswith("socket:"):
                    continue
            except FileNotFoundError:  # it has been closed meanwhile: connections to a controller come and go
                continue
            descriptor = _libc.syscall(_SYS_PIDFD_GETFD, process, int(entry.name), 0)
            if descriptor < 0 and ctypes.get_errno() == errno.EBADF:
                continue
            if descriptor < 0:
                raise Unsupported("the buffers of Open vSwitch's ports cannot be changed (pidfd_getfd: "
                                  f"{os.strerror(ctypes.get_errno())}), so it drops bursts: use --switch bridge")
            with socket.socket(fileno=descriptor) as sock:
                if sock.family == socket.AF_PACKET and sock.getsockname()[0] in ports:
                    yield sock
    finally:
        os.close(process)


def _pid(name: str) -> int | None:
    try:
        pid = int((_FOLDER / f"{name}.pid").read_text())
        # It may be gone, and another process have its number.
        running = Path(f"/proc/{pid}/comm").read_text().strip()
    except (OSError, ValueError):
        return None
    return pid if running == name else None


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            for number in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(process, number)
                if select.select([process], [], [], _PATIENCE_S)[0]:
                    return
        finally:
            os.close(process)
