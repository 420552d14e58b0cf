"""How near a network comes to what its machine can do: the machine's limits, and a network's share of them.

The model is the plain roofline: a call cannot take less time than its multiplications at the rate of large matrix
products, nor than its bytes at the rate of a large copy. Both rates are measured, not read off a data sheet.
"""

from __future__ import annotations

from dataclasses import dataclass

from yolact_deploy.errors import InputError
from yolact_deploy.graph.macs import Macs


@dataclass(frozen=True)
class MachineLimits:
    """What a device was measured to do at best.

    Attributes:
        device: "cpu" or "cuda:N"
        gmac_per_s: rate of large matrix products in 10^9 multiply-accumulates a second, by precision; those that could
            not be measured are left out
        measured_with: library that reached each of them
        bytes_per_s: read and written by a large copy within the device's memory, together
    """

    device: str
    gmac_per_s: dict[str, float]
    measured_with: dict[str, str]
    bytes_per_s: float


@dataclass(frozen=True)
class Roofline:
    """One network on one machine; None where the limit of its precision was not measured.

    Attributes:
        precision: that the network computes in
        gmac: of a call, without the tail
        bytes: that a call moves, see :mod:`yolact_deploy.graph.macs`
        network_ms: time of a call, network only
        achieved_gmac_per_s: what it reached
        limit_gmac_per_s: what the machine could reach with this network
        share: of the limit that is reached; above 1, caches or a cleverer algorithm have saved what the model counts
        bound_by: "compute" or "memory", whichever would take longer
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
    """What a network reaches, and what bounds it.

    Args:
        macs: of one call
        network_ms: time of this call, network only
        precision: that the runtime computes in, whatever the file's; a key of ``macs.ELEMENT_BYTES``
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
