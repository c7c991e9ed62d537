"""What the supply chain and the code are looked through for: known vulnerabilities, risky code, secrets.

    python .ci/audit.py [vulnerabilities] [code] [secrets] [--root FOLDER] [--osv-url URL]

vulnerabilities   every version in the locks, asked of the package index and, where that knows nothing, of OSV. It needs
                  the network: what could not be asked is told loudly and does not fail, unless RELAY_AUDIT_STRICT=1.
code              bandit over `relay/`, with what `.ci/bandit.yaml` leaves out and why. Offline.
secrets           the forms of known keys, in every file that Git has or would take. Offline; nothing is guessed by
                  entropy, which hashes have too. A secret is never printed.

Exit status: 0, or 1 where something was found.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
LOCKS = (
    *("deploy/build.lock", "deploy/requirements.lock", ".ci/requirements.lock", ".ci/demo.lock"),
    *("deploy/examples/fastapi/requirements.lock", "deploy/examples/langgraph/requirements.lock"),
)

# Vulnerabilities that do not reach the relay: id to reason. None at present.
ACCEPTED: dict[str, str] = {}

# Of known forms, and yet no secrets: file and kind to reason.
NO_SECRETS = {
    ("tests/observe/test_logs.py", "Basic Auth Credentials"): "a made-up key in the URL of an upstream",
    ("tests/config/test_config.py", "Basic Auth Credentials"): "a made-up password in the URL of a store",
    ("tests/upstream/test_connections.py", "Basic Auth Credentials"): "a made-up password in the URL of a proxy",
    ("tests/helm/test_wiring.py", "Basic Auth Credentials"): "a made-up password in the URL of a proxy",
    ("tests/api/test_upstream_failures.py", "Basic Auth Credentials"): "a made-up password in a redirect's URL",
}
# They guess: by entropy, by the name of a variable; an address is no secret.
_GUESSES = {"Base64HighEntropyString", "HexHighEntropyString", "KeywordDetector", "IPPublicDetector"}
# Forms that the detectors do not have, the relay's own keys first.
_FORMS = {
    "Relay key": re.compile(r"\brk_[0-9A-Za-z]{38}\b"),
    "Anthropic key": re.compile(r"\bsk-ant-[0-9A-Za-z_-]{24,}"),
    "OpenAI key": re.compile(r"\bsk-(proj-|svcacct-|admin-)?[0-9A-Za-z_-]{40,}"),
    "Google key": re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b"),
}


def main(arguments: list[str]) -> int:
    parts = {"vulnerabilities": vulnerabilities, "code": code, "secrets": secrets}
    parser = argparse.ArgumentParser(description="Look through dependencies and code.")
    parser.add_argument("part", nargs="*", choices=[*parts, []], help="all, where none is named")
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--osv-url", help="another server of OSV's")
    asked = parser.parse_args(arguments)
    found = 0
    for name in asked.part or parts:
        told = parts[name](asked)
        print(f"audit: {name}: {told[-1]}" if not told[:-1] else "\n".join([f"audit: {name}:", *told]))
        found += len(told) > 1
    return 1 if found else 0


def vulnerabilities(asked: argparse.Namespace) -> list[str]:
    """The findings, and a last line in any case."""
    found: list[str] = []
    known: set[str] = set()
    left: set[str] = set()
    for service in ("osv",) if asked.osv_url else ("pypi", "osv"):
        for lock in LOCKS:
            if (asked.root / lock).exists():
                for dependency in _asked_of(service, asked.root / lock, asked.osv_url):
                    name = f"{dependency['name']} {dependency.get('version', '')}".strip()
                    if "skip_reason" in dependency:
                        left.add(dependency["name"])
                        continue
                    known.add(dependency["name"])
                    for fault in dependency["vulns"]:
                        if not {fault["id"], *fault["aliases"]} & set(ACCEPTED):
                            mended = ", ".join(fault["fix_versions"]) or "no version yet"
                            found.append(f"  {name}: {fault['id']}, mended in {mended}; make locks UPGRADE=--upgrade")
        if known:
            break
    found = sorted(set(found))
    unknown = len(left - known)
    if not known or unknown:
        loud = f"!!! {unknown} PACKAGES NOT LOOKED UP" if known else "!!! NO PACKAGE LOOKED UP"
        loud += ": it takes a network that reaches the package index or OSV; run it again where there is one"
        return [*found, loud, loud] if os.environ.get("RELAY_AUDIT_STRICT") == "1" else [*found, loud]
    return [*found, f"{len(known)} packages looked up, {len(found)} findings"]


def _asked_of(service: str, lock: Path, url: str | None) -> list[dict[str, Any]]:
    command = [
        str(BIN / "pip-audit"),
        "--requirement",
        str(lock),
        "--require-hashes",
        "--disable-pip",
        "--format",
        "json",
    ]
    command += ["--progress-spinner", "off", "--timeout", "10", "--vulnerability-service", service]
    done = subprocess.run(command + (["--osv-url", url] if url else []), capture_output=True, text=True)
    try:
        answer: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    except ValueError:  # it could not ask
        return []
    return answer["dependencies"]


def code(asked: argparse.Namespace) -> list[str]:
    command = [str(BIN / "bandit"), "--quiet", "--recursive", str(asked.root / "relay"), "--format", "json"]
    done = subprocess.run([*command, "--configfile", str(ROOT / ".ci/bandit.yaml")], capture_output=True, text=True)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        return [done.stderr, "bandit did not run"]
    faults = [f"  {error['filename']}: {error['reason']}" for error in answer["errors"]]
    faults += [f"  {i['filename']}:{i['line_number']}: {i['test_id']} {i['issue_text']}" for i in answer["results"]]
    return [*faults, f"{answer['metrics']['_totals']['loc']} lines looked through, {len(faults)} findings"]


def secrets(asked: argparse.Namespace) -> list[str]:
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.core.secrets_collection import SecretsCollection
    from detect_secrets.settings import transient_settings

    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=asked.root, capture_output=True, text=True, check=True).stdout.split("\0")
    detectors = {kind.__name__ for kind in get_mapping_from_secret_type_to_class().values()} - _GUESSES
    collected = SecretsCollection(str(asked.root))
    found: set[tuple[str, int, str]] = set()
    with transient_settings({"plugins_used": [{"name": name} for name in sorted(detectors)], "filters_used": []}):
        for name in filter(None, names):
            if (asked.root / name).is_file():
                collected.scan_file(name)
                text = (asked.root / name).read_text(encoding="utf-8", errors="replace")
                for kind, form in _FORMS.items():
                    found |= {(name, text.count("\n", 0, match.start()) + 1, kind) for match in form.finditer(text)}
    found |= {(name, secret.line_number, secret.type) for name, secret in collected}
    bad = sorted(item for item in found if (item[0], item[2]) not in NO_SECRETS)
    faults = [
        f"  {name}:{line}: {kind}; take it out, and make it worthless where it is good" for name, line, kind in bad
    ]
    return [*faults, f"{len(names) - 1} files looked through, {len(faults)} findings"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
