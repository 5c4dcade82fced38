"""The version of edge."""

__version__ = "0.2.0"
