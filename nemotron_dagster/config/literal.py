"""Config keys whose ``${...}`` belong to somebody else: ``[step] literal`` of a manifest names them.

They are text that the step writes to a file, to be resolved by whoever reads that file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def set_apart(config: Any, keys: Sequence[str]) -> dict[str, Any]:
    """Take the values of ``keys`` out of an OmegaConf config, unresolved; null holds their places."""
    from omegaconf import OmegaConf

    if not any(key in config for key in keys):
        return {}
    plain: Any = OmegaConf.to_container(config, resolve=False)
    kept = {key: plain[key] for key in keys if key in plain}
    for key in kept:
        OmegaConf.update(config, key, None, merge=False, force_add=True)
    return kept


def put_back(train: dict[str, Any], kept: Mapping[str, Any]) -> None:
    """Put what ``set_apart`` took into the resolved config, in its old place."""
    train.update(kept)
