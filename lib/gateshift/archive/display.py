"""Inside the kernel: our errors in two lines, with their traceback folded, and no secret on the way out."""

from __future__ import annotations

import html
import sys
import traceback
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from gateshift.archive.redact import Redactor
from gateshift.errors import GateshiftError
from gateshift.words import tell

__all__ = ["MIME", "install", "summary"]

MIME = "application/vnd.gateshift.error+json"
"""Under this type the error travels to the engine: class, exit code, message, hint."""

_REDACTOR = Redactor()

Explain = Callable[[BaseException], object]
"""Gives what a person is shown for an error: an object with ``_repr_html_`` and ``__repr__``."""

_EXPLAIN: list[Explain] = []


def summary(error: GateshiftError) -> str:
    """Return the error as a person should see it."""
    return f"{type(error).__name__}: {error}\n  next: {error.hint}"


def install(secrets: Iterable[str] = (), *, explain: Explain | None = None) -> bool:
    """Show errors as a person needs them, tracebacks folded, and keep *secrets* out of a cell's output.

    Called when a run is opened, again with the secrets once the params are read; *explain* says what an
    error means for this run. Returns False outside IPython, where nothing is to be installed.
    """
    _REDACTOR.learn(secrets)
    if explain is not None:
        _EXPLAIN[:] = [explain]
    try:
        from IPython import get_ipython  # noqa: PLC0415 - plain programs use the library without IPython
    except ImportError:
        return False
    shell = get_ipython()
    if shell is None:
        return False
    shell.set_custom_exc((Exception, KeyboardInterrupt), _show)
    _guard_displays(shell)
    _guard_streams()
    return True


def _show(
    shell: Any,
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
    tb_offset: int | None = None,
) -> list[str]:
    del tb_offset
    full = _REDACTOR.text("".join(traceback.format_exception(kind, error, trace)))
    explained = _explained(error)
    bundle: dict[str, Any] = {
        "text/plain": f"{_REDACTOR.text(repr(explained))}\n(the traceback is folded in the notebook)",
        "text/html": (
            f"{_REDACTOR.text(_html_of(explained))}"
            f"<details><summary>{tell('error.traceback')}</summary><pre>{html.escape(full)}</pre></details>"
        ),
    }
    message = _REDACTOR.text(str(error))
    lines = [f"{kind.__name__}: {message}"]
    if isinstance(error, GateshiftError):
        bundle[MIME] = {
            "ename": kind.__name__,
            "exit_code": error.exit_code,
            "message": message,
            "hint": _REDACTOR.text(error.hint),
        }
        lines = _REDACTOR.text(summary(error)).splitlines()
    shell.display_pub.publish(bundle)
    clean = type(kind.__name__, (Exception,), {})(message)
    shell._showtraceback(kind, clean, lines)
    return lines


def _explained(error: BaseException) -> object:
    if _EXPLAIN:
        try:
            return _EXPLAIN[0](error)
        except Exception:  # noqa: BLE001 - the error itself must be shown, whatever explaining it runs into
            return error
    return error


def _html_of(explained: object) -> str:
    render = getattr(explained, "_repr_html_", None)
    return str(render()) if render is not None else f"<pre>{html.escape(str(explained))}</pre>"


def _guard_displays(shell: Any) -> None:
    publisher = shell.display_pub
    if getattr(publisher, "gateshift_guarded", False) or not hasattr(publisher, "register_hook"):
        return

    def clean(message: dict[str, Any]) -> dict[str, Any]:
        if message.get("msg_type") in {"display_data", "update_display_data"}:
            content = message["content"]
            content["data"] = _clean_bundle(content.get("data", {}))
        return message

    publisher.register_hook(clean)
    publisher.gateshift_guarded = True
    hook = shell.displayhook
    if hasattr(hook, "write_format_data"):
        original = hook.write_format_data

        def write(format_dict: dict[str, Any], md_dict: Any = None) -> Any:
            return original(_clean_bundle(format_dict), md_dict)

        hook.write_format_data = write


def _clean_bundle(data: dict[str, Any]) -> dict[str, Any]:
    return {k: (v if k.startswith("image/png") else _REDACTOR.value(v)) for k, v in data.items()}


def _guard_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "gateshift_guarded", False):
            continue
        try:
            _guard_stream(stream)
        except AttributeError:
            continue  # a stream that takes no attributes is not a kernel's


def _guard_stream(stream: Any) -> None:
    original = stream.write

    def write(text: str) -> Any:
        return original(_REDACTOR.text(text) if isinstance(text, str) else text)

    stream.write = write
    stream.gateshift_guarded = True
