"""What the figures in the README come from: speed, and references to compare with."""
