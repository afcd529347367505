"""What a named entity is: words, windows, labels, spans. No torch, no Flask, no Redis."""
