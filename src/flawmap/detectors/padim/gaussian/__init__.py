"""Gaussians of patch embeddings: moments, their factorisation, distances, leave-one-out. Pure functions on tensors."""
