"""The checks of ``doctor``; ``examination`` runs them."""
