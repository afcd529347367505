"""The names of a saved adapter's two files, which are PEFT's. No torch."""

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
