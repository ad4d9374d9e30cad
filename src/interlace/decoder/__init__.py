"""The one place that knows how a family of models keeps its decoder layers."""
