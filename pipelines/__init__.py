"""All that knows one model family, and nothing else."""
