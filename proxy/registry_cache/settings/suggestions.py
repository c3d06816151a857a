"""Names that are no setting, and what was probably meant by them."""

import difflib
import re
from collections.abc import Mapping

from registry_cache.settings.model import ENV_PREFIX, PruneSettings, Settings
from registry_cache.settings.upstreams import UpstreamSettings

# UPSTREAMS__ghcr.io__TAG_TTL
_TABLE = re.compile(r"(?P<registry>UPSTREAMS__.+?)__(?P<key>.+)", re.IGNORECASE)


def setting_names() -> list[str]:
    """Every setting as the environment has it, without the prefix: ``TAG_TTL``, ``PRUNE__KEEP``."""
    names = [
        name.upper() for name in Settings.model_fields if name not in ("prune", "upstreams", "access", "limits", "oidc")
    ]
    return names + [f"PRUNE__{name.upper()}" for name in PruneSettings.model_fields] + ["UPSTREAMS"]


def suggestion(name: str, closeness: float = 0.6) -> str:
    """``: did you mean …?`` for a name that is no setting; empty when none resembles it.

    Args:
        closeness: how much it has to resemble one, from 0 to 1 (:func:`difflib.get_close_matches`).
    """
    if table := _TABLE.fullmatch(name):
        of_table = [field.upper() for field in UpstreamSettings.model_fields]
        near = difflib.get_close_matches(table["key"].upper(), of_table, n=1, cutoff=closeness)
        return f": did you mean {table['registry']}__{near[0]}?" if near else ""
    wanted, known = name.upper().replace("-", "_"), setting_names()
    # A key of [prune] that stands outside it is meant as well.
    by_key = {known_name.removeprefix("PRUNE__"): known_name for known_name in reversed(known)}
    matches = difflib.get_close_matches(wanted, [*known, *by_key], n=1, cutoff=closeness)
    return f": did you mean {by_key.get(matches[0], matches[0])}?" if matches else ""


# What Kubernetes sets for a Service that is named registry-cache, or registry-cache-something.
_KUBERNETES = re.compile(r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_\w+)?)")
_MISTYPED = 0.8


def unknown_environment(environ: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """``REGISTRY_CACHE_…`` variables that are no setting: one line for each.

    Returns:
        those that resemble a setting, which are mistakes; and the others, which may be somebody else's.
    """
    known = {*setting_names(), "CONFIG"}
    mistakes: list[str] = []
    others: list[str] = []
    for variable in sorted(environ):
        name = variable.removeprefix(ENV_PREFIX)
        if not variable.startswith(ENV_PREFIX) or name in known or _KUBERNETES.fullmatch(name):
            continue
        if _TABLE.fullmatch(name):
            continue  # whose keys the settings know, and refuse
        meant = suggestion(name, _MISTYPED)
        (mistakes if meant else others).append(f"{variable} is not a setting{meant}")
    return mistakes, others
