"""NUMBERS FROM A STEP: pure functions of a run's configuration and a step."""
