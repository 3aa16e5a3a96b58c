"""The trained model as artifacts: written whole, reloaded and compared before they are published."""
