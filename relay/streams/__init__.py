"""What runs: producers, the group commit, readers, and the registry of all that lives on this replica."""
