"""Checkpoints on a hub, their cards with the scores that are known."""
