"""Records what each step of a run read in a ledger, and checks the ledger against the .bin files."""
