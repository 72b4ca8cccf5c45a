"""The default config as an `ml_collections.ConfigDict`, and configs to settings and back.

`configs/default.py` is the manual of this config. Defaults, ranges and meanings of all values stand
in the settings' dataclasses.
"""

from ml_collections import ConfigDict

from moecl_jax.runs.settings import Settings


def get_config(method: str = "moe_cl") -> ConfigDict:
    """The default config.

    Args:
      method: name of the method, or "package.module:Class"; the config has a section for the
        options of a method from outside too.

    Raises:
      UserError: there is no such method.
    """
    return to_config(Settings.from_mapping({"method": method}))


def to_config(settings: Settings) -> ConfigDict:
    """Settings as a config, which can be overridden."""
    return ConfigDict(settings.to_mapping())


def from_config(config: ConfigDict) -> Settings:
    """The settings that a config asks for.

    Raises:
      UserError: a key is unknown, or a value is not allowed.
    """
    return Settings.from_mapping(config.to_dict())
