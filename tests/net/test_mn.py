"""The plug-in for plain ``mn``: options, the smtecho test with its exit code, the smt verbs, and what is left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mininet.util import splitArgs

from smtstack.capture.pcapfile import Reader
from smtstack.errors import ConfigError
from tests.net import starting
from tests.net.netns import PATIENCE
from tests.net.starting import ROOT
from topo import ovs
from topo.topologies import TOPOS

pytestmark = pytest.mark.root

#: Debian's, which runs under the system's Python, and the one beside our own Python.
SYSTEM_MN, OWN_MN = "/usr/bin/mn", str(Path(sys.executable).with_name("mn"))
PLUGIN = ["--custom", f"{ROOT / 'topo' / 'mn.py'},{ROOT / 'tests' / 'net' / 'odd_topos.py'}"]
SMT = ["--host", "smt", "--link", "smartnic", "--switch", "auto"]


def environment() -> dict[str, str]:
    """A user's, who has no path to the checkout in it."""
    # Half of mn's start is setuptools, which has itself imported by Mininet before ours can keep it out.
    lighter = {"SETUPTOOLS_USE_DISTUTILS": "stdlib"} if sys.version_info < (3, 12) else {}
    return {**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **lighter}


def mn(*options: str, script: str = "", program: str = "", switches: bool = False) -> dict[str, Any]:
    """``mn`` with the plug-in in a sandbox (``switches``: with Open vSwitch): exit code, words, leftovers.

    ``program``: the mn that is started, as a user does; empty: ours, by a fork."""
    fork = [] if program else ["--fork"]
    program = program or OWN_MN
    if not Path(program).exists() or shutil.which("mnexec") is None:
        pytest.skip(f"{program} or mnexec is not installed (apt-get install mininet)")
    done = starting.run([sys.executable, "-m", "tests.net.mn_driver", *(["--ovs"] if switches else []), *fork,
                         program, *PLUGIN, *options], text=script, timeout=4 * PATIENCE, environment=environment())
    assert done.stdout.startswith("{"), done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert "Traceback" not in result["said"], result["said"]
    return result


def answers(result: dict[str, Any]) -> list[str]:
    """What the prompt answered to each line of the script."""
    _start, _prompt, said = result["said"].partition("mininet> ")
    return [text.strip() for text in said.split("mininet> ")]


@pytest.mark.parametrize("program", [SYSTEM_MN, OWN_MN])
def test_smtecho_passes(program: str):
    done = mn("--topo", "fanout,4", *SMT, "--test", "smtecho,size=3000,count=30", program=program)
    assert done["code"] == 0, done["said"]
    assert "*** smtecho: 5 of 5 pairs ok" in done["said"]
    assert sum(line.split()[3:7] == ["smt", "mtls", "3000", "30"] for line in done["said"].splitlines()) == 5
    assert done["left"] == []


def test_tickets_are_served_by_a_dns_server_that_goes_with_the_test():
    if shutil.which("knotd") is None:
        pytest.skip("knotd is not installed (apt-get install knot)")
    done = mn("--topo", "star,2", "--host", "smt,session=ticket-fs", "--link", "smartnic", "--switch", "auto",
              "--test", "smtecho,count=30", program=SYSTEM_MN)
    assert done["code"] == 0, done["said"]
    assert sum(line.split()[3:7] == ["smt", "ticket-fs", "1024", "30"] for line in done["said"].splitlines()) == 1
    assert "*** smtecho: 1 of 1 pairs ok" in done["said"]
    assert done["left"] == []


def test_smtecho_fails_with_an_exit_code():
    """All frames are lost. Plain mn says 0 whatever happens."""
    done = mn("--topo", "back2back", "--host", "smt", "--link", "smartnic,loss=100%", "--switch", "auto", "--test",
              "smtecho,count=5")
    assert done["code"] == 1, done["said"]
    assert "*** smtecho: 0 of 1 pairs ok" in done["said"]
    assert "FAILED: no session with 10.0.0.2:2000: " in done["said"]
    assert done["left"] == []


