"""Megatron's .bin/.idx: written, validated, mapped, inspected, merged."""
