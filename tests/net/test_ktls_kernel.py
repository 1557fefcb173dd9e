"""The kernel's TLS records beside ours (smtstack.ktls): byte for byte the same on the wire, and each opens what
the other seals. In clear TCP at the other end, so that what is compared is what TCP carried."""

from __future__ import annotations

import errno
import hashlib
import socket

import pytest

from smtstack.ktls.params import SOL_TLS, TCP_ULP, TLS_RX, TLS_TX, TlsParams, pack_crypto_info
from smtstack.ktls.records import DATA, RecordAead
from tests.ktls_peers import SUITES, pair, pattern

pytestmark = [pytest.mark.root, pytest.mark.ktls]

#: Bytes of a record's payload: the least, odd ones, the most.
SIZES = (1, 2, 15, 16, 17, 100, 1400, 4096, 16_383, 16_384)
NUMBER = 7


def params_of(version: int, cipher: str) -> TlsParams:
    """Keys that anybody can make again."""
    secret = hashlib.sha512(f"{version} {cipher}".encode()).digest()
    key, salted = secret[:16 if cipher == "aes-128-gcm" else 32], version == 0x0303 and cipher.endswith("-gcm")
    return TlsParams(cipher, version, key, secret[40:44] if salted else secret[40:52], NUMBER,
                     int.from_bytes(secret[56:64], "big") if salted else 0)


def sealed(params: TlsParams, payloads: list[bytes]) -> bytes:
    """Our records of these, one each."""
    ours = RecordAead(params.version, params.cipher, params.key, params.iv)
    return b"".join(part for n, payload in enumerate(payloads) for part in ours.seal(
        params.number + n, DATA, payload, (params.explicit_nonce + n) & ((1 << 64) - 1)))


def turn_on(sock: socket.socket, direction: int, params: TlsParams) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
    sock.setsockopt(SOL_TLS, direction, pack_crypto_info(params))


def receive(sock: socket.socket, size: int) -> bytes:
    out = bytearray()
    while len(out) < size and (data := sock.recv(size - len(out))):
        out += data
    return bytes(out)


@pytest.mark.parametrize(("version", "cipher"), [suite[:2] for suite in SUITES])
def test_the_kernel_seals_as_we_do(version, cipher):
    params, payloads = params_of(version, cipher), [pattern(size, size) for size in SIZES]
    expected = sealed(params, payloads)
    kernel, plain = pair()
    with kernel, plain:
        turn_on(kernel, TLS_TX, params)
        for payload in payloads:
            kernel.sendall(payload)
        assert receive(plain, len(expected)) == expected
    # The control: another number makes other bytes.
    assert sealed(TlsParams(cipher, version, params.key, params.iv, NUMBER + 1, params.explicit_nonce),
                  payloads) != expected


@pytest.mark.parametrize(("version", "cipher"), [suite[:2] for suite in SUITES])
def test_the_kernel_opens_what_we_seal_and_nothing_that_was_changed(version, cipher):
    params, payloads = params_of(version, cipher), [pattern(size, size) for size in SIZES]
    kernel, plain = pair()
    with kernel, plain:
        turn_on(kernel, TLS_RX, params)
        plain.sendall(sealed(params, payloads))
        for payload in payloads:
            assert receive(kernel, len(payload)) == payload
    kernel, plain = pair()
    with kernel, plain:
        turn_on(kernel, TLS_RX, params)
        changed = bytearray(sealed(params, payloads[-1:]))
        changed[-1] ^= 1
        plain.sendall(changed)
        with pytest.raises(OSError) as caught:
            kernel.recv(1 << 15)
        assert caught.value.errno == errno.EBADMSG
