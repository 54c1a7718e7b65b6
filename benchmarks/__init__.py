"""Measurements behind the figures in the README: speed, and references to compare with."""
