"""Take the README's pictures of the playground, into deploy/pictures/.

    python tests/playground/screenshots.py

A tool for who changes the page; needs Chromium, and what `make demo` installs. The pictures show `relay demo` as it is:
the text is the model's own.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.playground.browser import Browser, Page
from tests.support.processes import free_port

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "deploy" / "pictures"
SIZE = (1280, 780)
PHONE = {"width": 390, "height": 780}


def main() -> int:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("Chromium is not installed; run: apt-get install chromium", file=sys.stderr)
        return 1
    PICTURES.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "relay", "demo", "--port", str(free_port())]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as demo:
        try:
            assert demo.stdout is not None
            address = next(line.strip() for line in demo.stdout if line.startswith("  http"))
            with tempfile.TemporaryDirectory() as profile, Browser(chromium, Path(profile), size=SIZE) as browser:
                page = browser.page()
                for scheme in ("light", "dark"):
                    page.do("emulateMedia", {"colorScheme": scheme})
                    take(page, address, scheme)
                page.do("emulateMedia", {"colorScheme": "light"})
                killed(page, address)
                page.do("setViewportSize", PHONE)
                phone(page, address)
        finally:
            demo.send_signal(signal.SIGTERM)
    for picture in sorted(PICTURES.glob("playground-*.png")):
        print(f"{picture.relative_to(ROOT)}: {picture.stat().st_size // 1024} KiB")
    return 0


def take(page: Page, address: str, scheme: str) -> None:
    begin(page, address)
    page.do("screenshot", {"path": str(PICTURES / f"playground-{scheme}.png")})
    page.click("cut")
    page.until("document.getElementById('resumes').textContent === '1'")
    page.do("screenshot", {"path": str(PICTURES / f"playground-{scheme}-resumed.png")})
    page.click("stop")
    page.until_state("stopped")


def killed(page: Page, address: str) -> None:
    """The replica that the page reads from, one that generates nothing."""
    begin(page, address)
    page.click("cut")
    page.until("document.getElementById('resumes').textContent === '1'")
    page.click("kill")
    page.until("document.getElementById('resumes').textContent === '2'")
    page.do("screenshot", {"path": str(PICTURES / "playground-killed.png")})
    page.click("stop")
    page.until_state("stopped")


def phone(page: Page, address: str) -> None:
    begin(page, address)
    page.do("screenshot", {"path": str(PICTURES / "playground-phone.png")})
    page.click("stop")
    page.until_state("stopped")


def begin(page: Page, address: str) -> None:
    page.open(address)
    page.fill(key="demo", most="400")
    page.click("send")
    page.until("Number(document.getElementById('events').textContent) >= 40", seconds=90)


if __name__ == "__main__":
    sys.exit(main())
