"""Where text comes from: sources, splits, mixing, each text once."""
