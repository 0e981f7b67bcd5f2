"""What is known about the nodes of a cluster or a Sentinel set-up, without I/O."""
