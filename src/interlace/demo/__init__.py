"""The embedded demo: data, benchmarks, base models and a grader, all made from a seed.

Everything here is a stand-in and says so. Only the demo's own rules import this package.
"""
