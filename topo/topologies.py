"""The networks: pure descriptions, for ``make_topo("star,4")`` and for plain ``mn --custom``.

Hosts are h1, h2, ..., switches s1, s2, ... A host's MAC address follows from its number, as its IP address
does in Mininet (h1 is 10.0.0.1).
"""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from mininet.topo import Topo

from smtstack.errors import ConfigError

#: One process and one namespace each; beyond, one machine no longer emulates, it queues.
MAX_HOSTS = 250
#: What every topology of Mininet takes by name: options for all hosts, switches, links.
_MININETS = {"hopts", "sopts", "lopts"}


class SmtTopo(Topo):
    """What all of them have. ``flows``: the pairs (client, server) of hosts that this network is about."""

    syntax = ""
    example = ""

    def __init__(self, *args: Any, **params: Any) -> None:
        """Arguments as :meth:`build` takes them. Raises :class:`ConfigError` for others."""
        self.flows: list[tuple[str, str]] = []
        if self.syntax:
            self._check(args, params)
        super().__init__(*args, **params)

    def _check(self, args: tuple[Any, ...], params: dict[str, Any]) -> None:
        *names, _opts = inspect.signature(self.build).parameters
        if len(args) > len(names):
            raise ConfigError(f"{len(args)} arguments are too many: topology {self.syntax} takes "
                              f"{f'at most {len(names)}' if names else 'none'}, e.g. {self.example}")
        for name in params.keys() - _MININETS:
            if name not in names:
                raise ConfigError(f"topology {self.syntax}: there is no argument {name!r}, but "
                                  f"{', '.join(names) or 'none at all'}, e.g. {self.example}")
            if name in names[:len(args)]:
                raise ConfigError(f"topology {self.syntax}: {name} is given twice, e.g. {self.example}")

    def new_host(self, number: int) -> str:
        """Host ``h<number>`` with the MAC address of that number."""
        return self.addHost(f"h{number}", mac=f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}")

    def hosts_at(self, switch: str, numbers: range) -> list[str]:
        """New hosts with a link to ``switch`` each."""
        names = [self.new_host(n) for n in numbers]
        for name in names:
            self.addLink(name, switch)
        return names

    def number(self, name: str, value: Any, lowest: int, highest: int = MAX_HOSTS) -> int:
        """An argument of the topology; raises :class:`ConfigError` if it is none."""
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = lowest - 1
        if not lowest <= number <= highest or str(number) != str(value):
            raise ConfigError(f"topology {self.syntax}: {name} is {value!r}; a number from {lowest} to {highest}, "
                              f"e.g. {self.example}")
        return number

    def few_enough(self, hosts: int) -> None:
        """Raises :class:`ConfigError` for more hosts (or switches) than one machine can be."""
        if hosts > MAX_HOSTS:
            raise ConfigError(f"topology {self.syntax}: that is {hosts} hosts or switches; at most {MAX_HOSTS}, "
                              f"e.g. {self.example}")


class Back2Back(SmtTopo):
    """Two hosts, one cable, no switch::

        h1 ---- h2
    """

    syntax = example = "back2back"

    def build(self, **_opts: Any) -> None:
        one, two = self.new_host(1), self.new_host(2)
        self.addLink(one, two)
        self.flows = [(one, two)]


class Star(SmtTopo):
    """N hosts at one switch; each calls the next::

        h1  h2  h3  h4
          \\  |   |  /
             s1
    """

    syntax, example = "star,N", "star,4"

    def build(self, hosts: Any = 4, **_opts: Any) -> None:
        number = self.number("N", hosts, 2)
        names = self.hosts_at(self.addSwitch("s1"), range(1, number + 1))
        self.flows = list(zip(names, names[1:] + names[:1], strict=True))


class Fanout(SmtTopo):
    """A tree with the caller at the top: h1 calls every leaf. LEAVES: children of a switch, DEPTH: switches on
    the way down. ``fanout,2,2``::

              h1
              |
              s1
             /  \\
           s2    s3
          /  \\  /  \\
         h2 h3  h4 h5
    """

    syntax, example = "fanout,LEAVES,DEPTH", "fanout,4"

    def build(self, leaves: Any = 4, depth: Any = 1, **_opts: Any) -> None:
        width = self.number("LEAVES", leaves, 1)
        levels = self.number("DEPTH", depth, 1, 8)
        self.few_enough(1 + width**levels)
        top = self.addSwitch("s1")
        (root,) = self.hosts_at(top, range(1, 2))
        row, switches = [top], 1
        for _level in range(levels - 1):
            below = []
            for parent in row:
                for _child in range(width):
                    switches += 1
                    below.append(self.addSwitch(f"s{switches}"))
                    self.addLink(parent, below[-1])
            row = below
        for n, switch in enumerate(row):
            first = 2 + n * width
            self.flows += [(root, leaf) for leaf in self.hosts_at(switch, range(first, first + width))]


