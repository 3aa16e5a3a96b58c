"""Losses on the validation data, before and after."""
