"""Other Pythons than the one that runs the tests, from Debian's other releases."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

MAKE_SECONDS = 300.0
LIBRARIES = "usr/lib/x86_64-linux-gnu"


def missing() -> str | None:
    """Say what is not installed; None if nothing is."""
    for program in ("debootstrap", "patchelf", "dpkg"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    return None


def make(directory: Path, release: str, version: str) -> Path:
    """Take a Python out of a release of Debian; return an interpreter that runs on this one."""
    root, home, name = directory / release, directory / f"python{version}", f"python{version}"
    # Unpacked only: it needs nothing but its files, and nobody's rights to configure them.
    fetch = [
        "debootstrap",
        "--variant=minbase",
        "--foreign",
        f"--include={name}",
        release,
        str(root),
    ]
    subprocess.run(fetch, check=True, capture_output=True, timeout=MAKE_SECONDS)
    for package in (root / "var/cache/apt/archives").glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, root], check=True, capture_output=True)
    interpreter = home / "bin" / name
    interpreter.parent.mkdir(parents=True)
    shutil.copy(root / "usr/bin" / name, interpreter)
    shutil.copytree(root / "usr/lib" / name, home / "lib" / name, symlinks=True)
    # Debian's word that packages are its own business, which they are not here.
    (home / "lib" / name / "EXTERNALLY-MANAGED").unlink(missing_ok=True)
    loader = root / "lib64/ld-linux-x86-64.so.2"
    own = ["--set-interpreter", str(loader), "--force-rpath", "--set-rpath", str(root / LIBRARIES)]
    subprocess.run(["patchelf", *own, str(interpreter)], check=True, capture_output=True)
    return interpreter
