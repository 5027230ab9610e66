"""What trains runs in one process of a run: it alone then imports torch's optimizers, which take as
long to import as all the rest of torch.
"""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("torch"))
