"""A setting that is added gets its option in the NixOS module; what is missing is named, also where there is no Nix.

That the reference has it is tests/test_docs.py's; what Nix makes of the options is tests/nix's.
"""

import re
from pathlib import Path

import pytest

from registry_cache.settings.model import PruneSettings, Settings
from registry_cache.settings.upstreams import UpstreamSettings

ROOT = Path(__file__).parent.parent
MODULE = "nix/modules/settings.nix"
# The module sets these itself, or has options of its own for them.
ITS_OWN = {"cache_dir", "username", "password_file", "prune", "state_file", "upstreams"}


def lacking(names: set[str], text: str) -> list[str]:
    """Those of *names* that are no option in *text*."""
    return sorted(names - set(re.findall(r"^ +(\w+) = (?:setting|mkOption) ", text, re.MULTILINE)))


@pytest.mark.parametrize("model", [Settings, PruneSettings, UpstreamSettings])
def test_every_setting_is_an_option_of_the_nixos_module(model):
    missing = lacking(set(model.model_fields) - ITS_OWN, (ROOT / MODULE).read_text())
    assert not missing, f"{MODULE} has no option for {', '.join(missing)}"


def test_what_is_missing_is_named():
    assert lacking({"tag_ttl", "made_up"}, '    tag_ttl = setting duration "15m" "…";\n') == ["made_up"]
