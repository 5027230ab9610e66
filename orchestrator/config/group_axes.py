"""The user's config groups that fill a section of params, and what each option of such an axis puts
there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from orchestrator.config.loader import SHIPPED_IN_PARAMS, Loader
from orchestrator.config.overrides import Word, read_words
from orchestrator.config.schema import SECTIONS
from orchestrator.config.sections import check_sections
from orchestrator.config.space import Group
from orchestrator.errors import ConfigError
from orchestrator.model import Axis


def read_with_groups(loader: Loader, texts: Sequence[str]) -> list[Word]:
    """Returns the words, and takes from the loader's groups those that are none here.

    Raises:
        ConfigError: as `read_words`.
    """
    words = read_words(texts, loader.groups)
    for group in SHIPPED_IN_PARAMS:
        named = [word for word in words if word.role == "group" and word.path == group]
        if not named or any(word.text.startswith("+") for word in named) or _own(loader, group):
            continue
        chosen = [word.text for word in words if word.role == "group" and not word.of_user]
        if not loader.lists(group, chosen):
            loader.groups -= {group}
            words = read_words(texts, loader.groups)
    return words


def _own(loader: Loader, group: str) -> list[str]:
    """The options of a group of ours that are the user's."""
    return [option for option in loader.options(group) if option not in loader.shipped(group)]


def groups_in_params(loader: Loader, chosen: Sequence[str], base: DictConfig) -> dict[str, Group]:
    """The user's config groups that fill a section of params, by its path."""
    choices: Mapping[str, Any] = base.hydra.runtime.choices
    listed = {str(key): str(key).split("@")[0] for key in choices}
    typed = {word.split("=", 1)[0] for word in chosen}
    candidates = [
        (f"+{key}" if f"+{key}" in typed else key, group, choices[key])
        for key, group in listed.items()
    ]
    candidates += [
        (f"+{group}", group, None)
        for group in loader.groups
        if group not in listed.values() and (group not in SHIPPED_IN_PARAMS or _own(loader, group))
    ]
    candidates = [
        c for c in candidates if c[1].split("/")[0] not in (*SECTIONS, "experiment", "hydra")
    ]
    packages = loader.packages(chosen) if candidates else {}
    groups: dict[str, Group] = {}
    for key, group, option in candidates:
        options = loader.options(group)
        if group in SHIPPED_IN_PARAMS and (own := _own(loader, group)):
            # A group of the user's that fills another place is not ours with more options.
            ours = loader.header_package(group, loader.shipped(group))
            options = options if loader.header_package(group, own) == ours else own
        package = (
            packages.get(key.lstrip("+"))
            or (key.split("@")[1] if "@" in key else None)
            or loader.header_package(group, options)
        )
        if options and package is not None and package.startswith("params."):
            groups.setdefault(package.removeprefix("params."), Group(key, tuple(options), option))
    return groups


def contents_of(
    loader: Loader, axis: Axis, chosen: Sequence[str], forwarded: Sequence[str]
) -> tuple[Any, ...]:
    """What each option of an axis puts in its place in params, with the plain values of the command
    line in it.

    Raises:
        ConfigError: an option cannot be composed with them, or also differs from another one
            elsewhere in the config.
    """
    contents, first = [], None
    for option in axis.values:
        choice = f"{axis.group}={option}"
        key = choice.lstrip("+")
        others = [
            word for word in chosen if word.split("=", 1)[0].lstrip("+") != key.split("=", 1)[0]
        ]
        try:
            whole: Any = OmegaConf.to_container(
                loader.load([*others, choice, *forwarded]), resolve=False
            )
        except ConfigError as error:
            raise ConfigError(
                _not_in_option(key, axis.path, str(error)) or f"{key}: {error}"
            ) from error
        del whole["hydra"]
        check_sections(whole, loader.groups)
        contents.append(_taken_out(whole["params"], axis.path))
        first = whole if first is None else first
        if (other := _first_difference(first, whole)) is not None:
            raise ConfigError(
                f"{key}: also differs from {axis.group.lstrip('+')}={axis.values[0]} in {other}, "
                f"but the axis stands for params.{axis.path} alone; keep everything that an "
                "option sets in that section"
            )
    return tuple(contents)


def _not_in_option(choice: str, path: str, message: str) -> str | None:
    """Rewords Hydra's error about a plain value for which an option has no place; None for any
    other error.
    """
    found = re.match(
        rf"Could not (override|delete from config\.) '(params\.{re.escape(path)}\.(\S+))'", message
    )
    if found is None:
        return None
    inside = f"{path}.{found[3]}"
    how = f"; to give it to every option write +{inside}=…" if found[1] == "override" else ""
    return f"{inside}: {choice} has no {found[3]}{how}"


def _taken_out(params: Any, path: str) -> Any:
    *above, last = path.split(".")
    for part in above:
        params = params.get(part, {})
    return params.pop(last, {})


def _first_difference(a: Any, b: Any, above: str = "") -> str | None:
    """The path of the first difference between nested mappings, None where there is none."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys([*a, *b]):
            path = f"{above}.{key}" if above else str(key)
            if key not in a or key not in b:
                return path
            if (found := _first_difference(a[key], b[key], path)) is not None:
                return found
        return None
    return None if repr(a) == repr(b) else above
