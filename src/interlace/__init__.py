"""Prune decoder layers out of vision-language models and prove what that did."""

__version__ = "0.1.0"
