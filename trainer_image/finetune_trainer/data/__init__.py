"""From a dataset source to tokenised rows with labels."""
