"""What importing the judge costs: notebooks that never judge import it as well."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_judge_is_imported_without_scipy() -> None:
    code = "import sys, gateshift.runbook.observe; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "numpy" in done.stdout.split()
    assert "scipy" not in done.stdout.split()
