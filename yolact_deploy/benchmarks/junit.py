"""Checks of a benchmark as JUnit XML, which continuous integration shows test by test."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from yolact_deploy.artifact import write_bytes
from yolact_deploy.benchmarks.gates import GateCheck


def write_junit(checks: Sequence[GateCheck], path: str | os.PathLike[str]) -> None:
    """A test case for each limit and engine; raises :class:`OutputError` where the place cannot be written."""
    write_bytes(path, junit_xml(checks))


def junit_xml(checks: Sequence[GateCheck]) -> bytes:
    failures = sum(not check.passed for check in checks)
    counts = {"tests": str(len(checks)), "failures": str(failures), "errors": "0"}
    suites = ET.Element("testsuites", counts)
    suite = ET.SubElement(suites, "testsuite", {"name": "yolact-deploy bench", **counts, "skipped": "0"})
    for check in checks:
        case = ET.SubElement(suite, "testcase", {"classname": check.engine, "name": check.gate})
        if check.passed:
            ET.SubElement(case, "system-out").text = check.sentence
        else:
            ET.SubElement(case, "failure", {"message": check.sentence}).text = check.sentence
    ET.indent(suites)
    xml: bytes = ET.tostring(suites, encoding="utf-8", xml_declaration=True)
    return xml + b"\n"
