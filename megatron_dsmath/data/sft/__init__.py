"""Conversations to examples with loss masks, packed into sequences."""