@pytest.mark.parametrize(("how", "line", "code"), [
    ("--post", "smt echo h1 h2 64 5 tcp", 0), ("--post", "smt echo h1 h2 64 5 homa", 1),
    ("--pre", "smt echo h1 h9 64", 1), ("--post", "smt kv h1 h2 a 20 homa", 1), ("--post", "nonsense", 1),
    ("--post", "h1 true", 0), ("pipe", "smt echo h1 h2 64 5 homa", 0), ("source", "smt nonsense", 1),
])
def test_a_line_of_a_script_that_fails_is_in_the_exit_code(tmp_path: Path, how: str, line: str, code: int):
    """The NICs lose all; tcp does not pass through them."""
    script = tmp_path / "script"
    lines = f"smt loss h1-s1 100%\n{line}\n"
    script.write_text(lines)
    typed = {"pipe": lines, "source": f"source {script}\n"}.get(how, "")
    done = mn("--topo", "star,2", *SMT, *([how, str(script)] if how.startswith("--") else []), script=typed)
    assert done["code"] == code, done["said"]
    assert ("smtnet: failed: " in done["said"]) is bool(code)
    assert done["left"] == []


def test_a_script_that_is_not_there_is_said_before_anything_is_made():
    done = mn("--topo", "star,2", *SMT, "--post", "/nowhere/script")
    assert done["code"] == 2
    assert "--post /nowhere/script: no such script" in done["said"]


def test_open_vswitch_is_taken_if_it_runs():
    if not ovs.is_installed():
        pytest.skip("Open vSwitch is not installed (apt-get install openvswitch-switch)")
    # Two switches, and bursts: answers of 60 packets.
    done = mn("--topo", "dumbbell,1", *SMT, "--test", "smtecho,80000,20", switches=True)
    assert done["code"] == 0, done["said"]
    assert "*** Switches: ovs" in done["said"]
    assert "*** smtecho: 1 of 1 pairs ok" in done["said"]
    assert done["left"] == []


def test_plain_hosts_and_links_do_too():
    done = mn("--topo", "single,2", "--switch", "auto", "--test", "smtecho,64,20,homa,hw")
    assert done["code"] == 0, done["said"]
    assert "*** smtecho: 1 of 1 pairs ok" in done["said"]
    assert done["left"] == []


def test_homa_as_its_own_module_speaks_it(tmp_path: Path):
    script = tmp_path / "script"
    script.write_text("smt kv h1 h2 a 20 upstream\n")
    done = mn("--topo", "star,2", *SMT, "--test", "smtecho,30000,20,upstream", "--post", str(script))
    assert done["code"] == 0, done["said"]
    assert "*** smtecho: 1 of 1 pairs ok" in done["said"]
    done = mn("--topo", "star,2", *SMT, "--post", str(script))
    assert done["code"] == 0, done["said"]
    assert "upstream" in done["said"]


@pytest.mark.parametrize(("options", "code", "text"), [
    (["--topo", "fanot,4"], 2, "smtnet: --topo fanot: unknown; did you mean fanout?"),
    (["--topo", "star,1", *SMT], 2, "smtnet: topology star,N: N is 1"),
    (["--topo", "star,2", "--link", "smartnic,lss=1%"], 2, "smtnet: a link has no option 'lss'"),
    (["--topo", "star,2", "--link", "smartnic,loss=101"], 2, "loss: 101 is not a percentage"),
    (["--topo", "star,2", *SMT, "--test", "smtecho,64,5,carrier-pigeon"], 2, "smtnet: transport 'carrier-pigeon'"),
    (["--topo", "star,2", *SMT, "--test", "smtecho,1,2,smt,sw,tls,5"], 2, "smtnet: --test smtecho takes size"),
    (["--topo", "star,2", "--host", "smt,session=psq"], 2, "session 'psq'; there are tls, mtls, ticket"),
    (["--topo", "star,2", "--host", "smt,sesion=psk"], 2, "the only option is session"),
    (["--topo", "star,2", "--host", "smt,psk"], 2, "the only option is session"),
    (["--topo", "star,2", *SMT, "--controller", "fanot"], 2, "--controller fanot: unknown; did you mean fanout?"),
    (["--topo", "star,2", *SMT, "--controller", "fanout,flow"], 2, "smtnet: --controller fanout,flow: options"),
    (["--topo", "star,2", *SMT, "--controller", "fanout,multipath=all"], 2, "one of flow, message, ecmp"),
    (["--topo", "star,2", *SMT, "--controller", "fanout,sed=2"], 2, "controller fanout has no option 'sed'"),
    (["--topo", "star,2", *SMT, "--controller", "fanout"], 3, ", which a controller needs: "),
    (["--topo", "star,2", "--switch", "auto,bridge", "--controller", "fanout"], 2, "a bridge has no OpenFlow"),
    (["--topo", "star,2", *SMT, "--innamespace"], 2, "--innamespace: --switch auto switches in the machine's"),
    (["--topo", "back2back", *SMT, "--nat"], 2, "smtnet: --nat: this topology has no switch to link it to"),
    (["--topo", "single,x"], 2, "smtnet: --topo single,x: wrong arguments ("),
    (["--topo", "linear,x"], 2, "; linear takes k=2, n=1"),
    (["--topo", "tree,depth=x"], 2, "; tree takes depth=1, fanout=2"),
    (["--topo", "torus,2"], 2, "; torus takes x, y, n=1"),
    (["--topo", "broken", *SMT], 2, "--topo broken: it cannot be built: IndexError: list index out of"),
    (["--topo", "named,one=seventeen-letters", *SMT], 2, "has 22 characters, and a name of an interface at most "),
    (["--topo", "named,switch=sixteen-letters1", *SMT], 2, "smtnet: switch sixteen-letters1: "),
    (["--topo", "named,one=a:b", *SMT], 2, "no interface can be called 'a:b-eth0'"),
    (["--topo", "mixed", *SMT, "--controller", "fanout"], 3, ", which a controller needs: "),
])
def test_mistakes_are_one_line(options: list[str], code: int, text: str):
    done = mn(*options)
    assert done["code"] == code, done["said"]
    assert text in done["said"].splitlines()[-1]
    assert done["left"] == []


