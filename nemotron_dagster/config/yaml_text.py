"""Write YAML that OmegaConf and PyYAML read alike: to one of them ``1e5`` is a number, to the other it is text."""

from __future__ import annotations

import re
from typing import Any

_NUMBER = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$")


def to_yaml(data: Any) -> str:
    """Plain data as YAML, keys in their order; text that either of them takes for a number is in quotes."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))
    return str(yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True))
