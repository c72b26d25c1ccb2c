"""Measuring runs, comparing methods on many subjects, and asking people."""
