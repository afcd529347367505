"""A Label Studio ML backend that pre-annotates text with GNER and learns from what annotators accept."""
