"""JupyterLab as an operator needs it: this environment's kernel, frequent saves, no news, no updates."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["command", "environment"]

_SETTINGS = Path(__file__).parent / "settings"
_LAYOUT = ".layout"


def command(
    root: Path, notebook: Path, *, browser: bool = True, port: int | None = None, more: Sequence[str] = ()
) -> list[str]:
    """Return the command that starts JupyterLab over *root* and opens *notebook* (a path below it).

    Without *port* JupyterLab takes 8888 or, when that is in use, the next free one. The layout is kept beside
    the notebooks: one for the whole machine would open another migration's tabs, and start their kernels.
    """
    options = [
        f"--ServerApp.root_dir={root}",
        f"--LabApp.app_settings_dir={_SETTINGS}",
        f"--LabApp.workspaces_dir={notebook.parent / _LAYOUT}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--FileContentsManager.post_save_hook=gateshift.desk.copies.keep",
        f"--LabApp.default_url=/lab/tree/{notebook.relative_to(root).as_posix()}",
    ]
    if os.geteuid() == 0:
        options.append("--ServerApp.allow_root=True")  # containers and labs; the address carries a token
    if port is not None:
        options += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    if not browser:
        options.append("--no-browser")
    return [sys.executable, "-m", "jupyterlab", *options, *more]


def environment(params_file: str, *, lab: str | None = None) -> Mapping[str, str]:
    """Return the server's environment, which its kernels inherit."""
    own = {
        "GATESHIFT_PARAMS": params_file,
        # A kernel of this name that a user has registered elsewhere must not be taken for ours.
        "JUPYTER_PREFER_ENV_PATH": "1",
        **({"GATESHIFT_LAB": lab, "GATESHIFT_LAB_ONLY": "1"} if lab else {}),
    }
    # A run that is stepped through by hand names itself.
    return {**{k: v for k, v in os.environ.items() if k != "GATESHIFT_RUN"}, **_elsewhere(), **own}


_DIRECTORIES = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR")


def _elsewhere() -> Mapping[str, str]:
    """Return where Jupyter keeps its files for a user whose home cannot be written, as in many containers."""
    home = Path.home()
    if home.is_dir() and os.access(home, os.W_OK):
        return {}
    base = Path(tempfile.mkdtemp(prefix="gateshift-jupyter-"))  # of this user only: it holds kernels' keys
    return {name: str(base / name.lower()) for name in _DIRECTORIES if name not in os.environ}
