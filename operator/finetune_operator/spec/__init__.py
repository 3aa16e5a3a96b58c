"""What a person wrote -> FineTuneJob, or every reason why not. Pure: no clock, no environment, no API."""
