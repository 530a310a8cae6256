"""Networks that detectors train on good images: one module for each paper, with its losses, training step and score."""
