"""Runs a notebook's cells in a kernel and finds out what really became of each."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import zmq
from ipykernel.kernelspec import get_kernel_dict, make_ipkernel_cmd
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from gateshift.archive.display import MIME
from gateshift.archive.opened import OPENED, Opened, opened_in
from gateshift.archive.outcome import OUTCOMES, CellStatus, Ending, exit_code_of
from gateshift.archive.relay import Lines, Relay
from gateshift.archive.saving import Manager, join_streams
from gateshift.archive.scratch import scratch_folder

__all__ = ["CellEvent", "Runner", "Settings"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_RESUME = "run the same notebook again: it resumes from the journal"


@dataclass(frozen=True, slots=True)
class CellEvent:
    """A cell began or ended. ``index`` counts from 0 over ``total`` cells; ``seconds`` is 0 at its start."""

    index: int
    total: int
    status: CellStatus
    title: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run. Times are seconds; None is without limit."""

    kernel_name: str = "python3"
    start_timeout: float = 60.0
    cell_timeout: float | None = None
    timeout: float | None = None
    grace: float = 10.0
    """How long a cell may take to end by itself after an interrupt."""
    autosave: float = 5.0
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables beside those of this process."""
    on_cell: Callable[[CellEvent], None] | None = None
    on_output: Callable[[str], None] | None = None
    on_stream: Callable[[str, str], None] | None = field(default=None)


class _OwnKernel(AsyncKernelManager):
    """Starts ``python3`` with the Python that runs us, whatever kernels a user has registered."""

    @property
    def kernel_spec(self) -> KernelSpec | None:
        if self.kernel_name in {"python3", "python"}:
            argv = make_ipkernel_cmd("gateshift.archive.kernel")
            return KernelSpec(resource_dir="", **{**get_kernel_dict(), "argv": argv})
        return super().kernel_spec

    async def _async_interrupt_kernel(self) -> None:
        """Interrupt what runs; a kernel that is asked to leave is idle and would log that as an error."""
        if not self.shutting_down:
            await super()._async_interrupt_kernel()


class _Client(NotebookClient):  # type: ignore[misc]  # nbclient is not followed by mypy
    """Passes every output on as it comes, and notes a kernel that was asked to exit."""

    def __init__(self, manager: Manager, settings: Settings) -> None:
        # Sockets in a folder of this user only: outputs do not cross a TCP port others could read.
        self.scratch = scratch_folder()
        kernel = _OwnKernel(
            kernel_name=settings.kernel_name,
            transport="ipc",
            ip=f"{self.scratch.name}/socket",
            connection_file=f"{self.scratch.name}/kernel.json",
        )
        kernel.context.setsockopt(zmq.RCVHWM, 0)  # as the kernel's side: no output is dropped
        super().__init__(
            manager.nb,
            km=kernel,
            startup_timeout=int(settings.start_timeout),
            timeout=None,
            # Also of a cell with the tag raises-exception: papermill fails for it, but after our seal.
            force_raise_errors=True,
        )
        self.manager = manager
        self.settings = settings
        self.asked_exit = False
        self.lines: dict[str, Lines] = {}

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        output = super().process_message(msg, cell, cell_index)
        if msg["msg_type"] == "stream":
            join_streams(cell.outputs)
            name = str(msg["content"]["name"])
            self._pass_on(name, self.lines.setdefault(name, Lines()).take(msg["content"]["text"]))
        return output

    def pass_on_rest(self) -> None:
        """Pass on lines that have no end: their cell has."""
        for name, lines in self.lines.items():
            self._pass_on(name, lines.rest())

    def _pass_on(self, name: str, text: str) -> None:
        clean = self.manager.redactor.text(text)
        if clean and self.settings.on_output is not None:
            self.settings.on_output(clean)
        if clean and self.settings.on_stream is not None:
            self.settings.on_stream(name, clean)

    async def executed(self, cell: Any, cell_index: int, execute_reply: dict[str, Any]) -> None:
        """Look for IPython's ``exit()``, which replies ok and lets the kernel die."""
        del cell, cell_index
        payload = (execute_reply or {}).get("content", {}).get("payload", ())
        self.asked_exit = any(p.get("source") == "ask_exit" for p in payload)


