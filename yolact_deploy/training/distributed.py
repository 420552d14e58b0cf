"""The processes of a training: one, or those that ``torchrun`` started.

Everything except gradients (whether to stop, results of an evaluation) is exchanged by gloo through host memory, so
that nothing waits for a GPU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn

from yolact_deploy.errors import BackendError, InputError

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class World:
    """This process among all of them, and its device."""

    device: torch.device
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    #: gloo group of all processes; None if there is only one
    control: Any = None

    @property
    def is_main(self) -> bool:
        """True for the process that prints and writes."""
        return self.rank == 0

    def any(self, value: bool) -> bool:
        """True if it is true in any process; all processes must call."""
        if self.size == 1:
            return value
        flag = torch.tensor(int(value))
        distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self.control)
        return bool(flag)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over the processes, on the host."""
        values = values.detach().to("cpu", copy=True)
        if self.size > 1:
            distributed.all_reduce(values, group=self.control)
            values /= self.size
        return values

    def gather(self, value: Any) -> list[Any]:
        """The value of each process, in the order of the ranks; empty except in the main process."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        distributed.gather_object(value, values, group=self.control)
        return values or []

    def share(self, batch: int) -> int:
        """Number of images of this process in a batch of all processes.

        Raises:
            InputError: the batch cannot be divided.
        """
        if batch % self.size:
            near = max(1, round(batch / self.size)) * self.size
            raise InputError(f"a batch of {batch} cannot be divided among {self.size} processes: --set batch={near}")
        return batch // self.size

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network; with several processes, one that averages their gradients."""
        if self.size == 1:
            return network
        places = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=places, gradient_as_bucket_view=True)


@contextlib.contextmanager
def processes(device: str = "auto") -> Iterator[World]:
    """Join the processes that ``torchrun`` describes in the environment; without it, this process alone.

    Args:
        device: "auto" uses GPUs if there are any; "cpu", "cuda" or "cuda:1"

    Raises:
        BackendError: no such GPU, or the processes cannot connect.
    """
    rank, size, local = (int(os.environ.get(name, default)) for name, default in _VARIABLES)
    place = _device(device, local)
    if size == 1:
        yield World(place)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    try:
        distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise BackendError(f"the processes cannot connect ({_line(error)}): start them with torchrun") from error
    try:
        control = distributed.new_group(backend="gloo") if place.type == "cuda" else distributed.group.WORLD
        yield World(place, rank, size, local, control)
    finally:
        distributed.destroy_process_group()


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


def _device(name: str, local_rank: int) -> torch.device:
    kind, _, number = name.partition(":")
    if kind not in DEVICES or (number and (kind != "cuda" or not number.isdecimal() or len(number) > 9)):
        raise InputError(f"unknown device {name!r}: expected auto, cpu, cuda or cuda:N")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    index = int(number) if number else local_rank
    if index >= count:
        raise BackendError(f"torch sees {count} GPUs, number {index} does not exist: use --device cpu or another GPU")
    return torch.device("cuda", index)


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
