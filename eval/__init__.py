"""Measuring what a model draws: generation, detectors, intervals, reports."""
