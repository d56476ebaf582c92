"""What a run read: the ledger of its steps, and its proof from the .bin files."""
