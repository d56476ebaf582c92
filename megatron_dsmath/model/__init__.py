"""THE DECODER: what it is made of, what it loses, and how its parameters are named."""
