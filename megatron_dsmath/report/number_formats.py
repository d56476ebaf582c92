"""Numbers as text for tables and figures."""

from __future__ import annotations


def format_count(value: float | None) -> str:
    """A whole number: 1,228,800."""
    return "–" if value is None else f"{value:,.0f}"


def format_loss(value: float | None) -> str:
    """Nats per token: 2.3142."""
    return "–" if value is None else f"{value:.4f}"


def format_rate(value: float) -> str:
    """A learning rate: 4.2e-4."""
    digits, _, power = f"{value:.3e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}" if value else "0"


def format_share(value: float | None) -> str:
    """A share in percent: 55.97%."""
    return "–" if value is None else f"{100 * value:.2f}%"


def format_short(value: float) -> str:
    """A number in few characters for an axis: 0.05, 2.5, 48,000, 1.2M."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def format_bytes(value: int) -> str:
    """A size on disk: 13.8 GB."""
    for size, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value} bytes"


def format_duration(seconds: float) -> str:
    """A time in its two largest units: 2 d 03 h, 1 h 02 min, 3 min 05 s, 4.2 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"
