"""The cluster's images as two archives: the relay and Valkey out of an engine, CoreDNS and the sandbox by hand.

No image comes from a registry (tests/image/engine.py). What takes minutes is kept, and made again when it changes.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
import tempfile
from pathlib import Path

from tests.image.engine import ROOT, Engine, engine, make_base, make_valkey

RELAY = "relay.test/relay"
OLD, NEW = f"{RELAY}:1", f"{RELAY}:2"
VALKEY = "relay.test/valkey:9"
COREDNS = "relay.test/coredns:1"
PAUSE = "relay.test/pause:1"

_MADE_OF = ("deploy/Dockerfile", "deploy/*.lock", "deploy/package_page.py", "pyproject.toml", "README.md", "LICENSE")
_MADE_BY = ("tests/image/engine.py", "tests/cluster/images.py")
_PROCESSORS = {"x86_64": "amd64", "aarch64": "arm64"}


def fingerprint() -> str:
    """Of everything that goes into the relay's image."""
    found = hashlib.sha256()
    files = [path for pattern in (*_MADE_OF, *_MADE_BY) for path in ROOT.glob(pattern)]
    files += [path for path in (ROOT / "relay").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    for path in sorted(files):
        found.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return found.hexdigest()


def make_images(cache: Path) -> list[Path]:
    """The archives, for `ctr images import`. Raises tests.image.engine.Missing."""
    system = cache / "system.tar"
    with tarfile.open(system, "w") as archive:
        _add_programs(archive, {COREDNS: cache / "coredns", PAUSE: cache / "pause"})
    return [system, _make_relay(cache)]


def _make_relay(cache: Path) -> Path:
    """Twice: the new version is another image, with a variable to know it by."""
    archive, stamp = cache / "relay.tar", cache / "relay.made"
    wanted = fingerprint()
    if archive.is_file() and stamp.is_file() and stamp.read_text() == wanted:
        return archive
    stamp.unlink(missing_ok=True)
    with engine(networks=False) as found:
        print(f"  base image from Debian's packages: {make_base(found):.0f} s", flush=True)
        build = ("build", "--network", "host", "--file", "deploy/Dockerfile")
        found.docker(*build, "--tag", OLD, ".", timeout=900)
        _make_new(found)
        make_valkey(found, VALKEY)
        found.docker("save", "--output", archive, OLD, NEW, VALKEY, timeout=300)
    stamp.write_text(wanted)
    return archive


def _make_new(found: Engine) -> None:
    with tempfile.TemporaryDirectory(dir=found.folder) as folder:
        (Path(folder) / "Dockerfile").write_text(f"FROM {OLD}\nENV RELAY_TEST_VERSION=2\n")
        found.docker("build", "--tag", NEW, folder, timeout=300)


def _add_programs(archive: tarfile.TarFile, programs: dict[str, Path]) -> None:
    """Images with one program each and nothing else, as `docker save` writes them."""
    manifest = []
    for name, program in programs.items():
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as inner:
            inner.add(program, program.name, filter=_executable)
        digest = hashlib.sha256(layer.getvalue()).hexdigest()
        config = {
            "architecture": _PROCESSORS[platform.machine()],
            "os": "linux",
            "config": {"Entrypoint": [f"/{program.name}"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
        described = json.dumps(config).encode()
        told = f"{hashlib.sha256(described).hexdigest()}.json"
        _add(archive, told, described)
        _add(archive, f"{digest}/layer.tar", layer.getvalue())
        manifest.append({"Config": told, "RepoTags": [name], "Layers": [f"{digest}/layer.tar"]})
    _add(archive, "manifest.json", json.dumps(manifest).encode())


def _executable(item: tarfile.TarInfo) -> tarfile.TarInfo:
    item.mode, item.uid, item.gid, item.mtime = 0o755, 0, 0, 0
    return item


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    item = tarfile.TarInfo(name)
    item.size = len(data)
    archive.addfile(item, io.BytesIO(data))