class Runner:
    """One run of one notebook."""

    def __init__(self, manager: Manager, settings: Settings) -> None:
        self.manager = manager
        self.settings = settings
        self.client = _Client(manager, settings)
        self.client.on_cell_executed = self.client.executed
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._signal = ""
        self.relays: list[Relay] = []
        self.opened: Opened | None = None
        """The run that the kernel opened, known when :meth:`run` has returned."""

    def run(self) -> Ending:
        """Run all cells; the kernel is gone when this returns."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._run())
        # Inside somebody's event loop (a notebook that runs a notebook): a thread of its own.
        box: list[Ending] = []
        thread = threading.Thread(target=lambda: box.append(asyncio.run(self._run())))
        thread.start()
        thread.join()
        if not box:
            return Ending(1, "the engine failed; see the log above")
        return box[0]

    @property
    def _announced(self) -> Path:
        return Path(self.client.scratch.name) / "opened.json"

    # -- inside ------------------------------------------------------------------------------------

    async def _run(self) -> Ending:
        loop = asyncio.get_running_loop()
        watched = []
        for number in _SIGNALS:
            try:
                loop.add_signal_handler(number, self._on_signal, number)
                watched.append(number)
            except (RuntimeError, ValueError):
                break  # not the main thread: signals are its business
        try:
            ending = await self._start()
            if ending is None:
                ending = await self._cells()
                # Whatever the end: a notebook that failed shows its widgets as they stood.
                self.client.set_widgets_metadata()
        finally:
            await self._end_kernel()
            self.opened = opened_in(self._announced)
            self.client.scratch.cleanup()
            for relay in self.relays:
                relay.end()
            for number in watched:
                loop.remove_signal_handler(number)
        # Also of a signal that came when all was done: whoever runs several notebooks must hear of it.
        return replace(ending, signal=self._signal)

    def _on_signal(self, number: int) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._signal = signal.Signals(number).name
        self._stop.set()

    async def _start(self) -> Ending | None:
        client, settings = self.client, self.settings
        client.reset_execution_trackers()
        options: dict[str, Any] = {}
        if settings.cwd:
            options["cwd"] = settings.cwd
        options["env"] = {**os.environ, **settings.env, "TMPDIR": client.scratch.name}
        options["env"][OPENED] = str(self._announced)
        relays = self.relays = [Relay(self.manager.redactor, number) for number in (1, 2)]
        options["stdout"], options["stderr"] = (relay.writer for relay in relays)
        try:
            await client.async_start_new_kernel(**options)
            for relay in relays:
                relay.started()
            await client.async_start_new_kernel_client()
        except (RuntimeError, OSError) as error:
            return Ending(1, f"the kernel did not start: {error}", "run `make install` and try again")
        return None

    async def _end_kernel(self) -> None:
        kernel = self.client.km
        if kernel is None or not kernel.has_kernel:
            return
        try:
            await asyncio.wait_for(kernel.shutdown_kernel(now=self._hurry.is_set()), self.settings.grace)
        except (TimeoutError, RuntimeError):
            await kernel.shutdown_kernel(now=True)
        if self.client.kc is not None:
            self.client.kc.stop_channels()

    async def _cells(self) -> Ending:
        loop = asyncio.get_running_loop()
        limit = None if self.settings.timeout is None else loop.time() + self.settings.timeout
        cells = self.manager.nb.cells
        for index, cell in enumerate(cells):
            if self._stop.is_set():
                return self._interrupted(None)
            runs = cell.cell_type == "code" and bool(cell.source.strip())
            self.manager.start(index)
            if not runs:
                self.manager.finish(index, CellStatus.COMPLETED)
                continue
            title = _title(cells, index)
            self._tell(CellEvent(index, len(cells), CellStatus.RUNNING, title))
            status, ending = await self._one(index, cell, limit)
            self.client.pass_on_rest()
            if ending is None and self.client.asked_exit:
                status, ending = self._left_early(index, cell, "exit()")
            seconds = self.manager.finish(index, status)
            self._tell(CellEvent(index, len(cells), status, title, seconds))
            if ending is not None:
                return ending
        await self._finishing()
        return Ending(0)

    async def _one(self, index: int, cell: Any, limit: float | None) -> tuple[CellStatus, Ending | None]:
        loop = asyncio.get_running_loop()
        limits = {}
        if limit is not None:
            limits[limit] = self.settings.timeout
        if self.settings.cell_timeout:
            limits[loop.time() + self.settings.cell_timeout] = self.settings.cell_timeout
        task = asyncio.ensure_future(self.client.async_execute_cell(cell, index))
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            while not task.done() and not stop.done():
                left = min(limits) - loop.time() if limits else self.settings.autosave
                if left <= 0:
                    break
                await asyncio.wait(
                    {task, stop},
                    timeout=min(left, self.settings.autosave),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not task.done():
                    self.manager.save()
            if not task.done():
                await self._interrupt(task)
                if stop.done():
                    return CellStatus.INTERRUPTED, self._interrupted(index)
                allowed = limits[min(limits)]
                message = f"cell {index + 1} was stopped: it did not end within its time ({allowed:.0f} s)"
                return CellStatus.TIMED_OUT, Ending(5, message, _RESUME, "Timeout", index)
            return self._judge(index, cell, task)
        finally:
            stop.cancel()

    async def _interrupt(self, task: asyncio.Future[Any]) -> None:
        """Interrupt the kernel and give the cell its grace; whatever it says meanwhile is archived."""
        kernel = self.client.km
        if kernel is not None and kernel.has_kernel and not self._hurry.is_set():
            await kernel.interrupt_kernel()
            hurry = asyncio.ensure_future(self._hurry.wait())
            await asyncio.wait(
                {task, hurry}, timeout=self.settings.grace, return_when=asyncio.FIRST_COMPLETED
            )
            hurry.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=2.0)
        if task.done() and not task.cancelled():
            task.exception()  # taken notice of: the interrupt is the reason, not what it raised

    def _judge(self, index: int, cell: Any, task: asyncio.Future[Any]) -> tuple[CellStatus, Ending | None]:
        try:
            task.result()
            if shown := next((o for o in cell.outputs if o.output_type == "error"), None):
                # Not raised (showtraceback); to papermill it is a failure as well, but after our seal.
                raise CellExecutionError("", shown.ename, shown.evalue)
        except DeadKernelError:
            message = f"the kernel died in cell {index + 1}"
            if self._stop.is_set():
                return CellStatus.INTERRUPTED, self._interrupted(index)
            return CellStatus.KERNEL_DIED, Ending(5, message, _RESUME, "DeadKernelError", index)
        except CellExecutionError as error:
            if error.ename == "SystemExit":
                return self._left_early(index, cell, f"sys.exit({error.evalue})", error.evalue)
            status = CellStatus.INTERRUPTED if error.ename == "KeyboardInterrupt" else CellStatus.FAILED
            return status, self._failed(index, cell, error)
        except Exception as error:  # noqa: BLE001 - the kernel sent what no notebook can hold: any error
            return CellStatus.FAILED, self._unkept(index, error)
        return CellStatus.COMPLETED, None

    def _unkept(self, index: int, error: Exception) -> Ending:
        name = type(error).__name__
        message = self.manager.redactor.text(f"cell {index + 1}: {name}: {error}")
        return Ending(1, message, "the cell's output cannot be kept in a notebook", name, index)

    def _failed(self, index: int, cell: Any, error: CellExecutionError) -> Ending:
        clean = self.manager.redactor.text
        for output in cell.outputs:
            ours = output.get("data", {}).get(MIME)
            # Any cell can display something under our type; only an ending of ours counts.
            if not isinstance(ours, Mapping) or ours.get("ename") != error.ename:
                continue
            code = ours.get("exit_code")
            if code in OUTCOMES and code:
                message, hint = (clean(str(ours.get(key, ""))) for key in ("message", "hint"))
                return Ending(int(code), message, hint, error.ename, index)
        message = clean(f"cell {index + 1}: {error.ename}: {error.evalue}")
        code = exit_code_of(error.ename)
        if error.ename == "KeyboardInterrupt":
            return Ending(5, f"cell {index + 1} was interrupted", _RESUME, error.ename, index)
        return Ending(code, message, "the traceback is in the archived notebook", error.ename, index)

    def _left_early(
        self, index: int, cell: Any, how: str, value: str = "0"
    ) -> tuple[CellStatus, Ending | None]:
        """Judge a notebook that ended itself: only as its last deed, and with success, is it done."""
        rest = [c for c in self.manager.nb.cells[index + 1 :] if c.cell_type == "code" and c.source.strip()]
        good = value in {"", "0", "None"}
        if good and not rest:
            # papermill takes any error output for a failure it may ignore; there was none.
            cell.outputs = [o for o in cell.outputs if o.output_type != "error"]
            return CellStatus.COMPLETED, Ending(0)
        left = f" with {len(rest)} cells undone" if rest else ""
        message = f"cell {index + 1} ended the notebook by {how}{left}"
        hint = "raise an error instead of leaving"
        return CellStatus.FAILED, Ending(1, message, hint, "SystemExit", index)

    def _interrupted(self, index: int | None) -> Ending:
        where = "" if index is None else f" in cell {index + 1}"
        return Ending(5, f"stopped by {self._signal}{where}", _RESUME, self._signal, index)

    async def _finishing(self) -> None:
        client = self.client
        message = await client.async_wait_for_reply(client.kc.kernel_info())
        if message and "language_info" in message["content"]:
            self.manager.nb.metadata["language_info"] = message["content"]["language_info"]

    def _tell(self, event: CellEvent) -> None:
        if self.settings.on_cell is not None:
            self.settings.on_cell(event)


def _title(cells: Any, index: int) -> str:
    """Name a cell for a person: the nearest heading above it, else its first line."""
    for cell in reversed(cells[:index]):
        if cell.cell_type == "markdown":
            for line in cell.source.splitlines():
                if line.startswith("#"):
                    return str(line.lstrip("# ").strip())
        elif cell.cell_type == "code" and cell.source.strip():
            break
    lines = cells[index].source.strip().splitlines()
    return str(lines[0][:60]) if lines else ""
