"""Kernel TLS: every combination of parameters gets the errno that FreeBSD's and Linux's sources say, the tables of
smtstack/ktls/params.py notwithstanding: what is expected is written down here a second time, as these have it."""

from __future__ import annotations

import errno
import struct
from itertools import product

import pytest

from smtstack.ktls import params as p
from smtstack.ktls.backends import InNic, OpenSsl, Registry
from smtstack.ktls.connection import KtlsConnection
from smtstack.ktls.params import Asked, TlsParams, first_broken, pack_crypto_info, parse_crypto_info
from smtstack.ktls.stats import TlsStats

OK = 0
CIPHERS = ("aes-128-gcm", "aes-256-gcm", "chacha20-poly1305", "aes-128-cbc", "aes-256-cbc", "rot13")
VERSIONS = (0x0200, 0x0300, 0x0301, 0x0302, 0x0303, 0x0304, 0x0305, 0x0403)
KEYS = (0, 16, 24, 32)
IVS = (0, 4, 12, 16)
AUTH = ("", "hmac-sha1", "hmac-sha2-256", "hmac-sha2-384", "md5")


def freebsd(a: Asked) -> int:
    """ktls_enable_tx and ktls_create_session of uipc_ktls.c, as a switch."""
    t = a.params
    major, minor = t.version >> 8, t.version & 0xFF
    if not a.enabled:
        return errno.ENOTSUP
    if a.listening:
        return errno.EINVAL
    if a.installed is not None:
        return errno.EALREADY
    if "cbc" in t.cipher and not a.cbc_enabled:
        return errno.ENOTSUP
    if not a.ext_pgs:
        return errno.ENXIO
    if major != 3 or minor not in (1, 2, 3, 4) or len(t.key) == 0 or t.flags:
        return errno.EINVAL
    match t.cipher:
        case "aes-128-gcm" | "aes-256-gcm":
            if t.auth_algorithm or t.auth_key:
                return errno.EINVAL
            if {3: 4, 4: 12}.get(minor) != len(t.iv):
                return errno.EINVAL
        case "chacha20-poly1305":
            if t.auth_algorithm or t.auth_key or minor not in (3, 4) or len(t.iv) != 12:
                return errno.EINVAL
        case "aes-128-cbc" | "aes-256-cbc":
            if t.auth_algorithm == "hmac-sha1":
                pass
            elif t.auth_algorithm in ("hmac-sha2-256", "hmac-sha2-384"):
                if minor != 3:
                    return errno.EINVAL
            else:
                return errno.EINVAL
            if not t.auth_key or minor == 4 or (minor == 1 and len(t.iv) != 16):
                return errno.EINVAL
        case _:
            return errno.EINVAL
    wanted = 16 if "128" in t.cipher else 32
    return OK if len(t.key) == wanted else errno.EINVAL


def linux(a: Asked) -> int:
    """do_tls_setsockopt_conf of tls_main.c."""
    t, old, other = a.params, a.installed, a.other
    if old is not None and old.version != 0x0304:
        return errno.EBUSY
    if t.version not in (0x0303, 0x0304):
        return errno.EINVAL
    for known in (other, old):
        if known is not None and (known.version != t.version or known.cipher != t.cipher):
            return errno.EINVAL
    sizes = {"aes-128-gcm": 16, "aes-256-gcm": 32, "chacha20-poly1305": 32}
    if t.cipher not in sizes or len(t.key) != sizes[t.cipher]:
        return errno.EINVAL
    if len(t.iv) != (4 if t.version == 0x0303 and t.cipher.endswith("gcm") else 12):
        return errno.EINVAL
    return errno.EOPNOTSUPP if old is not None and a.in_nic else OK


def judged(rules: str, asked: Asked) -> int:
    broken = first_broken(rules, asked)
    return OK if broken is None else broken.error


