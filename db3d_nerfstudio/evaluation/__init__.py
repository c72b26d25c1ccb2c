"""Measuring a finished run: fidelity against ground truth, and the judge that reads a picture."""
