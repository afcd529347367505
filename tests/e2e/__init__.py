"""A real Label Studio, a real browser and the backend as a user starts it."""