def every_params():
    for cipher, version, key, iv, auth, auth_key, flags in product(CIPHERS, VERSIONS, KEYS, IVS, AUTH, (0, 20),
                                                                   (0, 1)):
        yield TlsParams(cipher, version, bytes(key), bytes(iv), auth_algorithm=auth, auth_key=bytes(auth_key),
                        flags=flags)


def test_freebsd_says_of_every_combination_what_its_source_says():
    seen = set()
    for params in every_params():
        asked = Asked(params)
        assert judged("freebsd", asked) == freebsd(asked), asked
        seen.add(judged("freebsd", asked))
    assert seen == {OK, errno.EINVAL}


GOOD = {(version, cipher): TlsParams(cipher, version, bytes(p.KEY_LENGTHS[cipher]),
                                     bytes(4 if version == 0x0303 and cipher.endswith("gcm") else 12))
        for version in (0x0303, 0x0304) for cipher in p.LINUX_CIPHERS}
CBC = TlsParams("aes-128-cbc", 0x0303, bytes(16), b"", auth_algorithm="hmac-sha1", auth_key=bytes(20))


def test_freebsd_says_in_every_state_what_its_source_says():
    seen = set()
    bad = TlsParams("rot13", 0x0304, b"x", b"")
    for params, enabled, cbc, ext_pgs, listening, installed in product(
            (*GOOD.values(), CBC, bad), *((True, False),) * 4, (None, GOOD[0x0304, "aes-128-gcm"])):
        asked = Asked(params, enabled, cbc, ext_pgs, listening, installed)
        assert judged("freebsd", asked) == freebsd(asked), asked
        seen.add(judged("freebsd", asked))
    assert seen == {OK, errno.EINVAL, errno.ENOTSUP, errno.EALREADY, errno.ENXIO}


def test_linux_says_of_every_combination_and_state_what_its_source_says():
    seen = set()
    states = [None, *GOOD.values()]
    for params in every_params():
        if not (params.auth_algorithm or params.auth_key or params.flags):
            asked = Asked(params)
            assert judged("linux", asked) == linux(asked), asked
    for params, installed, other, in_nic in product((*GOOD.values(), CBC), states, states, (False, True)):
        asked = Asked(params, installed=installed, other=other, in_nic=in_nic)
        assert judged("linux", asked) == linux(asked), asked
        seen.add(judged("linux", asked))
    assert seen == {OK, errno.EINVAL, errno.EBUSY, errno.EOPNOTSUPP}


def test_where_the_two_systems_differ():
    """A second set of keys, and what either does not know."""
    twice = Asked(GOOD[0x0304, "aes-128-gcm"], installed=GOOD[0x0304, "aes-128-gcm"])
    old = Asked(GOOD[0x0303, "aes-128-gcm"], installed=GOOD[0x0303, "aes-128-gcm"])
    assert (judged("freebsd", twice), judged("linux", twice)) == (errno.EALREADY, OK)
    assert (judged("freebsd", old), judged("linux", old)) == (errno.EALREADY, errno.EBUSY)
    assert (judged("freebsd", Asked(CBC)), judged("linux", Asked(CBC))) == (OK, errno.EINVAL)
    mixed = Asked(GOOD[0x0304, "aes-128-gcm"], other=GOOD[0x0304, "aes-256-gcm"])
    assert (judged("freebsd", mixed), judged("linux", mixed)) == (OK, errno.EINVAL)


@pytest.mark.parametrize("params", GOOD.values(), ids=repr)
def test_linux_structures_there_and_back(params):
    params = TlsParams(params.cipher, params.version, bytes(range(len(params.key))), bytes(range(len(params.iv))),
                       77, 88 if params.explicit else 0)
    packed = pack_crypto_info(params)
    assert parse_crypto_info(packed) == params
    assert struct.unpack_from("=HH", packed) == (params.version, {"aes-128-gcm": 51, "aes-256-gcm": 52,
                                                                  "chacha20-poly1305": 54}[params.cipher])
    for wrong in (packed[:-1], packed + b"\0", packed[:3], b"", struct.pack("=HH", 0x0304, 99) + bytes(36)):
        with pytest.raises(OSError) as refused:
            parse_crypto_info(wrong)
        assert refused.value.errno == errno.EINVAL


