"""Doubles of TensorRT's objects, created from NVIDIA's classes: they have exactly the members of the class.

A call must fit a signature of the real method, a value must fit the type of the real property, and results are doubles
of the real type. ``answers`` sets what an object returns; the default is any value of the right type.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

from tensorrt_stubs.signatures import Signature, accepts, parse

Answer = Any  #: a value, or a function of the double and the arguments


class World:
    """The classes of one TensorRT, and the answers of its doubles.

    Attributes:
        answers: (class, member) -> value, or a function of the double and of the arguments by name
        used: the members that were used
        deprecated: the used members that NVIDIA's documentation calls deprecated
    """

    def __init__(self, trt: types.ModuleType) -> None:
        self.trt = trt
        self.answers: dict[tuple[str, str], Answer] = {}
        self.used: set[str] = set()
        self.deprecated: set[str] = set()

    def find(self, name: str) -> type | None:
        """The class for a type name in a docstring, which may be a C++ name."""
        member: Any = self.trt
        for part in name.rpartition("::")[2].split("."):
            member = getattr(member, part, None)
        member = getattr(member, "real", member) if isinstance(member, Factory) else member
        if member is None and name.rpartition("::")[2].startswith("I"):  # nvonnxparser::IParserError
            return self.find(name.rpartition("::")[2][1:])
        return member if inspect.isclass(member) else None

    def is_a(self, value: Any, cls: type) -> bool:
        return issubclass(value.real, cls) if isinstance(value, Double) else isinstance(value, cls)

    def fits(self, kind: str, value: Any) -> bool:
        return accepts(kind, value, self.find, self.is_a)

    def double(self, name: str) -> Any:
        """A double of a class."""
        cls = self.find(name)
        assert cls is not None, name
        return Double(self, cls)

    def stand_in(self, *names: str) -> None:
        """Let these classes of the module create doubles."""
        for name in names:
            setattr(self.trt, name, Factory(self, getattr(self.trt, name)))

    def note(self, cls: type, member: str, doc: str | None) -> None:
        name = f"{cls.__name__}.{member}"
        self.used.add(name)
        if "deprecated" in (doc or "").lower().partition(":arg")[0]:
            self.deprecated.add(name)

    def answer(self, double: Double, member: str, returns: str, bound: dict[str, Any]) -> Any:
        """The result of a method or property."""
        for cls in double.real.__mro__:
            key = (cls.__name__, member)
            if key in self.answers:
                answer = self.answers[key]
                value = answer(double, **bound) if isinstance(answer, types.FunctionType) else answer
                if value is not None:  # a null pointer fits everything
                    assert self.fits(returns, value), f"the scenario's {key} gives {value!r}, expected {returns}"
                return value
        return self._usual(returns, double, member)

    def _usual(self, returns: str, double: Double, member: str) -> Any:
        outer = returns.partition("[")[0]
        simple: dict[str, Any] = {
            "None": None,
            "bool": True,
            "int": 1,
            "float": 1.0,
            "str": "text",
            "list": [],
            "List": [],
        }
        if outer in simple:
            return simple[outer]
        cls = self.find(returns)
        if cls is None:
            raise AssertionError(f"the scenario must set what {double.real.__name__}.{member} returns ({returns})")
        members = getattr(cls, "__members__", None)
        return next(iter(members.values())) if members else Double(self, cls)


class Factory:
    """Replaces a class: calling it creates a double; everything else comes from the class."""

    def __init__(self, world: World, real: type) -> None:
        self.world = world
        self.real = real

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        signatures = parse(vars(self.real)["__init__"].__doc__, "__init__", drop_self=True)
        bound, _ = fit(self.world, self.real, "__init__", signatures, args, kwargs)
        self.world.note(self.real, "__init__", None)
        answer = self.world.answers.get((self.real.__name__, "__init__"))
        double = Double(self.world, self.real)
        object.__setattr__(double, "given", bound)
        if answer is not None:
            answer(double, **bound)
        return double

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class Double:
    """An object of a real class that cannot be created here.

    Attributes:
        real: the class
        given: arguments of its construction, by name
        state: what was set
    """

    def __init__(self, world: World, real: type) -> None:
        for name, value in (("world", world), ("real", real), ("given", {}), ("state", {})):
            object.__setattr__(self, name, value)

    def _member(self, name: str) -> Any:
        try:
            return inspect.getattr_static(self.real, name)
        except AttributeError:
            raise AttributeError(f"{self.real.__name__!r} of this TensorRT has no {name!r}") from None

    def __getattr__(self, name: str) -> Any:
        member = self._member(name)
        if isinstance(member, property):
            doc = member.fget.__doc__
            self.world.note(self.real, name, member.__doc__)
            if name in self.state:
                return self.state[name]
            signatures = parse(doc, "", drop_self=True)
            return self.world.answer(self, name, signatures[0].returns if signatures else "object", {})
        if callable(member) or hasattr(member, "__func__"):
            return Method(self, name, getattr(member, "__func__", member).__doc__)
        return member

    def __setattr__(self, name: str, value: Any) -> None:
        member = self._member(name)
        if not isinstance(member, property) or member.fset is None:
            raise AttributeError(f"{name!r} of {self.real.__name__!r} cannot be set")
        self.world.note(self.real, name, member.__doc__)
        for signature in parse(member.fset.__doc__, "", drop_self=True):
            if not self.world.fits(signature.parameters[0].type, value):
                raise TypeError(f"{self.real.__name__}.{name} is {signature.parameters[0].type}, got {value!r}")
        self.state[name] = value

    def __getitem__(self, index: Any) -> Any:
        return self.__getattr__("__getitem__")(index)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.__getattr__("__setitem__")(index, value)

    def __len__(self) -> int:
        return int(self.__getattr__("__len__")())

    def __iter__(self) -> Iterator[Any]:
        self._member("__getitem__")
        return (self[index] for index in range(len(self)))

    def __bytes__(self) -> bytes:
        """Host memory has the buffer protocol, which its class does not show."""
        if self.real.__name__ != "IHostMemory":
            raise TypeError(f"{self.real.__name__} has no bytes")
        self.world.note(self.real, "buffer", None)
        return b"host memory"

    def __bool__(self) -> bool:
        return True


class Method:
    """A method of a double, bound."""

    def __init__(self, double: Double, name: str, doc: str | None) -> None:
        self.double = double
        self.name = name
        self.doc = doc
        self.signatures = parse(doc, name, drop_self=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        world, cls = self.double.world, self.double.real
        bound, signature = fit(world, cls, self.name, self.signatures, args, kwargs)
        world.note(cls, self.name, self.doc)
        return world.answer(self.double, self.name, signature.returns, bound)


def fit(
    world: World, cls: type, name: str, signatures: list[Signature], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[str, Any], Signature]:
    """The arguments by name under the first signature that accepts them; TypeError if none does."""
    assert signatures, f"{cls.__name__}.{name} does not document its signature"
    reasons = []
    for signature in signatures:
        try:
            bound = signature.bind(args, kwargs)
        except TypeError as error:
            reasons.append(f"{signature} {error}")
            continue
        types_of = {p.name: p.type for p in signature.parameters}
        wrong = [f"{key}={value!r}" for key, value in bound.items() if not world.fits(types_of[key], value)]
        if not wrong:
            return bound, signature
        reasons.append(f"{signature} does not take {', '.join(wrong)}")
    raise TypeError(f"{cls.__name__}.{name}: " + "; ".join(reasons))


def wrong_overrides(trt: types.ModuleType, modules: Callable[[type], bool]) -> list[str]:
    """Methods of our classes whose number of arguments differs from that of the TensorRT method they override.

    Args:
        modules: whether a class is one of ours
    """
    wrong = []
    for cls in _subclasses(trt):
        if not modules(cls):
            continue
        for name, function in vars(cls).items():
            base = next((vars(b)[name] for b in cls.__mro__[1:] if name in vars(b)), None)
            signatures = parse(getattr(base, "__doc__", None), name, drop_self=True)
            if name.startswith("__") or not inspect.isfunction(function) or not signatures:
                continue
            counts = {len(signature.parameters) for signature in signatures}
            if len(inspect.signature(function).parameters) - 1 not in counts:
                wrong.append(f"{cls.__qualname__}.{name}: expected {' or '.join(map(str, signatures))}")
    return wrong


def _subclasses(trt: types.ModuleType) -> set[type]:
    classes: set[type] = set()
    waiting = [value for value in vars(trt).values() if inspect.isclass(value)]
    while waiting:
        cls = waiting.pop()
        if cls not in classes and cls is not object:
            classes.add(cls)
            waiting += type.__subclasses__(cls)
    return classes
