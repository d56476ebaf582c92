"""Backends: models that continue prompts, from token ids to token ids."""
