"""What the rows of an evaluation say together, and how it is shown."""
