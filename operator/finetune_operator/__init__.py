"""The operator: FineTuneJob in, Kubernetes objects and a status out."""
