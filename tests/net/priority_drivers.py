"""What test_run_priorities.py does inside a sandbox: ``python -m tests.net.priority_drivers``. JSON on stdout."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests.net.inside import go_inside
from topo.commands import run
from topo.link_options import LinkOptions
from topo.network import open_network
from topo.shaping import queues_of
from workloads.experiments.priorities.arithmetic import all_classes
from workloads.experiments.priorities.port import OnePort, PriorityPort


def flat() -> None:
    """All eight classes at a port that does not tell them apart."""
    links = LinkOptions(rate_mbps=20, buffer_bytes=250_000)
    with tempfile.TemporaryDirectory() as folder, open_network(OnePort(), links, "bridge") as net, \
            PriorityPort(net, Path(folder, "hosts")) as port:
        run(["tc", "filter", "del", "dev", queues_of(port.port.name), "parent", "1:"])
        print(json.dumps(port.measure(all_classes(0.3), 1.5)))


if __name__ == "__main__":
    go_inside()
    flat()
