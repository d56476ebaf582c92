"""Backends that write on where a prompt ends: ids in, ids out."""
