"""torch for inference: checkpoints and decoding."""
