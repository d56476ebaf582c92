"""WHAT A RUN IS: typed, validated as a whole, from one YAML file."""

from megatron_dsmath.config.load import dump, load
from megatron_dsmath.config.sections import RunConfig

__all__ = ["RunConfig", "dump", "load"]
