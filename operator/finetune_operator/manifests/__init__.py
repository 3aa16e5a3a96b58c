"""Builds: plan -> Kubernetes objects. Pure. One file per child kind and per policy."""
