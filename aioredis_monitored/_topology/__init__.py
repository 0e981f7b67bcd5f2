"""What is known about several servers that belong together, without I/O: slots and commands of a cluster, Sentinels."""
