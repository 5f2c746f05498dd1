"""Programs of tests that are Go modules, built once a machine from pinned modules beside this file."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from gateshift.lab.build import cache_home, find_go

HERE = Path(__file__).parent
_PACKAGES = {
    "actionlint": "github.com/rhysd/actionlint/cmd/actionlint",
    "argolint": ".",
    "helm": "helm.sh/helm/v4/cmd/helm",
}


def tool(name: str) -> Path:
    """Return the program *name*, built unless it is in the cache."""
    folder = HERE / name
    pins = b"".join((folder / file).read_bytes() for file in ("go.mod", "go.sum"))
    own = b"".join(path.read_bytes() for path in sorted(folder.glob("*.go")))
    target = cache_home() / "tools" / f"{name}-{hashlib.sha256(pins + own).hexdigest()[:16]}" / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        subprocess.run(
            [find_go((1, 26)), "build", "-trimpath", "-o", str(partial), _PACKAGES[name]],
            cwd=folder,
            check=True,
            timeout=1500,
        )
        partial.replace(target)
    return target
