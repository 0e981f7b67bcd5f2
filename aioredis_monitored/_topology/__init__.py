"""Which node of a cluster a call goes to."""
