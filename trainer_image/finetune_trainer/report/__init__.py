"""What the trainer tells while it runs and at its end."""
