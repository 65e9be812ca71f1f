"""State as a small key-value store: revisions, compare-and-set, watch, leases."""
