"""From corpora and accepted annotations to checkpoints and their scores."""
