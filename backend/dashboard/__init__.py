"""A read-only page over the running backend."""
