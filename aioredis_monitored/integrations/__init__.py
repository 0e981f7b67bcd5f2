"""Wiring for web frameworks."""
