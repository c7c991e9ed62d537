"""`.ci/audit.py` finds what it is for, and says so where it could not look."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from yaml.constructor import FullConstructor, SafeConstructor

from tests.support.processes import free_port

ROOT = Path(__file__).resolve().parents[2]


def audit(*arguments: str, strict: bool = False) -> tuple[int, str]:
    env = {**os.environ, "RELAY_AUDIT_STRICT": "1" if strict else "0"}
    command = [sys.executable, str(ROOT / ".ci/audit.py"), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=110)
    assert done.stderr == ""
    return done.returncode, done.stdout


# -- secrets ----------------------------------------------------------------------------------------------------------

# In two pieces each, or they would be found here.
PLANTED = {
    "Relay key": ("rk_", "Zb3" * 12 + "Zz"),
    "AWS Access Key": ("AKIA", "Q3" * 8),
    "GitHub Token": ("ghp_", "a1B2" * 9),
    "Anthropic key": ("sk-ant-", "api03-" + "aB3_" * 12),
    "OpenAI key": ("sk-", "proj-" + "aB3x" * 12),
    "Google key": ("AI", "za" + "Sy-" * 11 + "ab"),
    "Private Key": ("-----BEGIN RSA ", "PRIVATE KEY-----"),
    "Basic Auth Credentials": ("redis://relay:", "hunter22@redis:6379"),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / "fine.py").write_text(
        'digest = "9d0c5e2a71b49d0c5e2a71b49d0c5e2a71b49d0c5e2a71b49d0c5e2a71b4aaaa"\nkey = "sk-1"\n'
    )
    return tmp_path


@pytest.mark.slow
def test_planted_secrets_are_found_and_not_printed(tree: Path) -> None:
    assert audit("secrets", "--root", str(tree))[0] == 0
    for n, pieces in enumerate(PLANTED.values()):
        (tree / f"planted_{n}.yaml").write_text(f"a: 1\nkey: {''.join(pieces)}\n")
    (tree / ".gitignore").write_text("ignored\n")
    (tree / "ignored").write_text("".join(PLANTED["Relay key"]))
    code, told = audit("secrets", "--root", str(tree))
    assert code == 1
    for n, (kind, pieces) in enumerate(PLANTED.items()):
        assert f"planted_{n}.yaml:2: {kind}" in told
        assert pieces[1] not in told
    assert "ignored:" not in told


@pytest.mark.slow
def test_there_is_none_here() -> None:
    code, told = audit("secrets")
    assert code == 0, told


# -- code -------------------------------------------------------------------------------------------------------------

RISKY = {
    "B602": "import subprocess\nsubprocess.run(input(), shell=True)\n",
    "B307": "eval(input())\n",
    "B324": "import hashlib\nhashlib.md5(b'')\n",
    "B501": "import httpx\nhttpx.get('https://a', verify=False)\n",
    "B301": "import pickle\npickle.loads(b'')\n",
}


@pytest.mark.slow
def test_risky_code_is_found(tmp_path: Path) -> None:
    (tmp_path / "relay").mkdir()
    for name, text in RISKY.items():
        (tmp_path / "relay" / f"{name.lower()}.py").write_text(text)
    code, told = audit("code", "--root", str(tmp_path))
    assert code == 1
    for name in RISKY:
        assert f"{name.lower()}.py:2: {name}" in told or f"{name.lower()}.py:1: {name}" in told


@pytest.mark.slow
def test_the_relay_s_has_none() -> None:
    code, told = audit("code")
    assert code == 0, told


def test_nothing_is_marked_to_be_left_out() -> None:
    assert [path for path in (ROOT / "relay").rglob("*.py") if "# nosec" in path.read_text()] == []


def test_what_bandit_is_not_asked_is_held_here() -> None:
    """B311: `random` where it does not matter only. B506: no loader that makes objects."""
    by_chance = set()
    for path in (ROOT / "relay").rglob("*.py"):
        module = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom) and "random" in ast.unparse(node).split():
                by_chance.add(module)
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("yaml.load", "yaml.load_all"):
                words = [*node.args[1:], *(word.value for word in node.keywords)]
                where = vars(importlib.import_module(module.removesuffix(".py").replace("/", ".")))
                (loader,) = (eval(ast.unparse(word), where) for word in words)
                assert issubclass(loader, SafeConstructor), f"{module}:{node.lineno}"
                assert not issubclass(loader, FullConstructor), f"{module}:{node.lineno}"
    assert by_chance == {
        "relay/client/policy.py",
        "relay/streams/webhooks.py",
        "relay/streams/writer.py",
        "relay/upstream/failover.py",
    }


# -- vulnerabilities --------------------------------------------------------------------------------------------------


@contextmanager
def osv(vulnerable: str) -> Iterator[str]:
    """What OSV answers, for one package with a fault and none in all others."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            fault = {
                "id": "PYSEC-2026-1",
                "aliases": ["CVE-2026-1"],
                "modified": "2026-01-01T00:00:00Z",
                "summary": "a fault",
                "affected": [
                    {
                        "package": {"name": vulnerable, "ecosystem": "PyPI"},
                        "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "9.9"}]}],
                    }
                ],
            }
            answer = json.dumps({"vulns": [fault]} if asked["package"]["name"] == vulnerable else {}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def locked(tmp_path: Path) -> Path:
    (tmp_path / "deploy").mkdir()
    pins = [f"{name}==1.0 --hash=sha256:{'0' * 64}" for name in ("harmless", "faulty")]
    (tmp_path / "deploy/requirements.lock").write_text("\n".join(pins) + "\n")
    return tmp_path


@pytest.mark.slow
def test_a_known_vulnerability_fails(locked: Path) -> None:
    with osv("faulty") as url:
        code, told = audit("vulnerabilities", "--root", str(locked), "--osv-url", url)
    assert code == 1
    assert "faulty 1.0: PYSEC-2026-1, mended in 9.9" in told
    assert "harmless" not in told
    with osv("another") as url:
        assert audit("vulnerabilities", "--root", str(locked), "--osv-url", url) == (
            0,
            "audit: vulnerabilities: 2 packages looked up, 0 findings\n",
        )


@pytest.mark.slow
def test_without_a_network_it_says_loudly_that_nothing_was_looked_up(locked: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    code, told = audit("vulnerabilities", "--root", str(locked), "--osv-url", nobody)
    assert code == 0
    assert "!!! NO PACKAGE LOOKED UP" in told
    assert audit("vulnerabilities", "--root", str(locked), "--osv-url", nobody, strict=True)[0] == 1


def test_ci_runs_it() -> None:
    run = (ROOT / ".ci/run").read_text()
    assert "\nmake audit\n" in run
    assert "\nmake fuzz\n" in run
    assert set(yaml.safe_load((ROOT / ".ci/bandit.yaml").read_text())) == {"skips"}
