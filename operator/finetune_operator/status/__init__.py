"""Decides: snapshot -> status. Pure."""
