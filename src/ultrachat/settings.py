"""What a person writes for a run: a YAML file, and NAME=VALUE on the command line; a mistake is one line.

    read_yaml(Path("configs/sample.yaml"))      # what it holds
    value_of("lora_rank=16")                    # 16: the value is read as YAML

Absent on purpose: which names there are; `launcher` and `training_run` know theirs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ultrachat.errors import Stop


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds. Raises Stop naming file and line when it cannot be read.

    Ours: configs are written by hand.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise Stop(f"{path}: cannot be read ({getattr(error, 'strerror', 'not UTF-8')})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2023-13-01
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise Stop(f"{where}: not YAML ({getattr(error, 'problem', error)})") from None


def value_of(setting: str) -> Any:
    """Return the value of "name=value", read as YAML (true, 3, [a, b]). Raises Stop when it is not readable.

    Ours: the command line and the file mean the same by the same letters.
    """
    try:
        return yaml.safe_load(setting.partition("=")[2])
    except (yaml.YAMLError, ValueError, RecursionError):
        raise Stop(f"--set {setting}: the value is not readable; quote it as YAML wants") from None
