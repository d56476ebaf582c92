"""What a run read, written down and proved from the .bin."""
