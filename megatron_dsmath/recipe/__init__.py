"""A recipe: pretraining, fine-tuning, export and evaluation as stages of existing commands, run in order."""
