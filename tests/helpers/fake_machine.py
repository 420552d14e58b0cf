"""A machine described by files in a folder, and a configurable NVML."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any


def write(root: Path, files: dict[str, object]) -> None:
    """Write each file, with its value as a line."""
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n", encoding="utf-8")


class FakeNvml:
    """A minimal ``pynvml``; functions that a GPU's ``answers`` lack are "not supported".

    Args:
        gpus: for each GPU the answers by the function's name without ``nvmlDeviceGet``; a callable is called
    """

    class NVMLError(Exception):
        pass

    def __init__(self, *gpus: dict[str, Any], starts: bool = True) -> None:
        self._gpus, self._starts, self.open = gpus, starts, 0

    def nvmlInit(self) -> None:  # noqa: N802
        if not self._starts:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "570.86.10"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def __getattr__(self, function: str) -> Any:
        # Like the real module, it lacks newer functions.
        if not function.startswith("nvmlDeviceGet"):
            raise AttributeError(function)
        name = function.removeprefix("nvmlDeviceGet")

        def answer(handle: int, *arguments: int) -> Any:
            if self.open < 1:
                raise self.NVMLError("Uninitialized")
            if name not in self._gpus[handle]:
                raise self.NVMLError("Not Supported")
            found = self._gpus[handle][name]
            return found(*arguments) if callable(found) else found

        return answer


def gpu(model: str = "NVIDIA T4", uuid: str = "GPU-a", **answers: Any) -> dict[str, Any]:
    return {"Name": model, "UUID": uuid, **answers}


def memory(used: int, total: int = 16 << 30) -> SimpleNamespace:
    return SimpleNamespace(used=used, total=total, free=total - used)
