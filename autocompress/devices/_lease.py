"""The lock that whoever measures on this machine holds."""

from __future__ import annotations

import getpass
import os
import tempfile
from pathlib import Path


def lease_path() -> Path:
    """The lock file that whoever measures on this machine holds; one for each user."""
    user = getattr(os, "getuid", getpass.getuser)()
    return Path(tempfile.gettempdir()) / f"autocompress-{user}.lock"
