"""The operator's desk: working copies of the notebooks, and JupyterLab set up for them.

The clone's notebooks stay as they are in git. What is run by hand is a copy under
``outputs/<migration>/desk/``; each time JupyterLab saves one, the executed copy also goes into the folder of
the run it shows, so that the archive of a migration by hand is as complete as that of a pipeline.
"""

from gateshift.desk.copies import lay, run_of
from gateshift.desk.server import command, environment

__all__ = ["command", "environment", "lay", "run_of"]
