"""The objectives, each a thin builder of a TRL trainer."""