_WRONG = ["x", "0", "-1", "1.5", "", "999", "2,2,2,2,2", "foo=3", "2,hosts=2,leaves=2"]


@pytest.mark.parametrize("topo", [f"{name},{wrong}" for name in TOPOS for wrong in _WRONG])
def test_wrong_values_of_every_topology_of_ours(topo: str):
    """As mn gives them: numbers that it can read are numbers, and what is named comes by name."""
    kind, args, params = splitArgs(topo)
    with pytest.raises(ConfigError, match=f"topology {kind}|are too many: topology {kind}"):
        TOPOS[kind](*args, **params)


@pytest.mark.parametrize("link", ["smartnic", "smartnic,wire=yes,rate_mbps=100"])
@pytest.mark.parametrize("topo", ["named", "named,one=H-1,two=b_2,switch=switch0001",
                                  "named,one=a,two=7,switch=x1", "alike"])
@pytest.mark.parametrize("switches", [False, True])
def test_names_of_any_length(topo: str, link: str, switches: bool):
    if switches and not ovs.is_installed():
        pytest.skip("Open vSwitch is not installed (apt-get install openvswitch-switch)")
    done = mn("--topo", topo, "--host", "smt", "--link", link, "--switch", "auto", "--test", "smtecho,64,10",
              switches=switches)
    assert done["code"] == 0, done["said"]
    assert "*** smtecho: 1 of 1 pairs ok" in done["said"]
    assert done["left"] == []


def test_hosts_that_nobody_can_reach_are_left_out():
    done = mn("--topo", "mixed", *SMT, "--test", "smtecho,64,10", program=SYSTEM_MN)
    assert done["code"] == 0, done["said"]
    assert "*** smtecho: h3 is at no link: left out\n*** smtecho: h4 has no IPv4 address: left out" in done["said"]
    assert "*** smtecho: 1 of 1 pairs ok" in done["said"]
    done = mn("--topo", "mixed", *SMT, script="smt echo h1 h3 64\nsmt echo h4 h1 64\nsmt nic h3\nsmt stats\n")
    echo, back, nic, stats, _eof = answers(done)
    assert echo == "*** smt: h3 is at no link"
    assert back == "*** smt: h4 has no IPv4 address"
    assert nic == "*** smt: h3 has no interface: it is at no link"
    assert "h3" not in stats
    assert done["left"] == []


def test_the_next_hop_that_does_not_answer_is_named():
    """A second interface of a router as the peer; a gateway that is missing."""
    done = mn("--topo", "routed", *SMT, script="smt echo a1 b1 64 10\nsmt echo b1 r0 64 10 homa\n"
                                               "smt echo r0 b1 64 10\n")
    through, second, other, _eof = answers(done)
    assert "  ok" in through
    assert "FAILED: " in second
    assert "; nothing comes back from 10.0.2.4, the next hop to 10.0.1.4, which answers ARP on b1-eth0: " in second
    assert "; r0-eth1 has no route to 10.0.2.1, but r0-eth2 has: --iface r0-eth2" in other
    done = mn("--topo", "routed,gateway=10.0.1.9", *SMT, script="smt echo a1 b1 64 10\nsmt echo a1 b1 64 10 homa\n"
                                                                "smt echo a1 b1 64 10 tcp\n")
    for answer in answers(done)[:-1]:
        assert "FAILED: " in answer
        assert "; nobody answers ARP for 10.0.1.9, the next hop to 10.0.2.1, on a1-eth0" in answer


