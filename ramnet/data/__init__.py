"""Data files of the project; read them with ``importlib.resources``."""