# -- modes ---------------------------------------------------------------------------------------------------

def connection(rules: str = "freebsd", nic: bool = True, **knobs: int) -> KtlsConnection:
    stats = TlsStats(**{"ifnet.permitted": 0}, **knobs)
    return KtlsConnection(Registry([OpenSsl(), *([InNic()] if nic else [])]), stats, rules, nic)


def code_of(call, *args: object) -> int:
    try:
        call(*args)
    except OSError as e:
        return e.errno or -1
    return OK


PARAMS = GOOD[0x0304, "aes-128-gcm"]


def states():
    """Every state that a switch can find: (name, makes the connection)."""
    def nothing() -> KtlsConnection:
        made = connection()
        made.stats.set_knob("ifnet.permitted", 1)
        return made

    def software() -> KtlsConnection:
        made = connection()
        made.txtls_enable(PARAMS)
        made.stats.set_knob("ifnet.permitted", 1)
        return made

    def nic() -> KtlsConnection:
        made = software()
        made.set_txtls_mode("nic")
        return made

    def given_up() -> KtlsConnection:
        made = nic()
        assert made.account(97, 3)
        return made

    def not_permitted() -> KtlsConnection:
        made = software()
        made.stats.set_knob("ifnet.permitted", 0)
        return made

    def no_nic() -> KtlsConnection:
        made = connection(nic=False)
        made.txtls_enable(PARAMS)
        return made

    return {f.__name__: f for f in (nothing, software, nic, given_up, not_permitted, no_nic)}


#: By state: what becomes of a switch to (none, sw, nic, toe), and the mode after each.
SWITCHES = {
    "nothing": ((errno.EINVAL, "none"), (OK, "none"), (OK, "none"), (errno.EINVAL, "none")),
    "software": ((errno.EINVAL, "sw"), (OK, "sw"), (OK, "nic"), (errno.EINVAL, "sw")),
    "nic": ((errno.EINVAL, "nic"), (OK, "sw"), (errno.EALREADY, "nic"), (errno.EINVAL, "nic")),
    "given_up": ((errno.EINVAL, "sw"), (OK, "sw"), (errno.ENXIO, "sw"), (errno.EINVAL, "sw")),
    "not_permitted": ((errno.EINVAL, "sw"), (OK, "sw"), (errno.ENXIO, "sw"), (errno.EINVAL, "sw")),
    "no_nic": ((errno.EINVAL, "sw"), (OK, "sw"), (errno.ENXIO, "sw"), (errno.EINVAL, "sw")),
}


@pytest.mark.parametrize("state", states())
def test_every_switch_in_every_state(state):
    for mode, (error, after) in zip(("none", "sw", "nic", "toe"), SWITCHES[state], strict=True):
        made = states()[state]()
        assert (code_of(made.set_txtls_mode, mode), made.txtls_mode) == (error, after), mode
        assert code_of(made.set_rxtls_mode, mode) == errno.ENOPROTOOPT
        made.close()
        assert not any(made.stats.gauges().values())


def test_linux_has_no_mode_to_set():
    made = connection("linux")
    made.txtls_enable(PARAMS)
    for mode in ("sw", "nic"):
        assert code_of(made.set_txtls_mode, mode) == errno.ENOPROTOOPT


def test_a_race_of_two_switches_has_one_winner():
    """While a NIC considers a session, somebody else switches: the later of the two is told EBUSY."""
    made = connection()
    made.txtls_enable(PARAMS)
    made.stats.set_knob("ifnet.permitted", 1)

    class Slow(OpenSsl):
        name, mode, priority = "slow", "nic", 99
        raced = False

        def attach(self, session):
            if not self.raced:
                self.raced = True
                made.set_txtls_mode("nic")
            return super().attach(session)

    made._backends.register(Slow())
    assert code_of(made.set_txtls_mode, "nic") == errno.EBUSY
    assert made.txtls_mode == "nic"
    counters = made.stats.counters
    assert (counters["stats.switch_failed"], counters["stats.switch_to_ifnet"]) == (1, 1)
    made.close()
    assert not any(made.stats.gauges().values())


