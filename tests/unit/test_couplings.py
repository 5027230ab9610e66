"""The resolvers for ``params``, in a process where user code does as it likes with OmegaConf's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from omegaconf import OmegaConf

from orchestrator.runner.child import resolvers


def _clear() -> None:
    # and not all of them, which other tests have need of
    OmegaConf.clear_resolver("linear_scaling")


def _replace() -> None:
    OmegaConf.register_new_resolver("linear_scaling", lambda *_: 0.0, replace=True)


@pytest.mark.parametrize("meddle", [lambda: None, _clear, _replace])
def test_the_resolvers_are_there_whatever_user_code_did_to_them(meddle: Callable[[], None]) -> None:
    resolvers.register()
    meddle()
    resolvers.register()
    config = OmegaConf.create(
        {"lr": "${linear_scaling:0.1,256,512}", "root": "${sqrt_scaling:0.1,256,1024}"}
    )
    assert (config.lr, config.root) == (0.2, 0.2)
