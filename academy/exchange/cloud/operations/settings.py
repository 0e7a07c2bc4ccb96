"""Where the values of a configuration come from: environment over file over defaults.

What a file calls `path` in its section `[backend]`, the environment calls
ACADEMY_EXCHANGE__BACKEND__PATH. A name that is not known, in either, is an error that
names the nearest right one.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeAlias, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_settings import EnvSettingsSource, SettingsError

DELIMITER = "__"
PREFIX = f"ACADEMY_EXCHANGE{DELIMITER}"
"""Of each variable. The second underscore keeps it apart from what clients read, such
as ACADEMY_EXCHANGE_TOKEN."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_PASSWORD = re.compile(r"(?<=://)([^/@\s]*:)[^/@\s]+(?=@)")

Model = TypeVar("Model", bound=BaseModel)
Keys: TypeAlias = tuple[int | str, ...]


def variable(*keys: object) -> str:
    """Return the name of the variable that sets a key."""
    return PREFIX + DELIMITER.join(map(str, keys)).upper()


@dataclass
class Settings:
    """Values that were chosen, before they are checked.

    Attributes:
        path: the file, if there is one.
        from_file: what it says.
        from_environment: what the environment says.
    """

    path: Path | None = None
    from_file: dict[str, Any] = field(default_factory=dict)
    from_environment: dict[str, Any] = field(default_factory=dict)

    def read_file(self, path: str | Path) -> Self:
        """Add what a file says.

        Raises:
            ValueError: it is not TOML.
            FileNotFoundError: it does not exist.
        """
        self.path = Path(path)
        try:
            self.from_file = tomllib.loads(self.path.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not TOML: {error}") from error
        return self

    def read_environment(self, model: type[BaseModel]) -> Self:
        """Add what the environment says; an empty variable says nothing.

        Raises:
            ValueError: a variable has a section's values, and they are not JSON.
        """
        source = EnvSettingsSource(
            model,  # type: ignore[arg-type]  # of which it reads the fields only
            env_prefix=PREFIX,
            env_nested_delimiter=DELIMITER,
            env_ignore_empty=True,
        )
        try:
            self.from_environment = source()
        except SettingsError as error:
            raise ValueError(f"environment: {error}: {error.__cause__}") from error
        # The source passes over what it does not know.
        for name, value in os.environ.items():
            if name.upper().startswith(PREFIX) and value:
                rest = name[len(PREFIX) :]
                if not _holds(self.from_environment, (*rest.lower().split(DELIMITER),)):
                    self.from_environment[rest] = value
        return self

    def validate(self, model: type[Model]) -> Model:
        """Make the configuration.

        Raises:
            ValueError: a key or value is not known; the message names the key, the
                value and the nearest right ones.
        """
        try:
            return model.model_validate(_merged(self.from_file, self.from_environment))
        except ValidationError as error:
            words = "\n".join(self._problems(model, error))
            raise ValueError(words) from error

    def _problems(
        self, model: type[BaseModel], error: ValidationError
    ) -> Iterator[str]:
        of_file, of_environment = [], []
        for item in error.errors():
            if _holds(self.from_environment, item["loc"]):
                of_environment.append(_problem_of_variable(model, item))
            else:
                of_file.append(_problem_of_key(model, item))
        if of_file:
            yield f"{self.path}:"
            yield from of_file
        if of_environment:
            yield "environment:"
            yield from of_environment

    def describe(self, config: BaseModel) -> str:
        """Return a configuration made of these as TOML that says who chose what."""
        return "\n".join(self._lines(config, ())).strip()

    def _lines(
        self, section: BaseModel, path: Keys, chosen: bool = False
    ) -> Iterator[str]:
        """Yield the keys of a section, or those that were chosen, and its sections."""
        inner: list[tuple[Keys, BaseModel, bool]] = []
        values = section.model_dump(mode="json", exclude_unset=chosen)
        for key, value in values.items():
            here = (*path, key)
            if isinstance(attribute := getattr(section, key), BaseModel):
                inner.append((here, attribute, chosen))
            elif isinstance(attribute, dict):
                inner += [((*here, name), own, True) for name, own in attribute.items()]
            elif value is None:
                yield f"# {key} is not set"
            else:
                info = type(section).model_fields[key]
                is_default = attribute == info.get_default(call_default_factory=True)
                origin = self._origin(here) or ("default" if is_default else "derived")
                yield f"{key} = {_masked(_toml(value))}  # {origin}"
        for here, attribute, chosen in inner:
            yield f"\n[{'.'.join(map(_toml_key, here))}]"
            yield from self._lines(attribute, here, chosen)

    def _origin(self, path: Keys) -> str:
        if _holds(self.from_environment, path):
            return variable(*path)
        return str(self.path) if _holds(self.from_file, path) else ""


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = below | above
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _merged(below[key], above[key])
    return merged


def _holds(values: Any, path: Keys) -> bool:
    for key in path:
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True


def _toml(value: Any) -> str:
    """Write a value; TOML writes all but tables as JSON does."""
    if isinstance(value, dict):
        pairs = (f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _toml_key(key: int | str) -> str:
    """Write a part of a section's name."""
    return str(key) if _BARE.fullmatch(str(key)) else json.dumps(key)


def _masked(text: str) -> str:
    return _PASSWORD.sub(r"\1**********", text)


# --- words for what is wrong


def _problem_of_key(model: type[BaseModel], item: Any) -> str:
    path = item["loc"]
    key = ".".join(map(str, path))
    if item["type"] != "extra_forbidden":
        return f"  {key} = {_masked(repr(item['input']))}: {item['msg']}"
    known = list(_section(model, path[:-1]).model_fields)
    near = difflib.get_close_matches(str(path[-1]), known, 1)
    hint = f", did you mean {near[0]!r}?" if near else "."
    return f"  unknown key {key!r}{hint} Known here: {', '.join(known)}."


def _problem_of_variable(model: type[BaseModel], item: Any) -> str:
    name = variable(*item["loc"])
    if item["type"] != "extra_forbidden":
        return f"  {name} = {_masked(repr(item['input']))}: {item['msg']}"
    *section, _ = item["loc"]
    of_section = _section(model, (*section,)).model_fields if section else ()
    known = [variable(*path) for path in keys(model)]
    known += [variable(*section, key) for key in of_section]
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
    return f"  unknown variable {name}: {hint}"


def keys(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[Any]:
    """Yield the path of each key that is no section."""
    for name, info in model.model_fields.items():
        section = _model_in(info.annotation)
        if section is None or get_origin(info.annotation) is dict:
            yield (*path, name)
        else:
            yield from keys(section, (*path, name))


def _section(model: type[BaseModel], path: Keys) -> type[BaseModel]:
    for name in path:
        info = model.model_fields.get(str(name))
        # What is no field is a key of a table, whose values are what we look for.
        model = (info and _model_in(info.annotation)) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model that an annotation is, or is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
