"""Runs tests marked ``fake_cuda`` in child processes with the fake driver.

A process cannot unload a driver, and all other tests must see a machine without one. So pytest starts itself once for
all marked tests of a file with equal settings, and each test takes its outcome from there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import fake_cuda

REPORT = "FAKE_CUDA_REPORT"  # where a child writes its reports, a line of JSON each
TIMEOUT = 900.0


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fake_cuda(**settings): runs in a process that has a fake CUDA driver")


# -- parent ---------------------------------------------------------------------------------------------------------


@pytest.hookimpl(trylast=True)  # after deselection
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    if REPORT in os.environ:
        return
    groups: dict[tuple[Path, str], Group] = {}
    for index, item in enumerate(items):
        marker = item.get_closest_marker("fake_cuda")
        if marker is not None:
            key = item.path, json.dumps(marker.kwargs, sort_keys=True)
            group = groups.setdefault(key, Group(session.config.rootpath, marker.kwargs))
            group.nodes.append(item.nodeid)
            assert item.parent is not None
            items[index] = Distant.from_parent(item.parent, name=item.name, group=group)


class Group:
    """Tests that share a child."""

    def __init__(self, root: Path, settings: Mapping[str, Any]) -> None:
        self.root = root
        self.settings = settings
        self.nodes: list[str] = []
        self._reports: dict[str, list[dict[str, Any]]] | None = None
        self._end = ""

    def reports(self, node: str) -> list[dict[str, Any]]:
        """The reports of the child about a test, with a failure added if the child died earlier or leaked."""
        if self._reports is None:
            self._reports = self._run()
        reports = self._reports.get(node, [])
        finished = any(report["when"] == "teardown" for report in reports)
        if self._end and (not finished or node == self.nodes[-1]):
            text, self._end = self._end, self._end.partition("\n")[0]  # at length once
            return [*reports, {"when": "end", "outcome": "failed", "text": text}]
        return reports

    def _run(self) -> dict[str, list[dict[str, Any]]]:
        reports: dict[str, list[dict[str, Any]]] = {}
        # What is marked slow was chosen by the parent.
        options = ["-q", "-p", "no:cacheprovider", "-m", ""]
        command = [sys.executable, "-X", "faulthandler", "-m", "pytest", *options, *self.nodes]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "reports"
            env = {**fake_cuda.environment(**self.settings), REPORT: str(file)}
            done = subprocess.run(
                command, cwd=self.root, env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False
            )
            for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
                report = json.loads(line)
                reports.setdefault(report["node"], []).append(report)
        if done.returncode not in (0, 1):
            output = f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
            self._end = f"the process of the tests with the fake driver ended with {done.returncode}:\n{output}"
        return reports


class DistantError(Exception):
    """Fails a test with the message of its child."""


class Distant(pytest.Item):
    """A test that runs in a child process."""

    def __init__(self, *, group: Group, **others: Any) -> None:
        super().__init__(**others)
        self.group = group

    def runtest(self) -> None:
        if fake_cuda.why_not():
            pytest.skip(fake_cuda.why_not())
        reports = self.group.reports(self.nodeid)
        failed = [report["text"] for report in reports if report["outcome"] == "failed"]
        skipped = [report["text"] for report in reports if report["outcome"] == "skipped"]
        if failed or not reports:
            raise DistantError("\n".join(failed) or "the child did not run this test")
        if any(report["outcome"] == "xfailed" for report in reports):
            pytest.xfail("in the child")
        if skipped:
            pytest.skip(skipped[0])

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        return str(excinfo.value) if isinstance(excinfo.value, DistantError) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, self.name


# -- child ----------------------------------------------------------------------------------------------------------


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if REPORT not in os.environ:
        return
    text = report.longreprtext
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        text = report.longrepr[2].removeprefix("Skipped: ")
    sections = [f"--- {title} ---\n{content}" for title, content in report.sections] if report.failed else []
    outcome = "xfailed" if report.skipped and hasattr(report, "wasxfail") else report.outcome
    line = {"node": report.nodeid, "when": report.when, "outcome": outcome, "text": "\n".join([text, *sections])}
    with open(os.environ[REPORT], "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


@pytest.fixture(name="fake_cuda")
def fake_cuda_control() -> Iterator[fake_cuda.Control]:
    """The fake driver's :class:`fake_cuda.Control`; fails the test for what host functions raised."""
    control = fake_cuda.control()
    control.reset_calls()
    yield control
    control.eager(False)
    control.null(False)
    errors, control.errors = control.errors, []
    if errors:
        raise errors[0]
