"""Streets, the built-in world: driving videos from seeds, at any size, with exact labels."""
