"""Errors: one base, exit codes, and the missing-extra message."""

from __future__ import annotations

import inspect

import pytest

from yolact_deploy import errors
from yolact_deploy.errors import MissingDependencyError, YolactDeployError, import_optional

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, YolactDeployError)]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_each_error_is_documented_and_has_an_exit_code(kind: type[YolactDeployError]) -> None:
    assert kind.__doc__
    assert kind.exit_code == (1 if kind is errors.GateError else 2)


def test_errors_are_also_the_builtin_kind_people_catch() -> None:
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.InputError, ValueError)
    assert issubclass(errors.MissingDependencyError, ImportError)


def test_import_optional() -> None:
    assert import_optional("json", extra="onnx", purpose="reading").__name__ == "json"
    assert import_optional("os.path", extra="onnx", purpose="reading").join("a", "b") == "a/b"


def test_import_optional_names_the_extra() -> None:
    with pytest.raises(MissingDependencyError) as caught:
        import_optional("no_such_package.sub", extra="rtx", purpose="Building an engine")
    message = str(caught.value)
    assert message.startswith("Building an engine needs the Python package 'no_such_package' (")
    assert message.endswith("python -m pip install 'yolact-deploy[rtx]'")
    assert isinstance(caught.value.__cause__, ImportError)
