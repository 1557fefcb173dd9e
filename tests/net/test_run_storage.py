"""``run storage`` as a user has it; and ``run kv`` has protected storage where sessions are mtls."""

from __future__ import annotations

import json
import sys

import pytest

from tests.net.netns import run

pytestmark = pytest.mark.root


def smtnet(folder, *args: str):
    done = run([sys.executable, "-m", "workloads", *args, "--results", str(folder), "--json"])
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout, done.stderr
    return json.loads(done.stdout), done.returncode


def test_storage_is_compared_and_only_what_is_not_encrypted_is_readable(tmp_path):
    pytest.importorskip("apsw", reason="the extra sqlite is not installed")
    result, code = smtnet(tmp_path, "run", "storage", "--quick", "--storage", "plain,aead+fresh",
                          "--sqlite-rows", "60")
    assert code == 0
    points = {(point["of"], point["storage"]): point for point in result["points"]}
    assert set(points) == {(of, name) for of in ("kv", "sqlite") for name in ("plain", "aead+fresh")}
    assert points["kv", "plain"]["ratio"] == 1
    assert points["kv", "plain"]["readable"]
    assert not points["kv", "aead+fresh"]["readable"]
    assert all(point["per_s"] > 0 for point in points.values())
    (folder,) = tmp_path.glob("*-storage")
    assert (folder / "storage.csv").read_text().count("\n") == 5
    assert (folder / "storage.png").exists()
    # Logs, keys and databases were for this run.
    assert not [path for path in folder.rglob("*") if path.suffix in {".aof", ".key", ".state", ".db"}]


@pytest.mark.parametrize(("session", "storage"), [("mtls", "aead+fresh"), ("tls", "none")])
def test_mutual_sessions_have_protected_storage_by_default(tmp_path, session, storage):
    result, code = smtnet(tmp_path, "run", "kv", "--session", session, "--ops", "40", "--records", "20",
                          "--trials", "1", "--allow-unfaithful")
    assert code == 0
    assert result["storage"] == storage