def test_verbs_at_the_prompt(tmp_path: Path):
    capture = tmp_path / "h1.pcapng"
    done = mn("--topo", "star,3", *SMT, script=f"""smt
smt offload h1 on
smt pcap h1 start {capture}
smt echo h1 h2 2000 40
smt pcap h1 stop
smt nic h1
smt stats h1
smt loss s1-h3 100%
smt echo h1 h3 64 5
smt loss h3-eth0 0
smt echo h1 h3 64 30 homa
smt echo h1 h3 64 30 tls
smt echo h1 h3 64 30 session=psk-fs
smt echo h1 h3 64 30 session=psq
smt loss s1-h9 1%
smt loss s1-h3 700%
smt echo h1 h7 64
smt echo h1
smt pcap h1 stop
smt offload h1 sideways
smt frobnicate
help smt
""")
    (usage, offload, start, echo, stop, nic, stats, loss, lost, no_loss, homa, tls, psk, psq, link, share,
     host, few, stopped, odd, verb, helped, _eof) = answers(done)
    assert [line.split()[1] for line in usage.splitlines()] == [
        "echo", "kv", "nic", "offload", "stats", "pcap", "loss", "paths", "links", "help"]
    assert offload == "h1: tls-hw-tx-offload on"
    assert start == f"h1: recording into {capture}"
    assert " 40 " in echo.splitlines()[1]
    assert "  ok" in echo
    assert stop == f"h1: wrote {capture}"
    with capture.open("rb") as f:
        assert len(list(Reader(f).frames_untrusted())) > 100
    assert capture.stat().st_mode & 0o777 == 0o600
    assert nic.startswith("h1-eth0: ")
    assert "tls-hw-tx-offload" in nic
    counters = dict(line.split() for line in stats.splitlines()[1:])
    # 20 more were the warm-up; though the client was started for software, the NIC sealed them.
    assert int(counters["tx_tls_encrypted_packets"]) >= 60
    assert "of the smt and homa frames are lost, by the NIC of h3; tcp and tls lose none" in loss
    assert "FAILED: " in lost
    assert "h3-s1: 0.000% of" in no_loss
    assert "  ok" in homa
    assert "  ok" in tls
    assert psk.splitlines()[1].split()[4] == "psk-fs"
    assert "  ok" in psk
    assert psq == "*** smt: session 'psq'; there are tls, mtls, ticket, ticket-fs, psk, psk-fs"
    assert link == "*** smt: no link 's1-h9'; there are h1-s1, h2-s1, h3-s1"
    assert share == ("*** smt: loss: '700%' is not a percentage such as 1 or 0.5%, from 0 to 100 %; units: %; "
                     "a plain number is %")
    assert host == "*** smt: no host 'h7'; there are h1, h2, h3"
    assert few == "*** smt: usage: smt echo CLIENT SERVER SIZE [COUNT] [TRANSPORT] [session=MODE]"
    assert stopped == "*** smt: h1-eth0 is not being recorded"
    assert odd == "*** smt: usage: smt offload HOST on|off|default"
    assert verb.startswith("*** smt: no verb 'frobnicate'; there are echo, ")
    assert "Usage: smt echo|" in helped
    assert done["code"] == 0
    assert done["left"] == []


def test_loss_on_a_wire_hits_every_transport():
    done = mn("--topo", "star,2", "--host", "smt", "--link", "smartnic,wire=yes", "--switch", "auto",
              script="""px from topo import reach
smt loss s1-h2 100%
smt echo h1 h2 64 5 homa
py f"ping {reach.echo(h1.pid, h2.IP(), 100, 0.5)}"
smt loss s1-h2 0
smt echo h1 h2 64 30 homa
py f"ping {reach.echo(h1.pid, h2.IP(), 100, 20.0)}"
smt stats
""")
    _import, loss, lost, no_ping, no_loss, echo, ping, stats, _eof = answers(done)
    assert loss == "h2-s1: 100.000% of all frames are lost"
    assert "FAILED: " in lost
    assert no_ping == "ping False"
    assert no_loss == "h2-s1: 0.000% of all frames are lost"
    assert "  ok" in echo
    assert ping == "ping True"
    assert "h2-s1 to h2:\n  received" in stats
    assert "h2-s1:\n  late_us_max" in stats
    assert done["left"] == []


