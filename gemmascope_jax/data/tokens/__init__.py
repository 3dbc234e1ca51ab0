"""Documents -> windows of tokens, in memory or on disk."""
