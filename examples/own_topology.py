r"""A topology of one's own: hosts in a row, each with a switch of its own. By itself, and in plain mn, as root::

    sudo .venv/bin/python examples/own_topology.py 4
    sudo mn --custom topo/mn.py,examples/own_topology.py --topo row,4 --host smt --link smartnic \
        --switch auto --test smtecho
"""

import sys
from itertools import pairwise
from typing import Any

from topo.topologies import SmtTopo


class Row(SmtTopo):
    """``row,3``::

        h1 - s1 --- s2 --- s3 - h3
                    |
                    h2
    """

    syntax, example = "row,N", "row,4"

    def build(self, hosts: Any = 3, **_opts: Any) -> None:
        number = self.number("N", hosts, 2, 20)
        switches = [self.addSwitch(f"s{n}") for n in range(1, number + 1)]
        names = [self.hosts_at(switch, range(n, n + 1))[0] for n, switch in enumerate(switches, 1)]
        for left, right in pairwise(switches):
            self.addLink(left, right)
        self.flows = [(names[0], names[-1])]  # whom an experiment has talk to whom


topos = {"row": Row}  # what mn looks for

if __name__ == "__main__":
    from topo import sandbox
    from topo.cli_verbs import echo
    from topo.network import open_network

    if not sandbox.inside():
        sys.exit(sandbox.run_command([sys.executable, *sys.argv]))
    with open_network(Row(*sys.argv[1:])) as net:
        for client, server in net.flows:
            print(echo(net, client.name, server.name, size=1000, count=50))
