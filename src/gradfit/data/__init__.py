"""Data: read, checked once at the door, split."""
