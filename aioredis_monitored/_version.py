"""The version: read by the build, and reported as the version of the instrumentation scope."""

__version__ = "0.1.0"
