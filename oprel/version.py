"""Oprel's version: below every room, so that all may tell it."""

__all__ = ["__version__"]

__version__ = "1.0.0"
