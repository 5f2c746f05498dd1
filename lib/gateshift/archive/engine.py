"""The papermill engine ``gateshift``: also for plain ``papermill --engine gateshift``.

Against papermill's own engine: cell statuses stay true after the kernel's death, a time-out, SIGTERM and
Ctrl-C; the copy is saved whole or not at all; secrets are taken out of it; ``sys.exit(0)`` half-way is a
failure; the exit code says how the run ended (:mod:`gateshift.archive.outcome`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateshift.archive.redact import Redactor, secrets_in

if TYPE_CHECKING:
    from gateshift.archive.client import CellEvent

__all__ = ["GateshiftEngine"]


class GateshiftEngine:
    """Runs a notebook for an archive that can be relied on.

    Has the three methods papermill calls of an engine; papermill's base class is not imported, because
    papermill loads this module while it is itself being imported.
    """

    @classmethod
    def nb_kernel_name(cls, nb: Any, name: str | None = None) -> str:
        """Return the kernel to use: *name*, else the notebook's."""
        return name or nb.metadata.get("kernelspec", {}).get("name") or "python3"

    @classmethod
    def nb_language(cls, nb: Any, language: str | None = None) -> str:
        """Return the notebook's language."""
        found = nb.metadata.get("language_info", {}).get("name")
        return language or found or nb.metadata.get("kernelspec", {}).get("language") or "python"

    @classmethod
    def execute_notebook(  # noqa: PLR0917 - papermill calls it so
        cls,
        nb: Any,
        kernel_name: str,
        output_path: str | None = None,
        progress_bar: Any = True,
        log_output: bool = False,
        autosave_cell_every: float = 30,
        *,
        start_timeout: float = 60,
        execution_timeout: float | None = None,
        stdout_file: Any = None,
        stderr_file: Any = None,
        secrets: Iterable[str] = (),
        timeout: float | None = None,
        grace: float = 10.0,
        kernel_cwd: str | None = None,
        kernel_env: Mapping[str, str] | None = None,
        on_cell: Callable[[CellEvent], None] | None = None,
        on_output: Callable[[str], None] | None = None,
        adopts: bool = True,
        **details: Any,
    ) -> Any:
        """Run *nb* and return the cleaned copy; raises ``NotebookStopped`` unless it ran to its end.

        With *adopts* the run that the notebook opened gets its copy, its seal and what its params ask for;
        our command line does that by itself.
        """
        # Imported when used: see the class.
        import nbformat  # noqa: PLC0415 - see above
        from papermill.log import logger  # noqa: PLC0415 - see above

        from gateshift.archive.adoption import adopt  # noqa: PLC0415 - see above
        from gateshift.archive.client import Runner, Settings  # noqa: PLC0415 - see above
        from gateshift.archive.outcome import Ending, NotebookStopped  # noqa: PLC0415 - see above
        from gateshift.archive.saving import Manager, register_atomic_output  # noqa: PLC0415 - see above

        parameters = nb.metadata.get("papermill", {}).get("parameters", {})
        redactor = Redactor([*secrets, *secrets_in(parameters)])

        def relay(name: str, text: str) -> None:
            if log_output:
                (logger.warning if name == "stderr" else logger.info)(text)
            file = stderr_file if name == "stderr" else stdout_file
            if file is not None:
                file.write(text)
                file.flush()

        settings = Settings(
            kernel_name=kernel_name,
            start_timeout=start_timeout,
            cell_timeout=execution_timeout,
            timeout=timeout,
            grace=grace,
            autosave=min(5.0, autosave_cell_every) if autosave_cell_every else 3600.0,
            cwd=kernel_cwd,
            env=kernel_env or {},
            on_cell=on_cell,
            on_output=on_output,
            on_stream=relay,
        )
        path = register_atomic_output(output_path, redactor)
        manager = Manager(nb, path=path, redactor=redactor, progress_bar=progress_bar)
        manager.begin({"notebook": Path(str(details.get("input_path") or "")).name})
        ending = Ending(1, "the engine itself failed")
        runner = Runner(manager, settings)
        try:
            ending = runner.run()
        finally:
            manager.end(ending)
            if adopts and runner.opened is not None:
                for warning in adopt(runner.opened, path, nbformat.writes(manager.nb), ending):
                    logger.warning("archive: %s", warning)
        if ending.exit_code:
            raise NotebookStopped(ending)
        return manager.nb
