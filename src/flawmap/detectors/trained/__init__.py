"""Detectors that train a network on good images."""