@pytest.mark.parametrize(("sent", "again", "given_up"), [(0, 0, False), (98, 2, False), (979, 21, True),
                                                         (10_000, 205, True), (10_000, 204, False)])
def test_two_percent_sent_again_end_the_nic_for_good(sent, again, given_up):
    made = states()["nic"]()
    assert made.account(sent, again) is given_up
    assert made.txtls_mode == ("sw" if given_up else "nic")
    assert made.stats.counters["stats.ifnet_disable_ok"] == given_up
    if given_up:
        assert made.account(1, 1000) is False
        assert code_of(made.set_txtls_mode, "nic") == errno.ENXIO


def test_limits_of_what_is_sent_again_are_a_knob():
    made = states()["nic"]()
    made.stats.set_knob("ifnet_max_rexmit_pct", 50)
    assert not made.account(60, 40)
    assert made.account(40, 60)


# -- turning on ----------------------------------------------------------------------------------------------

def test_what_is_refused_leaves_nothing_behind():
    made = connection()
    cbc_off = connection(cbc_enable=0)
    off = connection(enable=0)
    no_backend = TlsParams("aes-128-cbc", 0x0303, bytes(16), b"", auth_algorithm="hmac-sha1", auth_key=bytes(20))
    for who, params, error in ((made, TlsParams("aes-128-gcm", 0x0302, bytes(16), bytes(4)), errno.EINVAL),
                               (made, no_backend, errno.EPROTONOSUPPORT), (cbc_off, no_backend, errno.ENOTSUP),
                               (off, PARAMS, errno.ENOTSUP)):
        for call in (who.txtls_enable, who.rxtls_enable):
            assert code_of(call, params) == error
        assert (who.txtls_mode, who.rxtls_mode) == ("none", "none")
        assert not any(who.stats.gauges().values())
    for call in (made.txtls_enable, made.rxtls_enable):
        assert (code_of(call, PARAMS), code_of(call, PARAMS)) == (OK, errno.EALREADY)
    assert made.stats.counters["stats.enable_calls"] == 8
    made.close()
    assert not any(made.stats.gauges().values())


def test_linux_takes_new_keys_in_tls_1_3_only():
    made = connection("linux", nic=False)
    for call in (made.txtls_enable, made.rxtls_enable):
        call(PARAMS)
        call(PARAMS)
    assert made.stats.counters["TlsTxRekeyOk"] == made.stats.counters["TlsRxRekeyOk"] == 1
    other = connection("linux", nic=False)
    other.txtls_enable(GOOD[0x0303, "aes-128-gcm"])
    assert code_of(other.txtls_enable, GOOD[0x0303, "aes-128-gcm"]) == errno.EBUSY
    assert other.stats.counters["TlsTxRekeyError"] == 1
    in_nic = connection("linux")
    in_nic.stats.set_knob("ifnet.permitted", 1)
    in_nic.txtls_enable(PARAMS)
    assert in_nic.txtls_mode == "nic"
    assert code_of(in_nic.txtls_enable, PARAMS) == errno.EOPNOTSUPP
    for each in (made, other, in_nic):
        each.close()
        assert not any(each.stats.gauges().values())


def test_names_of_counters_are_those_of_the_systems():
    stats = TlsStats()
    assert "kern.ipc.tls.stats.offload_total: 0" in stats.sysctl()
    assert "kern.ipc.tls.ifnet_max_rexmit_pct: 2" in stats.sysctl()
    assert next(stats.tls_stat()).split() == ["TlsCurrTxSw", "0"]
