"""Captures as people have them: compressed, in pipes, cut short by a snap length, empty, of something else."""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from smtstack.capture import pcapng
from smtstack.capture.captured import Captured
from smtstack.capture.decrypt import Decrypter
from smtstack.capture.files import CaptureFile, naming
from smtstack.capture.pcapfile import Reader
from smtstack.crypto.keys import demo_keys
from smtstack.errors import ConfigError
from smtstack.wire import homa
from tests.captures import START
from tests.unit.test_decode import PROFILES, Collector, flip, is_data, save, talk
from tests.unit.test_decrypt import conversation
from workloads.commands import pcap

SAID = {profile: talk(profile, (64, 5000), seed=1) for profile in PROFILES}
PACKERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


def command(*argv: str | Path) -> int:
    parser = argparse.ArgumentParser()
    pcap.add_parser(parser.add_subparsers())
    args = parser.parse_args(["pcap", *map(str, argv)])
    code: int = args.run(args)
    return code


class Pipe(io.BytesIO):
    """Bytes as they come out of a pipe: in pieces, and never again."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size if size is None or size < 0 else min(size, 7))

    def seek(self, *_args: int) -> int:
        raise OSError("a pipe cannot seek")


@pytest.fixture
def standard(monkeypatch, tmp_path):
    """Sets what stdin holds; runs in a folder of its own, to see what is left there."""
    monkeypatch.chdir(tmp_path)

    def fill(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Pipe(data))))

    return fill


@pytest.fixture
def capture(tmp_path) -> bytes:
    return save(tmp_path / "a.pcap", SAID["smt"].sent).read_bytes()


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("where", ["file", "stdin"])
def test_compressed_captures(tmp_path, capsys, standard, capture, packer, where):
    path = tmp_path / "packed"
    path.write_bytes(PACKERS[packer](capture))
    standard(path.read_bytes())
    source = path if where == "file" else Path("-")
    assert command("decode", source, "--keys", "demo", "--json") == 0
    assert json.loads(capsys.readouterr().out)["messages_complete"] == 4
    standard(path.read_bytes())
    assert command("decrypt", source, "out", "--keys", "demo") == 0
    # Cut off, what is there is read, and said to be less.
    path.write_bytes(PACKERS[packer](capture)[:-40])
    if packer == "bzip2":
        # One block, all or nothing.
        with pytest.raises(ConfigError, match="compressed data end before the first"):
            command("decode", path, "--keys", "demo")
    else:
        command("decode", path, "--keys", "demo")
        assert "ends in the middle of" in capsys.readouterr().err
    damaged = bytearray(PACKERS[packer](capture))
    damaged[len(damaged) // 2:len(damaged) // 2 + 40] = bytes(40)
    path.write_bytes(damaged)
    with pytest.raises(ConfigError, match=r"packed: "):
        command("decode", path, "--keys", "demo")


@pytest.mark.parametrize(("magic", "kind"), [(b"\x28\xb5\x2f\xfd", "zstd"), (b"\x04\x22\x4d\x18", "lz4")])
def test_compressions_that_are_not_there_are_named(tmp_path, monkeypatch, magic, kind):
    for module in ("compression.zstd", "backports.zstd", "zstandard", "lz4.frame"):
        monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / "packed"
    path.write_bytes(magic + bytes(50))
    with pytest.raises(ConfigError, match=f"packed: it is compressed with {kind}.*{kind} -dc"):
        command("decode", path, "--keys", "demo")


@pytest.mark.parametrize("kind", ["zstd", "lz4"])
def test_compressions_of_packages_that_are_there_are_read(tmp_path, capsys, capture, kind):
    packer = pytest.importorskip("zstandard" if kind == "zstd" else "lz4.frame")
    path = tmp_path / "packed"
    path.write_bytes(packer.compress(capture))
    assert command("decode", path, "--keys", "demo", "--json") == 0
    assert json.loads(capsys.readouterr().out)["messages_complete"] == 4
    path.write_bytes(packer.compress(capture)[:40] + bytes(20))
    with pytest.raises(ConfigError, match="packed: "):
        command("decode", path, "--keys", "demo")


def test_stdin_and_stdout(tmp_path, monkeypatch, capsys, standard, capture):
    standard(capture)
    assert command("decode", "-", "--keys", "demo", "--json") == 0
    assert json.loads(capsys.readouterr().out)["messages_complete"] == 4
    standard(capture)
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out))
    before = set(tmp_path.iterdir())
    assert command("decrypt", "-", "-", "--keys", "demo", "--json") == 0
    assert json.loads(capsys.readouterr().err)["messages_complete"] == 4
    # No file called "-", nor any other.
    assert set(tmp_path.iterdir()) == before
    written = Reader(io.BytesIO(out.getvalue()))
    assert sum(p.interface == "plaintext" for p in written.frames_untrusted()) == 4
    assert written.truncated == 0


def test_keylogs_from_stdin_and_compressed(tmp_path, capsys, standard):
    hosts, rig = conversation("mtls")
    source = save(tmp_path / "in.pcap", [f for _c, f in rig.sent_frames])
    text = "".join(hosts.lines).encode()
    standard(text)
    assert command("decode", source, "--keylog", "-", "--json") == 0
    assert json.loads(capsys.readouterr().out)["messages_complete"] == 10
    (tmp_path / "log.gz").write_bytes(gzip.compress(text))
    standard(source.read_bytes())
    assert command("decrypt", "-", tmp_path / "out", "--keylog", tmp_path / "log.gz") == 0
    with pytest.raises(ConfigError, match="one of the files only"):
        command("decode", "-", "--keylog", "-")


@pytest.mark.parametrize("place", ["first", "after a few packets", "last", "in several blocks"])
@pytest.mark.parametrize("where", ["file", "stdin"])
def test_secrets_in_the_capture_itself(tmp_path, capsys, standard, place, where):
    hosts, rig = conversation("mtls")
    frames = [pcapng.packet(0, START + n, f, None) for n, (_c, f) in enumerate(rig.sent_frames)]
    # As of a server that lived long: more than a mebibyte of others' secrets before those of these sessions.
    others = [f"CLIENT_HANDSHAKE_TRAFFIC_SECRET {n:064x} {n:064x}\n" for n in range(7000)]
    assert sum(map(len, others)) > 1 << 20
    lines = [*others, *hosts.lines]
    blocks = [pcapng.tls_secrets("".join(lines))]
    if place == "in several blocks":
        blocks = [pcapng.tls_secrets(line) for line in hosts.lines]
    at = {"first": 0, "after a few packets": 5, "last": len(frames), "in several blocks": 3}[place]
    whole = pcapng.section("test") + pcapng.interface("e9") + b"".join([*frames[:at], *blocks, *frames[at:]])
    path = tmp_path / "in.pcapng"
    path.write_bytes(whole)
    for action in (("decode",), ("decrypt",)):
        standard(whole)
        target = [tmp_path / f"{action[0]}.out"] if action == ("decrypt",) else []
        assert command(*action, path if where == "file" else "-", *target, "--json") == 0
        assert json.loads(capsys.readouterr().out)["messages_complete"] == 10


def test_terminals_and_closed_streams_are_refused(monkeypatch, capture, tmp_path):
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    path = tmp_path / "in.pcap"
    path.write_bytes(capture)
    for bad, why in ((Terminal(io.BytesIO()), "terminal"), (None, "closed")):
        monkeypatch.setattr(sys, "stdin", bad)
        with pytest.raises(ConfigError, match=f"stdin is .*{why}"):
            command("decode", "-", "--keys", "demo")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", bad)
            with pytest.raises(ConfigError, match=f"stdout is .*{why}"):
                command("decrypt", path, "-", "--keys", "demo")


def test_a_full_disk_is_one_line_and_a_gone_reader_none(tmp_path):
    with pytest.raises(ConfigError, match="out: No space left"), naming(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    with pytest.raises(BrokenPipeError), naming(tmp_path / "out"):
        raise BrokenPipeError


def test_a_capture_is_read_as_often_as_was_said(standard, capture):
    standard(capture)
    file = CaptureFile(Path("-"), passes=2)
    for _pass in range(2):
        with file.open() as stream:
            assert len(list(Reader(stream).frames_untrusted())) == len(SAID["smt"].sent)


# -- nothing verified is no success ----------------------------------------------------------------------

def cut(path: Path, frames: list[bytes], snap: int) -> Path:
    """A capture with this snap length."""
    path.write_bytes(pcapng.section("test") + pcapng.interface("e0") + b"".join(
        pcapng.packet(0, n, frame[:snap], None, missing=max(0, len(frame) - snap))
        for n, frame in enumerate(frames)))
    return path


def run_both(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> tuple[int, str, str]:
    """Exit code and what is said, of decode; decrypt has to agree."""
    code = command("decode", path, *options, "--json")
    out, err = capsys.readouterr()
    target = path.parent / "decrypted"
    assert command("decrypt", path, target, *options, "--json") == code
    other, said = capsys.readouterr()
    target.unlink()
    assert (err == "") == (said == "")
    for field in ("truncated", "others"):
        assert json.loads(other)[field] == json.loads(out)[field]
    assert said.count("\n") == err.count("\n")
    return code, out, err


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("snap", [20, 33, 34, 48, 60, 68, 96, 128, 200])
def test_a_snap_length_makes_no_packet_bad(tmp_path, capsys, profile, snap):
    frames = SAID[profile].sent
    path = cut(tmp_path / "snapped", frames, snap)
    code, out, err = run_both(capsys, path, "--profile", profile, "--keys", "demo")
    result = json.loads(out)
    assert result["bad_packets"] == 0
    # Padding that is missing does not matter.
    short = [f for f in frames if min(len(f), 14 + int.from_bytes(f[16:18], "big")) > snap]
    assert sum(result["truncated"].values()) == len(short)
    if snap > 48:
        names = [homa.TYPE_NAMES[f[47]] for f in short]
        assert result["truncated"] == {name: names.count(name) for name in set(names)}
    whole = [f for f in frames if f not in short]
    assert sum(result["packets"].values()) == len(whole)
    some = any(is_data(f) for f in whole)
    assert code == (0 if some else 1)
    assert "captured in part only" in err
    assert err.count("\n") == 1
    assert err.startswith("smtnet: nothing was") == (not some)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("of", PROFILES)
@pytest.mark.parametrize("snap", [5000, 96])
def test_a_capture_of_another_profile_is_recognised(tmp_path, capsys, profile, of, snap):
    path = cut(tmp_path / "other", SAID[of].sent, snap)
    code, _out, err = run_both(capsys, path, "--profile", profile, "--keys", "demo")
    if profile != of:
        assert code == 1
        assert f"try --profile {of}" in err
        assert err.count("\n") == 1
    elif snap == 5000:
        assert (code, err) == (0, "")


def test_an_empty_capture_and_one_of_other_things(tmp_path, capsys):
    path = save(tmp_path / "empty", [])
    code, _out, err = run_both(capsys, path, "--keys", "demo")
    assert (code, err.count("\n")) == (1, 1)
    assert "the capture holds no packet" in err
    path = save(tmp_path / "other", [bytes(12) + b"\x08\x06" + bytes(46)] * 3)
    code, _out, err = run_both(capsys, path, "--keys", "demo")
    assert (code, err.count("\n")) == (1, 1)
    assert "among 3 frames: 3 ARP" in err


@pytest.mark.parametrize("profile", PROFILES)
def test_control_packets_alone_verify_nothing(tmp_path, capsys, profile):
    frames = [f for f in talk(profile, (20_000,) * 4, seed=1, loss=0.2).sent
              if not is_data(f) and f[47] != homa.ACK]
    code, _out, err = run_both(capsys, save(tmp_path / "control", frames), "--profile", profile, "--keys", "demo")
    assert (code, err.count("\n")) == (1, 1)
    assert "nothing was verified" in err


def test_handshakes_alone_and_sessions_without_keys_verify_nothing(tmp_path, capsys):
    hosts, rig = conversation("mtls")
    frames = [f for _c, f in rig.sent_frames]
    log = tmp_path / "log"
    log.write_text("".join(hosts.lines))
    early = save(tmp_path / "handshakes", [f for f in frames if f[45] & homa.HANDSHAKE])
    code, _out, err = run_both(capsys, early, "--keylog", str(log))
    assert (code, err.count("\n")) == (1, 1)
    assert "are of handshakes" in err
    log.write_text("# nobody's\n")
    code, _out, err = run_both(capsys, save(tmp_path / "sessions", frames), "--keylog", str(log))
    assert code == 1
    assert err.count("\n") == 1


def test_something_verified_and_something_not(tmp_path, capsys):
    frames = SAID["smt"].sent
    path = save(tmp_path / "a", [*frames, flip(next(f for f in frames if is_data(f)), 30)])
    code, _out, err = run_both(capsys, path, "--keys", "demo")
    assert code == 1
    assert "nothing was" not in err


def test_a_packet_cut_in_part_is_passed_on_as_it_is():
    frame = SAID["smt"].sent[0]
    decrypter = Decrypter("smt", demo_keys("smt"))
    whole = decrypter.begin() + decrypter.add(Captured(START, 1, frame[:60], missing=len(frame) - 60))
    again, = Reader(io.BytesIO(whole)).frames_untrusted()
    assert (again.frame, again.missing) == (frame[:60], len(frame) - 60)
    # In the files of those who do not say so, a packet that ends early is malformed.
    decoder = Collector("smt", demo_keys("smt"))
    decoder.add(1, frame[:60])
    assert (decoder.result().bad_packets, decoder.result().truncated) == (1, {})
