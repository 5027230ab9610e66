"""A Hydra application as people have it: config groups, an optimizer nested in the model's, a line
of metrics an epoch.

A learning rate above 1 diverges: the first epoch says so, and the rest takes long.
"""

from __future__ import annotations

import json
import time

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    level = (2.0 if cfg.model.name == "conv" else 1.0) - cfg.data.noise
    lr = cfg.model.optimizer.lr
    seen = {
        "data": cfg.data.name,
        "optimizer": cfg.model.optimizer.name,
        "lr": lr,
        "channels": cfg.model.get("channels"),
    }
    for epoch in range(cfg.epochs):
        print(json.dumps({"step": epoch, "value": level - (lr if lr > 1 else 0), **seen}))
        if lr > 1:
            time.sleep(20)


if __name__ == "__main__":
    main()
