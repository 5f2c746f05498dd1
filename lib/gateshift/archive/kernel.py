"""The kernel's process: ``python -m gateshift.archive.kernel -f CONNECTION_FILE``.

IPython's own kernel, ended in order. It answers a request to shut down on its control thread, tells the
main thread to leave, and only then reports itself idle. When the main thread is quicker, its exit handlers
have closed the sockets under that report, and a traceback (``Socket operation on non-socket``) stands at
the end of a clean run.
"""

import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__" and (sys.path[0] == "" or Path(sys.path[0]) == Path.cwd()):
    # As ipykernel_launcher does: no file in the working folder stands in for a library's module.
    del sys.path[0]

import zmq
from ipykernel.kernelapp import IPKernelApp

__all__ = ["OrderlyKernelApp"]


class OrderlyKernelApp(IPKernelApp):  # type: ignore[misc]  # ipykernel is not followed by mypy
    """Lets the threads that still report finish before the exit handlers close what they report through."""

    def init_iopub(self, context: Any) -> None:
        """Queue every output: by default ZeroMQ drops what comes faster than it is read, and says nothing."""
        context.setsockopt(zmq.SNDHWM, 0)
        super().init_iopub(context)

    def start(self) -> None:
        """Serve until shut down."""
        try:
            super().start()
        finally:
            for thread in (self.control_thread, self.shell_channel_thread):
                if thread is not None and thread.is_alive():
                    thread.stop()
                    thread.join()


if __name__ == "__main__":
    OrderlyKernelApp.launch_instance()
