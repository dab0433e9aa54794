"""Erase concepts from text-to-image diffusion models (SalUn, Fan et al., ICLR 2024)."""

__version__ = "0.1.0"
