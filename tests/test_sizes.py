"""Functions stay short and simple. Sizes of folders are in test_imports.py; ``python tests/house.py`` prints all."""

from __future__ import annotations

import pytest
from house import complex_functions, long_functions

#: how many functions may exceed the limits of house.py
MOST_LONG, MOST_COMPLEX = 11, 0


def test_few_functions_are_long() -> None:
    functions = long_functions()
    print(f"{len(functions)} functions of more than 40 lines: {functions}")
    assert len(functions) <= MOST_LONG


def test_few_functions_are_complex() -> None:
    pytest.importorskip("ruff")
    functions = complex_functions()
    print(f"{len(functions)} functions of a complexity above 15: {functions}")
    assert len(functions) <= MOST_COMPLEX


def test_both_are_counted() -> None:
    pytest.importorskip("ruff")
    assert len(long_functions(30)) > len(long_functions(40))
    assert len(complex_functions(8)) > len(complex_functions(15))
