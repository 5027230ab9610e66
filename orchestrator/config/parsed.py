"""Hydra's loader, made to parse a file and to compose a choice of files once per process.

Results are kept as bytes, and each caller gets a copy of its own, because Hydra merges into what it
is given. A file is read every time and its content is part of the key, so a file that changes is
parsed again.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Hashable
from copy import copy
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig

_MOST = 512
_kept: OrderedDict[Hashable, bytes] = OrderedDict()


def _once(key: Hashable, make: Callable[[], Any]) -> Any:
    """Returns a copy of what `make` returned for this `key` the first time; the `_MOST` keys used
    last are kept.
    """
    if key not in _kept:
        _kept[key] = pickle.dumps(make())
        if len(_kept) > _MOST:
            _kept.popitem(last=False)
    _kept.move_to_end(key)
    return pickle.loads(_kept[key])


class ParsedOnce(ConfigLoaderImpl):
    """Hydra's loader, which remembers parsed files and compositions."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.repository = _Repository(config_search_path)
        self.composed: list[ResultDefault] = []
        """What was composed last, in order."""

    def _compose_config_from_defaults_list(
        self, defaults: list[ResultDefault], repo: IConfigRepository
    ) -> DictConfig:
        self.composed = defaults
        repository: _Repository = repo.delegate  # type: ignore[attr-defined]
        files = tuple((*vars(d).values(), repository.keys.get(d.config_path)) for d in defaults)
        config: DictConfig = _once(
            files,
            lambda: super(ParsedOnce, self)._compose_config_from_defaults_list(defaults, repo),
        )
        return config


class _Repository(ConfigRepository):
    """Hydra's sources; `keys` identifies what was loaded from them, a file by its content too, by
    the path in the config.
    """

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.keys: dict[str | None, Hashable] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Repository:
        """Hydra copies it for every composition, which may replace the sources; what they hold is
        the same for all.
        """
        other = copy(self)
        other.sources, other.keys = list(self.sources), {}
        return other

    def load_config(self, config_path: str) -> ConfigResult | None:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None:
            return None
        # Not by class: Hydra loads its plugins a second time, as other modules.
        content: Hashable = None
        if source.scheme() == "file":
            name = source._normalize_file_name(config_path)
            content = (Path(source.path) / name).read_bytes()
        elif not (source.scheme() == "structured" or source.path.startswith("hydra.")):
            content = object()  # a package of the user's may change
        key = (source.scheme(), source.provider, source.path, config_path, content)
        self.keys[config_path] = key
        found: ConfigResult = _once(key, lambda: super(_Repository, self).load_config(config_path))
        return found
