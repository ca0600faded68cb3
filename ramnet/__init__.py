"""An organisation's list of allowed container registries, enforced where images are pulled."""

__version__ = "0.1.0"
