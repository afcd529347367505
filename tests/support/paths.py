"""Where the project's own files are, and the corpora beside it."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "samples"  # example tasks and label configs, part of the project
ARTIFACTS = ROOT / "artifacts" / "e2e"  # logs and screenshots of the end-to-end tests
CORPORA = ROOT.parent / "shared" / "data" / "ner"  # labelled corpora; not part of the project
