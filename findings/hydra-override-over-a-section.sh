#!/bin/bash
# Guess: `++model=VALUE` sets model to VALUE, whatever was there. Behaviour: over a section a mapping is merged into it, a list
# is an error ("Cannot merge DictConfig with ListConfig") although a plain value replaces the section; `~model` before it helps.
# Who meets it: programs that print overrides to reproduce a run, and whoever pastes them.
# hydra-core 1.3.8 with omegaconf 2.3.1, as seen:
#   ++model={width: 8}        {'model': {'kind': 'mlp', 'width': 8}}
#   ++model=plain             {'model': 'plain'}
#   ++model=[1]               ConfigCompositionException ... Cannot merge DictConfig with ListConfig
#   ~model ++model=[1]        {'model': [1]}
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q hydra-core==1.3.8 omegaconf==2.3.1
mkdir "$place/conf"
printf 'model: {kind: mlp}\n' > "$place/conf/config.yaml"
"$place/venv/bin/python" - "$place/conf" <<'PYTHON'
import sys

from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf


def composed(*overrides):
    got = OmegaConf.to_container(compose("config", list(overrides)))
    print(*overrides, got, sep="\t")
    return got


with initialize_config_dir(sys.argv[1], version_base=None):
    assert composed("++model={width: 8}") == {"model": {"kind": "mlp", "width": 8}}
    assert composed("++model=plain") == {"model": "plain"}
    assert composed("~model", "++model=[1]") == {"model": [1]}
    assert composed("~model", "++model={width: 8}") == {"model": {"width": 8}}
    try:
        composed("++model=[1]")
    except ConfigCompositionException as error:
        said = f"{error}: {error.__cause__}"
        print("++model=[1]", " ".join(said.split()), sep="\t")
        assert "Cannot merge DictConfig with ListConfig" in said
    else:
        raise AssertionError("a list replaces a section now")
PYTHON
