"""Figures measured in one run on one machine, kept as JSON with the environment."""
