"""A model answers questions: programs contained, answers graded, scores beside the paper's."""
