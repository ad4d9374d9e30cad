"""One thread for numerical libraries, here and in every process a test starts.

The workflow gives each job its own number of threads; results are bit-equal for an equal number
only, and two threads each would crowd two cores.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items):
    """Begin with the workflow's runs: they take minutes, and should not be what is left at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/workflow/test_smoke"))
