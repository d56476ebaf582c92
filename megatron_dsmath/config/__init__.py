"""The configuration of a run: one YAML file, typed and validated."""

from megatron_dsmath.config.load import dump, load
from megatron_dsmath.config.sections import RunConfig

__all__ = ["RunConfig", "dump", "load"]
