"""What test_cluster.py does inside a sandbox: namespaces stand for machines, each with an SSH server of its own.

``python -m tests.net.cluster_driver WORDS ...``: ``smtnet cluster WORDS`` over two machines.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.net.inside import go_inside
from topo.commands import run

MACHINES = ("10.250.0.1", "10.250.0.2")
#: Where nobody lets anybody in.
NOBODY = "10.250.0.254"
#: What every program's ssh reads; only in here there is what follows.
_CONFIG = Path("/etc/ssh/ssh_config.d")
_HOME = Path("/run/cluster")
_OURS = f"""
Host 10.250.0.*
  IdentityFile {_HOME}/key
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""


def machines() -> None:
    """Two, on one switch, with sshd."""
    run(["mount", "-t", "tmpfs", "none", str(_CONFIG)])
    (_CONFIG / "cluster.conf").write_text(_OURS)
    _HOME.mkdir(mode=0o700)
    for name in ("key", "host"):
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(_HOME / name)])
    # sshd wants a folder that is empty and root's.
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    run(["ip", "link", "add", "lan", "type", "bridge"])
    run(["ip", "addr", "add", f"{NOBODY}/24", "dev", "lan"])
    run(["ip", "link", "set", "lan", "up"])
    for number, address in enumerate(MACHINES):
        name = f"machine{number}"
        run(["ip", "netns", "add", name])
        run(["ip", "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", name])
        run(["ip", "link", "set", f"port{number}", "master", "lan", "up"])
        run(["ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0"])
        for link in ("lo", "eth0"):
            run(["ip", "-n", name, "link", "set", link, "up"])
        settings = {"ListenAddress": address, "HostKey": _HOME / "host", "AuthorizedKeysFile": _HOME / "key.pub",
                    "PermitTunnel": "yes", "PermitRootLogin": "prohibit-password", "UsePAM": "no",
                    "StrictModes": "no", "PidFile": "none"}
        run(["ip", "netns", "exec", name, "/usr/sbin/sshd", "-f", "/dev/null",
             *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))])


def main() -> int:
    go_inside()
    machines()
    return subprocess.run([sys.executable, "-m", "workloads", "cluster", *sys.argv[1:]], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
