"""Gathers one immutable snapshot of what is."""
