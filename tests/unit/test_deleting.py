"""Every place in ``topo`` and ``controllers`` that removes, ends or changes something, found in the source.

A new one fails here until it is listed, with the test that shows that it leaves alone what this process did not
make.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from smtstack.errors import ConfigError
from smtstack.io.namespaces import Namespace
from tests.test_layers import ROOT
from topo import devices

#: In the text of a command for ip, tc, ovs-vsctl or a shell.
_WORDS = re.compile(r"^(remove|destroy|mount|umount|rm)$|\b(link|addr|qdisc|filter|class|neigh|route|rule|netns) "
                    r"(del|delete|flush|replace|change|set)\b|\b(del|delete|flush|del-br|del-port|--if-exists)$")
#: Methods and functions.
_CALLS = {"unlink", "rmdir", "rmtree", "remove", "rename", "kill", "killpg", "terminate", "send_signal",
          "pidfd_send_signal", "cleanup", "remove_end", "write_text", "write_bytes", "ioctl", "silence", "delete",
          "_delete", "_end", "setrlimit", "restore", "widen_buffers"}

_OTHERS, _MN, _TOPO = ("tests/net/test_mn_others.py::", "tests/net/test_mn.py::", "tests/net/test_topo.py::")
_STAYS = f"{_OTHERS}test_what_is_in_the_way_is_named_and_stays"
_WHOLE = f"{_OTHERS}test_a_second_network_leaves_the_first_one_whole"
_BESIDE = f"{_OTHERS}test_what_is_beside_a_network_stays"
_OVS_STAYS = f"{_OTHERS}test_an_open_vswitch_that_runs_in_the_sandbox_stays"
#: Processes by the Popen object that started them, files in a temporary folder of one's own, one's own limits.
_OWN = "tests/unit/test_deleting.py::test_processes_are_ended_by_those_who_started_them"

#: Where (module and function): which test shows that it is about our own things only.
PLACES = {
    "topo.cluster ClusterBridge.stop": "tests/net/test_cluster.py::test_smt_between_hosts_of_two_machines",
    "topo.cluster ClusterNet.remove": _OWN,
    "topo.cluster ClusterNet.stop": _OWN,
    "topo.devices Device.remove": "tests/unit/test_deleting.py::test_what_has_been_made_anew_is_not_removed",
    "topo.devices _set": _BESIDE,
    "topo.devices keep_firewall_out":
        "tests/net/test_bridge_firewall.py::test_no_firewall_comes_between_and_the_machines_stays",
    "topo.devices silence": _BESIDE,
    "topo.dns DnsServer._write": _OWN,
    "topo.dns DnsServer.stop": _OWN,
    "topo.forked Forked.kill": _OWN,
    "topo.forked Forked.send_signal": _OWN,
    "topo.forked Forked.terminate": _OWN,
    "topo.host SmtHost.end_programs": _OWN,
    "topo.host SmtHost.set_neighbours": _BESIDE,
    "topo.host SmtHost.terminate": _OWN,
    "topo.cli_verbs release": "tests/unit/test_cli_verbs.py::test_nics_get_back_what_was_set_before",
    "topo.links SmartNicIntf.delete": _WHOLE,
    "topo.links SmartNicIntf.isUp": _BESIDE,
    "topo.links SmartNicIntf.setIP": _BESIDE,
    "topo.links SmartNicIntf.setMAC": _BESIDE,
    "topo.links SmtLink._plug_in": _BESIDE,
    "topo.links SmtLink.delete": _WHOLE,
    "topo.links SmtLink.makeIntfPair": _BESIDE,
    "topo.links SmtLink.remove_end": _WHOLE,
    "topo.links keep_apart": _BESIDE,
    "topo.mn_plugin _mend_networks.start_and_widen": _BESIDE,
    "topo.mn_plugin _begin_with_exit_code.begin_and_exit": _WHOLE,
    "topo.network SmtNet.__init__": _OWN,
    "topo.network SmtNet._check_mtu": f"{_TOPO}test_what_is_wrong_is_said_in_one_line",
    "topo.network SmtNet.start": _BESIDE,
    "topo.nic_process NicProcess.stop": _OWN,
    "topo.nic_process NicProcess.wait": _OWN,
    "topo.ovs PrivateOvs.start": _OVS_STAYS,
    "topo.ovs PrivateOvs.stop": _OVS_STAYS,
    "topo.ovs _end": _OVS_STAYS,
    "topo.ovs remove": _BESIDE,
    "topo.probes _Controller.__init__": _OWN,
    "topo.probes _Controller.trouble": _OWN,
    "topo.probes _finish": _OWN,
    "topo.probes _try_nic_tap": _OWN,
    "topo.programs ask": _OWN,
    "topo.running Program.stop": _OWN,
    "topo.running finish": _OWN,
    "topo.sandbox _first_process.hand_on": _OWN,
    "topo.sandbox _hand_on": _OWN,
    "topo.sandbox _prepare": f"{_TOPO}test_two_sandboxes_do_not_meet",
    "topo.shaping set_aside": _STAYS,
    "topo.shaping shape": _BESIDE,
    "topo.switches AutoSwitch._start_bridge": _STAYS,
    "topo.switches AutoSwitch._start_ovs": _STAYS,
    "topo.switches AutoSwitch.stop": _WHOLE,
    "topo.wire Wire.stop": _OWN,
    "topo.netem Netem.__init__": _BESIDE,
    "topo.wire_process Direction._arrival": _BESIDE,
    "topo.wire_process _flags": _BESIDE,
    "topo.wire_process open_end": _BESIDE,
    "controllers.controller RyuController._end": _OWN,
    "controllers.controller RyuController.kill": _OWN,
    "controllers.controller RyuController.restart": _OWN,
    "controllers.controller RyuController.start": _OWN,
    "controllers.controller RyuController.stop": _OWN,
    "controllers.controller RyuController.take": _OWN,
}


def places(tree: ast.AST, stack: tuple[str, ...] = ()) -> Iterator[str]:
    """The functions, with the classes and functions around them, in which something is removed or changed."""
    for node in ast.iter_child_nodes(tree):
        inner = (*stack, node.name) if isinstance(node, ast.FunctionDef | ast.ClassDef) else stack
        yield from places(node, inner)
        match node:
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)) if name in _CALLS:
                yield ".".join(inner)
            case ast.Constant(value=str(text)) if _WORDS.search(text) and not _is_prose(text):
                yield ".".join(inner)


def _is_prose(text: str) -> bool:
    """Docstrings and messages: commands have neither capitals nor such ends."""
    return text[:1].isupper() or "\n" in text or ": " in text or "; " in text or text.endswith((".", ","))


def test_every_place_is_known_and_has_a_test():
    found = set()
    for package in ("topo", "controllers"):
        for path in sorted((ROOT / package).glob("*.py")):
            # What stands outside of functions is text.
            found |= {f"{package}.{path.stem} {where}" for where in places(ast.parse(path.read_text())) if where}
    assert sorted(found) == sorted(PLACES)


@pytest.mark.parametrize("test", sorted(set(PLACES.values())))
def test_every_test_is_there(test: str):
    path, _colons, name = test.partition("::")
    functions = [node.name for node in ast.walk(ast.parse((ROOT / path).read_text()))
                 if isinstance(node, ast.FunctionDef)]
    assert name in functions


@pytest.mark.parametrize("source", ["def f(): run(['ip', 'link', 'del', 'dev', name])",
                                    "class A:\n def f(self): batch('ip', [f'link del dev {self}'])",
                                    "def f(): path.unlink()", "def f(): vsctl('--if-exists', 'del-br', name)",
                                    "def f():\n def g(): os.kill(1, 9)",
                                    "def f(): batch('ip', ['addr flush dev x'])"])
def test_places_are_found(source: str):
    assert list(places(ast.parse(source)))


def test_processes_are_ended_by_those_who_started_them():
    """Signals go to objects of subprocess, children, what our own fork server has started and has not said to have
    ended, or numbers out of our own pid files; never to a name."""
    forked = ROOT / "topo" / "forked.py"
    for path in [*(ROOT / "topo").glob("*.py"), *(ROOT / "controllers").glob("*.py")]:
        text = path.read_text()
        assert not re.search(r"pkill|killall|process_iter|pidof", text), path
        for kill in re.findall(r"os\.kill\((.*?)\)", text):
            assert kill == ("self.pid, number" if path == forked else "child, number"), path


def test_what_has_been_made_anew_is_not_removed(monkeypatch: pytest.MonkeyPatch):
    """An interface of the same name elsewhere: another namespace has the number of a process that is gone."""
    asked: list[int] = []
    here = Namespace(1, 1)
    monkeypatch.setattr(devices, "_delete", lambda index, _name: asked.append(index))
    monkeypatch.setattr(devices, "within", lambda _pid, look: look())
    made = devices.Device("s1-eth1", 5, 17, here)
    monkeypatch.setattr(devices, "locate", lambda _name, _pid: Namespace(2, 1))
    made.remove()
    assert asked == []
    monkeypatch.setattr(devices, "locate", lambda _name, _pid: here)
    made.remove()
    assert asked == [17], "by its number, whatever has its name now"


@pytest.mark.parametrize("name", ["h1-eth0", "web.server-eth0", "client0001-eth0", "averyveryverylonghost-eth0"])
@pytest.mark.parametrize("prefix", ["w-", "q-", "r-"])
def test_names_of_ours_fit_and_tell_apart(prefix: str, name: str):
    short = devices.short_name(prefix, name)
    assert len(short) <= 15
    assert short.startswith(prefix)
    devices.check_name(short, "here")
    assert devices.short_name(prefix, name) == short, "who looks for it later finds it"
    others = {devices.short_name(prefix, f"{name[:-1]}{n}") for n in range(1, 200)}
    assert len(others - {short}) == 199


def test_hosts_may_call_their_interfaces_alike(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "_names", set())
    seen = set()
    for _ in range(50):
        name = devices.unused_name("w-", "eth0")
        assert len(name) <= 15
        assert name not in seen
        seen.add(name)
        devices._names.add(name)
    assert "w-eth0" in seen


@pytest.mark.parametrize("name", ["", "sixteencharacter", "with space", "a/b", "a:b", ".", "..", "-x", "ääääääää",
                                  "a\nb"])
def test_names_that_no_interface_can_have(name: str):
    with pytest.raises(ConfigError, match="here: "):
        devices.check_name(name, "here")
