"""Checkpoints that can be trusted: complete or passed over, and exact to resume from."""