def test_nics_that_own_their_interfaces():
    done = mn("--topo", "star,2", "--host", "smt", "--link", "smartnic,hosting=tap", "--switch", "auto",
              script="""pingall
smt echo h1 h2 3000 20 smt
smt echo h1 h2 3000 20 tcp
smt offload h1 off
smt nic h1
link s1 h1 down
""")
    ping, smt, tcp, _offload, nic, _down, _eof = answers(done)
    assert "0% dropped (2/2 received)" in ping
    assert "  ok" in smt
    assert "  ok" in tcp
    assert "tls-hw-tx-offload       off" in nic
    assert "kernel tap" in nic
    assert done["code"] == 0
    assert done["left"] == []


def test_a_controller_of_ours():
    """Its own topology with a path for every message, and the verbs that ask it."""
    if not ovs.is_installed():
        pytest.skip("Open vSwitch is not installed (apt-get install openvswitch-switch)")
    done = mn("--topo", "leafspine,2,2,1", *SMT, "--controller", "fanout,multipath=message,seed=2", switches=True,
              program=SYSTEM_MN, script="""smt paths h1 h2
smt nic h1
smt echo h1 h2 20000 30
smt links
smt paths h1 h7
""")
    paths, nic, echo, links, unknown, _eof = answers(done)
    ways = [line.split(": ")[1].split("  ")[0] for line in paths.splitlines()]
    assert sorted(ways) == ["h1 -> s1 -> s3 -> s2 -> h2", "h1 -> s1 -> s4 -> s2 -> h2"]
    assert paths.count("<- what names no path") == 1
    assert any(line.split()[:2] == ["paths", "2"] for line in nic.splitlines()), nic
    assert "  ok" in echo
    sent = {tuple(line.split()[:2]): line.split()[2:] for line in links.splitlines()[1:]}
    assert len(sent) == 2 * 4 + 2 * 2
    # 50 requests (20 of them to warm up), dealt to both spines.
    for spine in ("s3", "s4"):
        (numbers,) = (row for (interface, to), row in sent.items() if to == spine and interface.startswith("s1-"))
        assert numbers[0] == "up"
        assert int(numbers[2]) > 50 * 20_000 / 2 / 2
    assert unknown == "*** smt: no host 'h7'; there are h1, h2"
    assert done["code"] == 0, done["said"]
    assert done["left"] == []


def test_a_controller_of_ours_for_the_networks_of_others():
    """Mininet's topology, hosts, links and switches, whose MAC addresses are random."""
    if not ovs.is_installed():
        pytest.skip("Open vSwitch is not installed (apt-get install openvswitch-switch)")
    done = mn("--topo", "linear,2", "--switch", "ovs,datapath=user", "--controller", "fanout", "--test",
              "smtecho,size=3000,count=10", switches=True)
    assert done["code"] == 0, done["said"]
    assert "*** smtecho: 1 of 1 pairs ok" in done["said"]
    assert done["left"] == []


@pytest.mark.parametrize(("signal", "code"), [("TERM", 143), ("KILL", -9)])
def test_a_signal_leaves_nothing(signal: str, code: int):
    """Not even KILL, as hosts end with their shells, and wires with their parent."""
    done = mn("--topo", "back2back", "--host", "smt", "--link", "smartnic,wire=yes", script=f"net\n{signal}\n")
    assert done["code"] == code, done["said"]
    assert "h1-eth0:h2-eth0" in done["said"]
    left = done["left"]
    if signal == "KILL":
        # Ends of cables that were in no host: mn -c is for these.
        left = [name for name in left if not name.startswith("w-")]
    assert left == []


@pytest.mark.parametrize("python", ["/usr/bin/python3", sys.executable])
def test_the_script_of_the_docs_runs_under_both_pythons(python: str, tmp_path: Path):
    if subprocess.run([python, "-c", "import mininet"], check=False, capture_output=True).returncode:
        pytest.skip(f"{python} has no Mininet (apt-get install mininet)")
    text = (ROOT / "docs" / "mininet.md").read_text().partition("```python\nimport sys\n")[2].partition("```")[0]
    assert text.count("/opt/smtnet") == 1
    script = tmp_path / "net.py"
    script.write_text("import sys\n" + text.replace("/opt/smtnet", str(ROOT)))
    # Not where the checkout is, nor with its path in the environment.
    starter = (f"import sys; sys.path.insert(0, {str(ROOT)!r}); from topo.sandbox import run_command; "
               f"sys.exit(run_command(['env', '-u', 'PYTHONPATH', {python!r}, {str(script)!r}]))")
    done = subprocess.run([sys.executable, "-c", starter],
                          capture_output=True, text=True, check=False, timeout=4 * PATIENCE, cwd=tmp_path,
                          env=environment())
    assert done.returncode == 0, done.stderr
    assert "transport='smt', session='mtls', size=64, rpcs=10, ok=True" in done.stdout
