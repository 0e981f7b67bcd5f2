"""Integrations with web frameworks, a module for each; only an explicit import of one loads its framework."""
