from __future__ import annotations

import pytest

from megatron_dsmath.report import number_formats


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.25, "4.2 s"),
        (59.94, "59.9 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (3725, "1 h 02 min"),
        (86_399.7, "1 d 00 h"),
        (183_600, "2 d 03 h"),
    ],
)
def test_durations_have_the_two_largest_units(seconds: float, text: str) -> None:
    assert number_formats.format_duration(seconds) == text


@pytest.mark.parametrize(("rate", "text"), [(4.2e-4, "4.2e-4"), (1.3272e-4, "1.327e-4"), (5e-5, "5e-5"), (0.0, "0")])
def test_rates_are_written_as_the_paper_writes_them(rate: float, text: str) -> None:
    assert number_formats.format_rate(rate) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.05, "0.05"), (2.5, "2.5"), (999.6, "1,000"), (48_000, "48,000"), (1.2e6, "1.2M"), (0, "0")]
)
def test_axis_numbers_are_short(value: float, text: str) -> None:
    assert number_formats.format_short(value) == text


@pytest.mark.parametrize(("size", "text"), [(999, "999 bytes"), (12_345_678, "12.3 MB"), (82_924_388_352, "82.9 GB")])
def test_sizes_have_decimal_units(size: int, text: str) -> None:
    assert number_formats.format_bytes(size) == text
