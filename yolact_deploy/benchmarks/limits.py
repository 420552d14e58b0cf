"""How close a network comes to the limits of its machine.

The model is the plain roofline: a call takes at least the time of its multiplications at the rate of large matrix
products, and at least the time of its bytes at the rate of a large copy. Both rates are measured, not taken from a data
sheet.
"""

from __future__ import annotations

from dataclasses import dataclass

from yolact_deploy.errors import InputError
from yolact_deploy.graph.macs import Macs


@dataclass(frozen=True)
class MachineLimits:
    """Measured limits of a device.

    Attributes:
        device: "cpu" or "cuda:N"
        gmac_per_s: rate of large matrix products in 10^9 multiply-accumulates per second, by precision; without those
            that could not be measured
        measured_with: library that reached each rate
        bytes_per_s: read plus written by a large copy within the device's memory
    """

    device: str
    gmac_per_s: dict[str, float]
    measured_with: dict[str, str]
    bytes_per_s: float


@dataclass(frozen=True)
class Roofline:
    """One network on one machine; None if the limit of its precision was not measured.

    Attributes:
        precision: of the network's computation
        gmac: of a call, without the tail
        bytes: moved by a call, see :mod:`yolact_deploy.graph.macs`
        network_ms: time of a call, network only
        achieved_gmac_per_s: rate that the network reached
        limit_gmac_per_s: rate that the machine could reach with this network
        share: reached share of the limit; above 1, caches or a better algorithm save work that the model counts
        bound_by: "compute" or "memory", whichever takes longer
    """

    precision: str
    gmac: float
    bytes: int
    network_ms: float
    achieved_gmac_per_s: float
    limit_gmac_per_s: float | None
    share: float | None
    bound_by: str | None


def roofline(macs: Macs, network_ms: float, precision: str, limits: MachineLimits) -> Roofline:
    """The rate that a network reaches, and its limit.

    Args:
        macs: of one call
        network_ms: time of this call, network only
        precision: of the runtime's computation, whatever the file's; a key of ``macs.ELEMENT_BYTES``
        limits: of the device that it ran on

    Raises:
        InputError: a time that is not positive, or an unknown precision.
    """
    if not network_ms > 0:
        raise InputError(f"expected the network's time in ms to be positive, got {network_ms}")
    size = macs.moved_bytes(precision)
    reached = macs.gmac / (network_ms / 1e3)
    rate = limits.gmac_per_s.get(precision)
    if rate is None:
        return Roofline(precision, macs.gmac, size, network_ms, reached, None, None, None)
    compute_s, memory_s = macs.gmac / rate, size / limits.bytes_per_s
    limit = macs.gmac / max(compute_s, memory_s)
    bound_by = "compute" if compute_s >= memory_s else "memory"
    return Roofline(precision, macs.gmac, size, network_ms, reached, limit, reached / limit, bound_by)
