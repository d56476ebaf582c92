"""How much of a device's arithmetic a step used."""

from __future__ import annotations

# Dense bf16 peak of the data sheets, in FLOP/s, by a part of the device's name.
_PEAKS = {"H100": 989.4e12, "H200": 989.4e12, "H800": 989.4e12, "A100": 312e12, "A800": 312e12, "B200": 2250e12}


def model_flops_utilization(
    tokens_per_second: float, flops_per_token: float, device_name: str, devices: int
) -> float | None:
    """Achieved over peak FLOP/s, attention counted causal (Megatron-LM's convention); None for an unlisted device."""
    peak = next((peak for name, peak in _PEAKS.items() if name in device_name), None)
    return None if peak is None else tokens_per_second * flops_per_token / (peak * devices)
