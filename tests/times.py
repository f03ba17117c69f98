"""What each test file costs, in processor seconds: ``python -m pytest -p tests.times``.

User and system time of this process and of those that it has waited for, so that a busy
machine tells nearly the same as a quiet one. For one process of pytest, without xdist.
"""

import collections
import resource
from collections.abc import Generator

import pytest


def usages() -> list[resource.struct_rusage]:
    who = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return [resource.getrusage(one) for one in who]


def processor_seconds() -> float:
    return sum(usage.ru_utime + usage.ru_stime for usage in usages())


class Times:
    """Adds up what the tests of a file take, set-up and clearing away included."""

    def __init__(self):
        self.seconds: dict[str, float] = collections.defaultdict(float)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        del nextitem
        before = processor_seconds()
        try:
            return (yield)
        finally:
            file = item.nodeid.partition("::")[0]
            self.seconds[file] += processor_seconds() - before

    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter
    ) -> None:
        terminalreporter.section("processor seconds")
        for file, seconds in sorted(self.seconds.items(), key=lambda x: -x[1]):
            terminalreporter.write_line(f"{seconds:8.1f}  {file}")
        terminalreporter.write_line(
            f"{processor_seconds():8.1f}  with imports and collection"
        )
        own, others = (usage.ru_maxrss / 1024 for usage in usages())
        terminalreporter.write_line(
            f"peak of memory: {own:.0f} MiB, of a process started by a test "
            f"{others:.0f} MiB"
        )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Times())
