"""The audit's probes: whether the concept is gone, stays gone, and whether anything else was touched."""
