"""Spectral curvature of neural networks: Kronecker factors, directional curvature, the Spectral Newton optimizer."""

__version__ = "0.1.0"
