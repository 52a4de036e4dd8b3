"""What a device can do: peak arithmetic, bandwidth, memory, each with its source; and what share of it is assumed."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Device:
    """Peaks are of dense products, in operations a second; bandwidth in bytes a second; memory in bytes."""

    name: str
    bf16: float
    fp32: float
    bandwidth: float
    memory: float
    source: str
    utilisation: float = 0.35  # share of the peak assumed in training and scoring (MFU)
    streaming: float = 0.6  # share of the bandwidth assumed where decoding reads weights and cache
    overhead: float = 1.0 * GIB  # bytes that the runtime takes: context, kernels, fragments

    @property
    def gpu(self) -> bool:
        """Whether it is one of NVIDIA's."""
        return not self.name.startswith("cpu")


# Utilisation: public figures for packed training of dense models are 33 to 39 % (torchtitan, Llama 3.1 8B on H100)
# and 36 % (prime-rl, 4B); shares of bandwidth in decoding are about 70 % (gpt-fast, A100). FP32 peaks are those outside
# the tensor cores, which is how torch multiplies float32 unless told otherwise.
_NVIDIA = "NVIDIA's data sheet"
DEVICES = {
    "H100": Device(
        name="H100", bf16=989e12, fp32=67e12, bandwidth=3.35e12, memory=80 * GIB, source=f"{_NVIDIA}, H100 SXM"
    ),
    "H200": Device(
        name="H200", bf16=989e12, fp32=67e12, bandwidth=4.8e12, memory=139 * GIB, source=f"{_NVIDIA}, H200 SXM"
    ),
    "A100": Device(
        name="A100", bf16=312e12, fp32=19.5e12, bandwidth=2.04e12, memory=80 * GIB, source=f"{_NVIDIA}, A100 80GB SXM"
    ),
    "4090": Device(
        name="4090",
        bf16=165e12,
        fp32=82.6e12,
        bandwidth=1.01e12,
        memory=24 * GIB,
        source=f"{_NVIDIA}, GeForce RTX 4090",
    ),
    # One thread of a server CPU with AVX-512 and AMX, measured on products of the models' shapes.
    "cpu": Device(
        name="cpu",
        bf16=500e9,
        fp32=150e9,
        bandwidth=20e9,
        memory=16 * GIB,
        source="measured, one thread of a Sapphire Rapids Xeon",
        utilisation=0.6,  # a step takes 1.7 times its products
        streaming=0.5,
        overhead=0.4 * GIB,
    ),
}


def device(name: str) -> Device:
    """By name; `this` is the machine at hand, a GPU where there is one, else its CPU as measured in a second."""
    if name == "this":
        return _this()
    if name not in DEVICES:
        raise ValueError(f"device: {name!r}, expected one of {', '.join(DEVICES)}, this")
    return DEVICES[name]


def _this() -> Device:
    import torch

    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        known = next((d for d in DEVICES.values() if d.gpu and d.name in found.name), None)
        if known is None:
            raise ValueError(
                f"device: this is a {found.name}, whose peaks are not known; name one of {', '.join(DEVICES)}"
            )
        return replace(known, memory=float(found.total_memory))
    rates = {dtype: _rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    source = f"measured now, {torch.get_num_threads()} threads"
    return replace(
        DEVICES["cpu"],
        name="cpu (this)",
        fp32=rates[torch.float32],
        bf16=rates[torch.bfloat16],
        memory=_memory_here(),
        source=source,
    )


def _rate(dtype: object) -> float:
    import torch

    a, b = (torch.randn(1024, 1024).to(dtype) for _ in range(2))  # type: ignore[call-overload]
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best


def _memory_here() -> float:
    import os

    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