class Dumbbell(SmtTopo):
    """N hosts on either side of one link that all share; each calls the one opposite. ``dumbbell,2``::

        h1          h3
          \\        /
           s1 -- s2
          /        \\
        h2          h4
    """

    syntax, example = "dumbbell,N", "dumbbell,2"

    def build(self, hosts: Any = 2, **_opts: Any) -> None:
        number = self.number("N", hosts, 1, MAX_HOSTS // 2)
        left, right = self.addSwitch("s1"), self.addSwitch("s2")
        self.addLink(left, right)
        self.flows = list(zip(self.hosts_at(left, range(1, number + 1)),
                              self.hosts_at(right, range(number + 1, 2 * number + 1)), strict=True))


class Incast(SmtTopo):
    """N clients call one server, h1, behind another switch: the switch port to h1 is where it gets tight::

        h1 -- s1 -- s2 -- h2, h3, ... h(N+1)
    """

    syntax, example = "incast,N", "incast,4"

    def build(self, clients: Any = 4, **_opts: Any) -> None:
        number = self.number("N", clients, 1, MAX_HOSTS - 1)
        near, far = self.addSwitch("s1"), self.addSwitch("s2")
        (server,) = self.hosts_at(near, range(1, 2))
        self.addLink(near, far)
        self.flows = [(client, server) for client in self.hosts_at(far, range(2, number + 2))]


class LeafSpine(SmtTopo):
    """L leaf switches with H hosts each, every leaf linked to all S spines. ``leafspine,2,2,2``::

            s3    s4        spines
            | \\  / |
            | /  \\ |
            s1    s2        leaves
           / |    | \\
         h1 h2    h3 h4

    A host calls the one at the same place of the next leaf. Between two leaves there are S ways. A controller uses
    them all (:mod:`controllers.planner`); without one a single way is left: see :mod:`topo.switches`.
    """

    syntax, example = "leafspine,L,S,H", "leafspine,2,2,2"

    def build(self, leaves: Any = 2, spines: Any = 2, hosts: Any = 2, **_opts: Any) -> None:
        rows = self.number("L", leaves, 2)
        tops = self.number("S", spines, 1)
        each = self.number("H", hosts, 1)
        self.few_enough(rows * each)
        self.few_enough(rows + tops)
        low = [self.addSwitch(f"s{n}") for n in range(1, rows + 1)]
        high = [self.addSwitch(f"s{n}") for n in range(rows + 1, rows + tops + 1)]
        groups = [self.hosts_at(leaf, range(n * each + 1, (n + 1) * each + 1)) for n, leaf in enumerate(low)]
        for leaf in low:
            for spine in high:
                self.addLink(leaf, spine)
        for here, there in zip(groups, groups[1:] + groups[:1], strict=True):
            self.flows += list(zip(here, there, strict=True))


class FatTree(SmtTopo):
    """A fat tree of switches with K ports (Al-Fares et al., SIGCOMM 2008): K pods of K/2 edge and K/2 aggregation
    switches, K/2 hosts at each edge switch, (K/2)^2 core switches. ``fattree,4``, the first of its four pods::

          s17  s18    s19  s20    core: each with a link to every pod, s17 and s18 to the first
            \\  /        \\  /      of its aggregation switches, s19 and s20 to the second
             s9         s10       aggregation
             |  \\     /  |
             |    \\ /    |
             |    / \\    |
             |  /     \\  |
             s1         s2        edge
            /  \\       /  \\
          h1    h2    h3    h4

    A host calls the one at the same place of the next pod. Between two pods there are (K/2)^2 ways, one by each
    core switch; a controller uses them all.
    """

    syntax, example = "fattree,K", "fattree,4"

    def build(self, ports: Any = 4, **_opts: Any) -> None:
        pods = self.number("K", ports, 2, 8)
        if pods % 2:
            raise ConfigError(f"topology {self.syntax}: K is {pods}; an even number, e.g. {self.example}")
        half = pods // 2
        switches = [self.addSwitch(f"s{n}") for n in range(1, 2 * pods * half + half * half + 1)]
        edge, aggregation, core = (switches[:pods * half], switches[pods * half:2 * pods * half],
                                   switches[2 * pods * half:])
        groups = [self.hosts_at(switch, range(n * half + 1, (n + 1) * half + 1)) for n, switch in enumerate(edge)]
        for pod in range(pods):
            uppers = aggregation[pod * half:(pod + 1) * half]
            for lower in edge[pod * half:(pod + 1) * half]:
                for upper in uppers:
                    self.addLink(lower, upper)
            for n, upper in enumerate(uppers):
                for top in core[n * half:(n + 1) * half]:
                    self.addLink(upper, top)
        hosts = [host for group in groups for host in group]
        self.flows = list(zip(hosts, hosts[half * half:] + hosts[:half * half], strict=True))


TOPOS: dict[str, type[SmtTopo]] = {"back2back": Back2Back, "star": Star, "fanout": Fanout, "dumbbell": Dumbbell,
                                   "incast": Incast, "leafspine": LeafSpine, "fattree": FatTree}


def make_topo(text: str) -> SmtTopo:
    """What ``text`` describes, e.g. ``star,4``; raises :class:`ConfigError` with the right spelling."""
    name, *arguments = text.strip().split(",")
    kind = TOPOS.get(name)
    if kind is None:
        close = difflib.get_close_matches(name, TOPOS, 1)
        hint = f"did you mean {TOPOS[close[0]].example}? " if close else ""
        known = ", ".join(t.syntax for t in TOPOS.values())
        raise ConfigError(f"unknown topology {name!r}; {hint}there are {known}")
    return kind(*arguments)
