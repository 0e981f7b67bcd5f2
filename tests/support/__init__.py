"""Helpers that tests of several kinds share, and programs that they run."""
