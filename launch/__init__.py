"""Starting the binaries on one machine or many."""
