"""Where settings come from: flags over environment (``REGISTRY_CACHE_…``) over a TOML file over the defaults.

The environment and the ``config.yml`` of a ``registry:2`` are understood too (:mod:`.registry2`), below our own.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from registry_cache.model.errors import SettingsError
from registry_cache.settings import registry2
from registry_cache.settings.access import AccessRule, LimitSettings, OidcSettings
from registry_cache.settings.model import Settings, credential_file
from registry_cache.settings.suggestions import suggestion, unknown_environment
from registry_cache.settings.upstreams import UpstreamSettings


def load_settings(
    config: Path | None = None, flags: Mapping[str, Any] | None = None, *, with_token: bool = True
) -> Settings:
    """Settings from *flags*, the environment, the file *config* (TOML, or a registry:2's YAML) and the defaults.

    Args:
        flags: by setting name; nested ones as a mapping (``{"prune": {"min_age": "7d"}}``); ``None`` is not set.
        with_token: an account needs its token. False for those who look at another process, whose unit has it.

    Raises:
        SettingsError: something is wrong; the text is one line for the operator.
    """
    mistakes, _ = unknown_environment(os.environ)
    if mistakes:
        raise SettingsError(mistakes[0])
    if config is not None and not os.access(config, os.R_OK):
        why = "this user may not read it" if os.access(config, os.F_OK) else "there is no such file, or it is hidden"
        raise SettingsError(f"--config: {str(config)!r}: {why}")
    if config is not None and not config.is_file():
        raise SettingsError(f"--config: {str(config)!r} is not a file")
    old = _of_registry2(config)
    is_toml = config is not None and not registry2.is_config(config)

    class Configured(Settings):
        model_config = SettingsConfigDict(toml_file=config if is_toml else None)
        needs_token = with_token

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            *sources: PydanticBaseSettingsSource,
            **named: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            flags, environment, file = Settings.settings_customise_sources(settings_cls, *sources, **named)
            return flags, environment, InitSettingsSource(settings_cls, old), file

    try:
        configured = Configured(**_without_none(flags or {}))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"--config: {str(config)!r} is not TOML: {error}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"--config: {str(config)!r} is not TOML: it is not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise SettingsError(f"--config: {str(config)!r} is not TOML: it is nested too deep") from error
    except ValidationError as error:
        raise SettingsError(_one_line(error) + (_place(error, config) if is_toml else "")) from error
    # The subclass exists only to name the sources; callers get the plain class.
    return Settings.model_construct(configured.model_fields_set, **dict(configured))


def _of_registry2(config: Path | None) -> dict[str, Any]:
    """What a registry:2's environment and ``config.yml`` set, by the names of our settings."""
    old = _translation(config, os.environ)
    # The unit's own credential is ours, and ours wins.
    if old.password is None or credential_file() is not None:
        return dict(old.values)
    return {**old.values, "password_file": registry2.password_file(old.password)}


def _translation(config: Path | None, environ: Mapping[str, str]) -> registry2.Translation:
    return registry2.translate(config if config is not None and registry2.is_config(config) else None, environ)


def not_honoured(config: Path | None, environ: Mapping[str, str]) -> list[str]:
    """One line for each setting of a registry:2 that does nothing here, and why.

    Raises:
        SettingsError: it would be unsafe to go on without one of them; one line for each.
    """
    old = _translation(config, environ)
    if old.refusals:
        raise SettingsError("\n".join(old.refusals))
    return old.notes


def as_running(settings: Settings, running: Mapping[str, Any], folder: str = "") -> Settings:
    """*settings* with the values that a running service told of itself (``Settings.model_dump(mode="json")``).

    What it was started with counts, not what this command's environment says; ``prune`` is this command's own.

    Args:
        folder: in which it runs, and relative paths of its begin.
    """
    values = {name: value for name, value in running.items() if name in Settings.model_fields and name != "prune"}
    values["upstreams"] = {
        name: UpstreamSettings.model_construct(None, **_with_paths(table, folder))
        for name, table in (values.get("upstreams") or {}).items()
    }
    values["access"] = [AccessRule.model_construct(None, **table) for table in values.get("access") or []]
    values["limits"] = [LimitSettings.model_construct(None, **table) for table in values.get("limits") or []]
    values["oidc"] = {
        name: OidcSettings.model_construct(None, **_with_paths(table, folder))
        for name, table in (values.get("oidc") or {}).items()
    }
    values = _with_paths(values, folder)
    return settings.model_copy(update=values)


def _is_path(annotation: object) -> bool:
    return annotation is Path or any(map(_is_path, get_args(annotation)))


_PATHS = frozenset(
    name
    for model in (Settings, UpstreamSettings, OidcSettings)
    for name, field in model.model_fields.items()
    if _is_path(field.annotation)
)


def _with_paths(values: Mapping[str, Any], folder: str) -> dict[str, Any]:
    return {
        name: Path(folder, value) if name in _PATHS and value is not None else value for name, value in values.items()
    }


def _without_none(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_none(value) if isinstance(value, Mapping) else value
        for name, value in flags.items()
        if value is not None
    }


def _one_line(error: ValidationError) -> str:
    """The first error in one line: the setting, the value, what is allowed."""
    # A default that is made from another value is not made where something is wrong, which is no mistake of its own.
    first, *more = [one for one in error.errors(include_url=False) if one["type"] != "default_factory_not_called"]
    name = _setting_name([str(part) for part in first["loc"]])
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"no such setting{suggestion(name)}"
    elif isinstance(first["input"], Mapping):
        meant = suggestion(f"{name}S") if first["type"] != "value_error" else ""
        message = f"{message.replace('Input should be', 'a table: allowed is')}{meant}"
    elif name:
        # In the words that our own checks have. A URL may carry a password.
        value = re.sub(r"://[^/@]*@", "://…@", repr(first["input"]))
        message = f"{value}: {message.replace('Input should be', 'allowed is')}"
    also = f" (and {len(more)} more)" if more else ""
    return f"{name}: {message}{also}" if name else f"{message}{also}"


def _setting_name(parts: list[str]) -> str:
    """As the environment has it; a registry's name stays as it is."""
    if len(parts) > 1 and parts[0] == "upstreams":
        return "__".join([parts[0].upper(), parts[1], *(part.upper() for part in parts[2:])])
    return "__".join(parts).upper()


def _place(error: ValidationError, config: Path | None) -> str:
    """`` (in FILE)`` where what is wrong is a key of that file; flags and the environment win over it."""
    if config is None:
        return ""
    place: Any = tomllib.loads(config.read_text(encoding="utf-8"))
    first = error.errors(include_url=False)[0]
    for part in first["loc"]:
        place = place.get(part) if isinstance(place, dict) else None
    return f" (in {config})" if place is not None and place == first["input"] else ""
