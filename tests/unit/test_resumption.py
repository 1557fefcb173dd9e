"""What a server gives its clients to resume with."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.errors import AuthError, BadPacket, ConfigError
from smtstack.session import resumption
from smtstack.session.offer import Offer
from smtstack.session.resumption import MAX_CHAIN_S, MAX_PSKS, Psk, PskStore
from smtstack.session.state import SEALING_S, MemoryState
from tests.certificates import IP_A, IP_B, UTC

SECRET = bytes(range(32))
OFFER = Offer(("AES-256-GCM",), 20, 5000, "power-of-two")
STATE = MemoryState()


def grant(state: MemoryState = STATE, utc: int = UTC, **options) -> bytes:
    return resumption.grant(state, SECRET, IP_A, "a", OFFER,
                            **({"forward_secret_only": True, "utc": utc} | options))


def test_client_and_server_find_the_same():
    state = MemoryState()
    psk = resumption.psk_untrusted(grant(state, life_s=600), SECRET, "b")
    assert psk == Psk(SECRET, psk.blob, OFFER, True, UTC + 600, "b")
    known = resumption.open_untrusted(state, psk.blob, UTC)
    assert (known.secret, known.client_ip, known.client_name) == (SECRET, IP_A, "a")
    assert (known.offer, known.forward_secret_only, known.not_after) == (OFFER, True, UTC + 600)


def test_nothing_of_the_secret_is_in_what_is_sent():
    given_away = grant()
    assert SECRET not in given_away
    assert SECRET[:8] not in given_away
    # Sealed anew each time.
    assert grant() != given_away


@pytest.mark.parametrize("life", [0, 3601])
def test_nobody_resumes_after_more_than_an_hour(life: int):
    with pytest.raises(ConfigError, match="life"):
        grant(life_s=life)


def test_a_chain_of_resumptions_ends():
    """However often it was resumed: certificates may have expired meanwhile."""
    state = MemoryState()
    end = UTC + MAX_CHAIN_S
    for utc, life in ((UTC, 3600), (end - 3600, 3600), (end - 3599, 3599), (end - 1, 1)):
        psk = resumption.psk_untrusted(grant(state, utc, since=UTC), SECRET, "b")
        known = resumption.open_untrusted(state, psk.blob, utc)
        assert (known.since, known.not_after, psk.not_after) == (UTC, utc + life, utc + life)
    assert grant(state, end, since=UTC) == grant(state, end + 99, since=UTC) == b""
    assert grant(state, end) != b""


def test_keys_change_and_old_blobs_end():
    state = MemoryState()
    psk = resumption.psk_untrusted(grant(state), SECRET, "b")
    state.sealing_key(UTC + SEALING_S)
    assert resumption.open_untrusted(state, psk.blob, UTC + SEALING_S).secret == SECRET
    with pytest.raises(AuthError, match="has not, or no longer"):
        resumption.open_untrusted(state, psk.blob, UTC + 2 * SEALING_S)
    with pytest.raises(AuthError, match="has not, or no longer"):
        resumption.open_untrusted(MemoryState(), psk.blob, UTC)


BLOB = resumption.psk_untrusted(grant(), SECRET, "b").blob


@given(st.integers(0, len(BLOB) - 1), st.integers(1, 255))
def test_a_changed_blob_is_refused(at: int, change: int):
    changed = bytearray(BLOB)
    changed[at] ^= change
    with pytest.raises(AuthError):
        resumption.open_untrusted(STATE, bytes(changed), UTC)


@given(st.binary(max_size=200))
def test_any_bytes_are_no_blob(data: bytes):
    for junk in (data, BLOB[:4] + data, BLOB[:len(data)]):
        with pytest.raises(AuthError):
            resumption.open_untrusted(STATE, junk, UTC)


@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes_are_a_resumption_or_refused(data: bytes, cut: int):
    whole = grant()
    for junk in (data, whole[:min(cut, len(whole) - 1)], whole + b"x"):
        with pytest.raises(BadPacket):
            resumption.psk_untrusted(junk, SECRET, "b")


def psk(**changes) -> Psk:
    return replace(resumption.psk_untrusted(grant(), SECRET, "b"), **changes)


def test_a_client_keeps_one_for_each_server():
    store = PskStore()
    one, two = psk(), psk(peer_name="c")
    store.put(IP_A, 1, one)
    store.put(IP_B, 1, one)
    store.put(IP_A, 1, two)
    assert store.get(IP_A, 1, UTC) == two
    assert store.get(IP_B, 1, UTC) == one
    assert store.get(IP_B, 2, UTC) is None
    store.drop(IP_B, 1)
    store.drop(IP_B, 1)
    assert store.get(IP_B, 1, UTC) is None
    assert store.get(IP_A, 1, two.not_after) == two
    assert store.get(IP_A, 1, two.not_after + 1) is None
    assert len(store) == 0


def test_a_store_is_bounded():
    store = PskStore()
    kept = psk()
    for port in range(MAX_PSKS + 10):
        store.put(IP_A, port, kept)
    assert len(store) == MAX_PSKS
    assert store.get(IP_A, 0, UTC) is None
    assert store.get(IP_A, MAX_PSKS + 9, UTC) == kept


def test_a_store_in_a_file():
    store = PskStore()
    store.put(IP_A, 1, psk())
    store.put(IP_B, 2, psk(forward_secret_only=False))
    again = PskStore.from_dict(json.loads(json.dumps(store.to_dict())))
    assert len(again) == 2
    for ip, port in ((IP_A, 1), (IP_B, 2)):
        assert again.get(ip, port, UTC) == store.get(ip, port, UTC)


@pytest.mark.parametrize("content", [None, [], {}, {"smtnet_psks": 1, "psks": []}, {"smtnet_psks": 2},
                                     {"smtnet_psks": 2, "psks": [{}]}, {"smtnet_psks": 2, "psks": 7},
                                     {"smtnet_psks": 2, "psks": [{"secret": "00"}]}])
def test_files_that_are_no_store(content: object):
    with pytest.raises(ConfigError, match="no PSKs of smtnet"):
        PskStore.from_dict(content)
