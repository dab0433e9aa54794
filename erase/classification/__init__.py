"""Unlearning for classifiers, on the same saliency mask, and the exact and certified systems beside it."""
