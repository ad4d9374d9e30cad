#!/bin/sh
# VLMEvalKit from PyPI asks for some 66 packages that none of the twelve benchmarks uses.
set -eu
pip install --no-deps ms-vlmeval==0.0.20
