"""What a command is: the table of commands, and the traits that are derived from it."""
