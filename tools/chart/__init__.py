"""What of the Helm chart is generated."""
