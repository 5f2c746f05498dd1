"""Which tests may run side by side."""

from __future__ import annotations

import signal
import threading

import pytest

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    and threading.current_thread() is threading.main_thread()
):
    # A shell starts its background jobs deaf to Ctrl-C, and what the tests start would inherit that: those
    # that send one would find nothing interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep all tests of a lab in one worker, one after another.

    A lab takes about one core for itself: two of them on two cores would measure each other. The other worker
    has the slow tests without a lab meanwhile.
    """
    for item in items:
        if item.get_closest_marker("lab"):
            item.add_marker(pytest.mark.xdist_group("lab"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Stop where groups were asked for and are not made: two labs would run on each other's cores."""
    grouped = getattr(session.config.option, "loadgroup", False) and hasattr(session.config, "workerinput")
    labs = (item.nodeid for item in session.items if item.get_closest_marker("lab"))
    loose = [nodeid for nodeid in labs if "@lab" not in nodeid]
    if grouped and loose:
        raise pytest.UsageError(f"pytest-xdist does not group tests with this pytest: {loose[0]}")
