"""The trainer: runs a TrainingPlan. Never talks to the Kubernetes API."""
