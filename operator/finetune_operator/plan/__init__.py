"""Decides: (job, settings, layout) -> TrainingPlan. Pure."""
