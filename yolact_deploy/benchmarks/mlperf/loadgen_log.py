"""LoadGen's logs of a run: verdict, reasons and figures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_deploy.errors import BackendError

SUMMARY, DETAIL = "mlperf_log_summary.txt", "mlperf_log_detail.txt"
#: all files that LoadGen writes; the last two stay empty in a performance run without a trace
LOG_FILES = (SUMMARY, DETAIL, "mlperf_log_accuracy.json", "mlperf_log_trace.json")

_PREFIX = ":::MLLOG "


@dataclass(frozen=True)
class LoadgenLog:
    """The records of the detailed log by key, and the verdict of both logs.

    Attributes:
        valid: both logs say VALID and contain no error
        reasons: why the run is not valid, in LoadGen's words
    """

    values: dict[str, Any]
    valid: bool
    reasons: tuple[str, ...]

    def number(self, key: str) -> float:
        """Raises :class:`BackendError` if LoadGen did not log it."""
        if key not in self.values:
            raise BackendError(f"LoadGen's log has no {key!r}: this version of mlcommons-loadgen is not supported")
        return float(self.values[key])


def read_log(folder: Path) -> LoadgenLog:
    """Read the logs of one run.

    Raises:
        BackendError: the logs are missing or incomplete.
    """
    try:
        summary = (folder / SUMMARY).read_text(encoding="utf-8")
        lines = (folder / DETAIL).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BackendError(f"LoadGen left no logs in {folder}: {error.strerror or error}") from error
    records = [json.loads(line[len(_PREFIX) :]) for line in lines if line.startswith(_PREFIX)]
    values = {record["key"]: record["value"] for record in records}
    verdict = next((line for line in summary.splitlines() if line.startswith("Result is")), "")
    if "result_validity" not in values or not verdict:
        raise BackendError(f"LoadGen's logs in {folder} have no result: the run was interrupted")
    errors = [str(record["value"]) for record in records if record["metadata"]["is_error"]]
    valid = verdict.split()[-1] == "VALID" and values["result_validity"] == "VALID" and not errors
    return LoadgenLog(values, valid, () if valid else (*_reasons(values), *errors))


def _reasons(values: dict[str, Any]) -> list[str]:
    """Unmet conditions; the summary's recommendations leave out early stopping, so its result is added."""
    reasons = [str(values.get("result_invalid_reason", ""))]
    if not values.get("early_stopping_met", True):
        reasons.append("early stopping: " + str(values["early_stopping_result"]).replace("*", " "))
    return [words for reason in reasons if (words := " ".join(reason.split()))]
