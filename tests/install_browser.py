"""Have a headless Chromium: the one that is there, else playwright's, else Debian's where this may install packages.

python tests/install_browser.py
"""

import os
import shutil
import subprocess
import sys

from browsers import launch
from playwright.sync_api import Error, sync_playwright

PLAYWRIGHT = [sys.executable, "-m", "playwright", "install", "chromium-headless-shell"]
APT = ["apt-get", "install", "--yes", "--no-install-recommends", "chromium-headless-shell"]


def _starts():
    try:
        with sync_playwright() as playwright:
            launch(playwright).close()
    except Error:
        return False
    return True


def _tried(*command):
    """Run a command for five minutes at most; its last words tell why it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    except subprocess.TimeoutExpired:
        print(f"{' '.join(command)}: no end after 300 s")
        return
    if done.returncode:
        print(f"{' '.join(command)}: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")


def main():
    """Exit with 0 if a browser starts, at once or after one of the ways."""
    if not _starts():
        _tried(*PLAYWRIGHT)
    if not _starts() and shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        _tried("apt-get", "update")
        _tried(*APT)
    if not _starts():
        sys.exit("no Chromium can be had here: the tests that need one are skipped")
    print("a headless Chromium starts")


if __name__ == "__main__":
    main()
