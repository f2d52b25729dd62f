"""What the peers take from a fact: its ten numbers."""

NUMBERS = tuple(f"x{i}" for i in range(10))
