"""Small corpora, written once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_dsmath.quickstart.corpora import write_corpora

SEED, MEGABYTES = 11, 1.0


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The five files, 1 MB together."""
    return write_corpora(tmp_path_factory.mktemp("corpora"), SEED, MEGABYTES)
