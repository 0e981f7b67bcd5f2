"""Credentials that are issued for a time: obtained, renewed, and handed to every pool that uses them."""
