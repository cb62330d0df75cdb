"""The GPUs that a plan is made for: memory, and the makers' rates of computing, reading and exchanging."""

from __future__ import annotations

import math
from dataclasses import dataclass

from xreasoner.errors import UserError
from xreasoner.registry import nearest

GB = 1e9
RESERVE = 0.08
"""Share of a GPU's memory that the driver, the kernels' workspaces and fragmentation take."""
READING = 0.6
"""Share of the memory's rate that decoding reaches."""
EXCHANGING = 0.7
"""Share of the links' rate that collectives reach."""
PER_NODE = 8
"""GPUs of one machine."""
LOGITS = 2**28
"""Logits that exist at a time on a GPU (`training.common.MOST_LOGITS`)."""


@dataclass(frozen=True, slots=True)
class GPU:
    """One kind of GPU, from its maker's data sheet.

    memory: GB. flops: dense bfloat16 a second. bandwidth: the memory's bytes a second. link: bytes a second to the
    other GPUs of its machine, one way. utilization: share of `flops` that training reaches, recomputation counted.
    """

    memory: int
    flops: float
    bandwidth: float
    link: float
    utilization: float


GPUS = {
    "RTX 4090": GPU(24, 165e12, 1.01e12, 25e9, 0.4),
    "A100 40GB": GPU(40, 312e12, 1.56e12, 300e9, 0.4),
    "L20": GPU(48, 119.5e12, 0.86e12, 25e9, 0.35),
    "L40S": GPU(48, 362e12, 0.86e12, 25e9, 0.3),
    "A100 80GB": GPU(80, 312e12, 2.04e12, 300e9, 0.4),
    "H100 80GB": GPU(80, 989e12, 3.35e12, 450e9, 0.25),
    "H200": GPU(141, 989e12, 4.8e12, 450e9, 0.25),
}
"""By name. The utilization of A100, L20 and H100 is what published runs reach (`published`); faster GPUs wait longer
for everything else."""
BY_MEMORY = {24: "RTX 4090", 40: "A100 40GB", 48: "L40S", 80: "H100 80GB", 141: "H200"}
"""Which one a memory in GB means."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The GPUs.

    memory: bytes of each. flops: bfloat16 a second. bandwidth: bytes a second. price: of an hour each. logits: how many
    exist at a time (`training.common.MOST_LOGITS`). link: bytes a second between the GPUs of one machine. network: the
    same between machines, for each GPU. utilization: share of the flops that training reaches. host: bytes of main
    memory of one machine; None: not known. cpu: the model is computed on the CPU, in main memory.
    """

    gpus: int
    memory: float
    name: str
    flops: float
    bandwidth: float
    price: float | None = None
    logits: int = LOGITS
    link: float = 25e9
    network: float = 25e9
    utilization: float = 0.4
    host: float | None = None
    cpu: bool = False

    @classmethod
    def of(
        cls,
        gpus: int,
        memory: str | None = None,
        price: float | None = None,
        gpu: str | None = None,
        network: float = 200.0,
        host: str | None = None,
    ) -> Machine:
        """The machine of the command line's options.

        Args:
            gpus: how many.
            memory: of each, such as 40GB; default: that of the GPU that is named.
            price: of an hour of one.
            gpu: a name of `GPUS`; default: the one with the nearest memory.
            network: Gbit/s between machines for each GPU.
            host: main memory of one machine, such as 512GB.

        Raises:
            UserError: a value cannot be read, or neither memory nor a GPU is given.
        """
        if gpu is not None and gpu not in GPUS:
            raise UserError(f"--gpu {gpu!r}: unknown; {nearest(gpu, GPUS)}")
        if memory is None and gpu is None:
            raise UserError("--memory is missing: give a GPU's memory such as --memory 40GB, or --gpu 'A100 40GB'")
        if not 0 < network < math.inf:
            raise UserError(f"--network {network}: expected Gbit/s between machines for each GPU, such as 200")
        size = GPUS[gpu].memory if memory is None and gpu else _gigabytes("--memory", memory or "", "40GB")
        name = gpu or BY_MEMORY[min(BY_MEMORY, key=lambda known: abs(known - size))]
        found = GPUS[name]
        main = None if host is None else _gigabytes("--host-memory", host, "512GB") * GB
        rates = {"link": found.link, "network": network * 1e9 / 8, "utilization": found.utilization, "host": main}
        return cls(gpus, size * GB, name, found.flops, found.bandwidth, price, **rates)  # type: ignore[arg-type]

    @property
    def usable(self) -> float:
        """Bytes of one GPU that a plan may fill."""
        return self.memory * (1 - RESERVE)

    @property
    def nodes(self) -> int:
        """How many machines there are, of eight GPUs."""
        return -(-self.gpus // PER_NODE)

    def exchange_seconds(self, size: float) -> float:
        """Seconds of an all-gather or a reduce-scatter of `size` bytes over all GPUs.

        Within a machine each GPU receives all but its own share; between machines each one's GPUs share its links.
        """
        if self.gpus == 1:
            return 0.0
        inside = size * (self.gpus - 1) / self.gpus / self.link
        between = size * (self.nodes - 1) / self.nodes / (self.network * min(self.gpus, PER_NODE))
        return max(inside, between) / EXCHANGING


def _gigabytes(option: str, text: str, example: str) -> float:
    """From 40GB, 40 GiB, 40G or 40."""
    number = text.upper().strip().removesuffix("IB").removesuffix("B").removesuffix("G")
    try:
        size = float(number)
    except ValueError:
        size = 0.0
    if not 0 < size < math.inf:
        raise UserError(f"{option} {text!r}: expected a memory such as {example}")
    return size
