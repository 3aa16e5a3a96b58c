"""The contract between the person who writes a FineTuneJob, the operator and the trainer. Imports pydantic only."""
