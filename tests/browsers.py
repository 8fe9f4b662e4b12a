"""A headless Chromium for tests: playwright's own, else one of the system's."""

import os
import shutil
from pathlib import Path

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")


def launch(playwright):
    """Start a browser.

    :raises playwright.sync_api.Error: if there is none that starts.
    """
    own = Path(playwright.chromium.executable_path).exists()
    path = None if own else next(filter(None, map(shutil.which, NAMES)), None)
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    return playwright.chromium.launch(executable_path=path, args=arguments)
