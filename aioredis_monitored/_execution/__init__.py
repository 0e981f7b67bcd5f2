"""How a call is executed: on which connection, in how many attempts, and what becomes of its reply."""
