"""From tasks to predictions: cache, batches, the model thread."""
