"""What tests of several kinds share, and the programs that they run."""
