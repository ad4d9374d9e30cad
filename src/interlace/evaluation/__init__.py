"""Scores by VLMEvalKit on twelve benchmarks, and time to first token."""
