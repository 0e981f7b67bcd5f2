"""The table of commands, and the traits derived from it."""
