"""The kernel's network emulator in the wire's place (``--impair netem``): a cross-check that both impair alike.

On a link with it, the ends of the two cables that a wire process would have are joined by the kernel::

    h1-eth0 <====> w-h1-eth0 | redirect, netem | w-s1-eth1 <====> s1-eth1

So what is before and behind is the same as with a wire. But it has no seed, records nothing, and no attacker can
be played on it: docs/decisions/0025.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from smtstack.errors import ConfigError, SmtError, Unsupported
from smtstack.nic.impairments import ImpairmentRates
from topo.commands import batch, run

#: Frames that may be in a delay where no number was asked for, as many as a wire takes.
_MOST = 100_000


def words(rates: ImpairmentRates, most: int | None) -> str:
    """What ``tc`` takes for these rates. Raises :class:`ConfigError` for what netem does in another way."""
    if rates.reorder:
        raise ConfigError("link option reorder: netem's holds back all other frames, the wire's those that it "
                          "draws: leave --impair netem out, or give jitter")
    found = [f"limit {most or _MOST}"]
    if rates.delay_ns or rates.spread_ns:
        # Without a distribution it is uniform, as the wire's.
        found.append(f"delay {rates.delay_ns / 1000:.3f}us {rates.spread_ns / 1000:.3f}us")
    for name, share in (("loss", rates.drop), ("duplicate", rates.duplicate), ("corrupt", rates.corrupt)):
        if share:
            found.append(f"{name} {share * 100:g}%")
    return " ".join(found)


class Netem:
    """Joins two interfaces of our namespace; ends with them."""

    def __init__(self, left: str, right: str, rates: ImpairmentRates, back: ImpairmentRates,
                 most: int | None = None, most_back: int | None = None) -> None:
        """``rates`` hold from left to right, ``back`` the other way. Raises :class:`Unsupported` where the kernel
        has no netem."""
        self._ends = (left, right)
        # An end's queue is that of frames which leave by it.
        lines = [f"qdisc add dev {right} root netem {words(rates, most)}",
                 f"qdisc add dev {left} root netem {words(back, most_back)}"]
        for here, there in ((left, right), (right, left)):
            lines += [f"qdisc add dev {here} clsact",
                      f"filter add dev {here} ingress protocol all prio 1 u32 match u32 0 0 "
                      f"action mirred egress redirect dev {there}"]
        try:
            batch("ip", [f"link set dev {name} up" for name in self._ends], where=left)
            batch("tc", lines, where=left)
        except SmtError as e:
            if "qdisc kind is unknown" in str(e) or "Failed to load TC" in str(e):
                raise Unsupported("this kernel has no netem, u32 or mirred (sch_netem, cls_u32, act_mirred): "
                                  "leave --impair netem out, and the wire does the same") from None
            raise

    def drops(self) -> int:
        """Frames that were lost as asked for, or since more than the limit were in a delay."""
        return sum(lost(run(["tc", "-s", "-j", "qdisc", "show", "dev", name, "root"], where=name))
                   for name in self._ends)


def lost(said: str) -> int:
    """Frames that netem has dropped, by what ``tc -s -j qdisc show`` says."""
    found: Sequence[dict[str, int | str]] = json.loads(said or "[]")
    return sum(int(entry.get("drops", 0)) for entry in found if entry.get("kind") == "netem")
