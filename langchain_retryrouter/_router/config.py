"""Routers from strings and files: `RetryRouter.from_config`, `to_config`, and ping.

A file says what plain data can say: models as "provider:model", numbers, and the names
of environment variables that have the keys. Every problem of a file is reported with
its line. A key itself is refused, since files are committed, copied and logged.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from langchain_core.language_models.chat_models import BaseChatModel
from pydantic import AliasChoices, BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from langchain_retryrouter._providers.integrations import (
    integration_of,
    provider_string,
)
from langchain_retryrouter._router.models import init_model
from langchain_retryrouter._router.route import Route, router_scope
from langchain_retryrouter._secrets import (
    SHORTEST_SECRET,
    has_key,
    hide_keys,
    nearest,
    redact_text,
    shown,
)
from langchain_retryrouter.circuit_breaker import CircuitBreakerSettings
from langchain_retryrouter.failures import FailureAction, FailureKind
from langchain_retryrouter.policy import RetryBudget, RetryPolicy
from langchain_retryrouter.rate_limits import RateLimit
from langchain_retryrouter.spend_limits import SpendLimit
from langchain_retryrouter.stores import as_store

Place: TypeAlias = tuple[str | int, ...]
"""Where something is in a file, such as `("routes", 0, "weight")`."""
Lines: TypeAlias = dict[Place, int]
Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]

_M = TypeVar("_M", bound=BaseModel)

_OBJECTS: Final = frozenset(
    {"accept", "breaker", "cache", "callbacks", "clock", "custom_get_token_ids"}
    | {"api_key_function", "rate_limiter"}
)
"""Fields that plain data cannot express."""
_FILLED_IN: Final = frozenset({"pool_id", "profile", "source"})
"""Fields that the router or LangChain fills in."""
_TABLES: Final[Mapping[str, Callable[..., Any]]] = {
    "retry_policy": RetryPolicy,
    "budget": RetryBudget,
    "rate_limit": RateLimit,
    "spend_limit": SpendLimit,
}
_ENV: Final = "_env"
_SECRET: Final = re.compile(
    r"(?i)(?:^|[_-])(?:(?:api|secret|access|private|subscription)[_-]?keys?|secret|token"
    r"|password|passwd|credentials|authorization|cookie)$|access[_-]key"
)
_STEP: Final = re.compile(r"[\s,:]*")  # Between the parts of valid JSON.
_NONE: Final = object()
_POOL: Final = ("api_keys", "base_urls")
_SOURCE: Final = frozenset(
    f"{name}{end}"
    for name in ("model", "params", "options", "api_key", *_POOL)
    for end in ("", _ENV)
)
"""The keys of a route's table that may name environment variables."""
# Fields that a router or LangChain changes.
_MADE: Final = frozenset({"max_retries", "metadata", "profile", "rate_limit"})
_OF_SPEC: Final = frozenset({"model", "model_name", "model_id"})
# Whose models are made by functions with parameters of their own.
_OWN_PARAMS: Final = frozenset({"huggingface", "langsmith"})


# --- files ----------------------------------------------------------------------------


class _Config:
    """The data of a file, and the problems that are found in it."""

    def __init__(self, source: Source) -> None:
        self._problems: list[tuple[int, str, Place]] = []
        self.shared: dict[Any, tuple[Any, Any]] = {}  # Objects, by their names.
        # Where an object was written, by its `id`, and whether with a name.
        self.written: dict[int, tuple[Place, bool]] = {}
        self.from_variables: set[str] = set()  # Texts that no message shows.
        self._lines: dict[tuple[str, ...], int] = {}
        self.name = "the config"
        if isinstance(source, Mapping):
            self.data: Any = source
            return
        self.name = os.fspath(source)
        kind = Path(self.name).suffix.lower()
        if kind not in _READERS:
            msg = (
                f"a config must be a mapping or a file that ends in"
                f" {', '.join(_READERS)}, not {self.name!r}"
            )
            raise ValueError(msg)
        try:
            text = Path(self.name).read_text(encoding="utf-8-sig")
            self.data, lines = _READERS[kind](text)
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            msg = f"{self.name}:{line}: must be UTF-8: {error}"
            raise ValueError(msg) from error
        except _SyntaxError as error:
            msg = f"{self.name}:{error.args[0]}: {error.args[1]}"
            raise ValueError(hide_keys(msg)) from error.__cause__
        except RecursionError as error:
            msg = f"{self.name}: is nested too deeply"
            raise ValueError(msg) from error
        except ValueError as error:  # A number or a date that does not exist.
            msg = f"{self.name}: {error}"
            raise ValueError(msg) from error
        self._lines = {tuple(map(str, at)): line for at, line in lines.items()}

    def problem(self, place: Place, text: str) -> None:
        """Note what is wrong at a place, with its line, or that of what is around."""
        around = (tuple(map(str, place[:n])) for n in range(len(place), -1, -1))
        line = next((self._lines[at] for at in around if at in self._lines), 0)
        before = f"{self.name}:{line}: " if line else f"{self.name}: "
        where = f"{_written(place)}: " if place else ""
        # A key may stand for a name, which messages show.
        self._problems.append((line, hide_keys(f"{before}{where}{text}"), place))

    def must_be(self, what: str, given: Any, *place: str | int) -> None:
        """Note that something else is given, without its content: it may be a key."""
        kind = "None" if given is None else type(given).__name__
        self.problem(place, f"must be {what}, not {kind}")

    def is_wrong(self, *place: str | int) -> bool:
        """Whether a problem was found there or below."""
        return any(at[: len(place)] == place for *_, at in self._problems)

    def check(self) -> None:
        """Raise one error for all problems so far, if there are some."""
        if self._problems:
            lines = [text for _, text, _ in sorted(self._problems, key=lambda p: p[0])]
            raise ValueError("\n".join(dict.fromkeys(lines)))

    def at(self, place: Place, *field: str | int) -> Place:
        """Where the data has a field of what is at `place`, or what is around it.

        A model's argument is in `params`, and what a variable says in `NAME_env`.
        """
        for step in field:
            names = (step, f"{step}{_ENV}")
            ways: list[Place] = [(*place, "params", name) for name in names]
            ways += [(*place, name) for name in names]
            known = [way for way in ways if self._has(way)]
            if not known:
                break
            place = known[0]
        return place

    def _has(self, place: Place) -> bool:
        value = self.data
        for step in place:
            try:
                value = value[step]
            except (LookupError, TypeError):
                return False
        return True

    @contextlib.contextmanager
    def noting(
        self, place: Place, *field: str, secrets: Iterable[str] = ()
    ) -> Iterator[None]:
        """Note what is raised inside as problems, without the secrets and variables.

        Pydantic names the field at `place`, and so do our own errors, by their first
        word; other problems are those of `field`.
        """
        hidden = {*secrets, *self.from_variables}
        try:
            yield
        except ValidationError as error:
            for one in error.errors(include_url=False):
                if one["type"] == "missing" and one["loc"] == ("routes",):
                    continue  # They were left out, since they have problems.
                here = self.at(place, *one["loc"])
                text = redact_text(hidden, one["msg"]).removeprefix("Value error, ")
                if text == one["msg"] and one["type"] != "missing":  # Pydantic's own.
                    text = f"{text}, not {shown(one['input'])}"
                if here == place and one["loc"]:
                    text = f"{'.'.join(map(str, one['loc']))}: {text}"
                self.problem(here, text)
        except Exception as error:  # A provider's class raises what it likes.
            at = self.at(place, str(error).partition(" ")[0])
            at = self.at(place, *field) if at == place else at
            if isinstance(error, ImportError):
                error.msg = f"{self.name}: {_written(at)}: {error}"
                raise
            text = redact_text(hidden, str(error))
            if type(error) not in {ValueError, TypeError}:
                text = f"{type(error).__name__}: {text}"
            self.problem(at, text)


class _SyntaxError(Exception):
    """A line, and what is wrong there."""


def _walk(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Data, and all data in it, with their places."""
    yield place, value
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for step, item in items:
        yield from _walk(item, (*place, step))


def _written(place: Place) -> str:
    parts = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return "".join(parts).removeprefix(".")


def _read_toml(text: str) -> tuple[Any, Lines]:
    # Not `splitlines`: U+2028 and others end no line of a file.
    written = text.removesuffix("\n").split("\n")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise _SyntaxError(line[1] if line else len(written), error) from error
    # tomllib names no lines. But each statement of a file is a file as well.
    lines: Lines = {(): 1}
    tables = Counter[Place]()  # How many there are by now in an array of tables.
    table: Place = ()  # That of the last header.
    begin = 0
    for end in range(1, len(written) + 1):
        try:
            part = tomllib.loads("\n".join(written[begin:end]))
        except tomllib.TOMLDecodeError:
            continue  # It goes on in the next line.
        if written[begin].lstrip().startswith("["):
            table = ()
            while part:
                [(name, part)] = part.items()
                table = (*table, name)
                if isinstance(part, list):
                    tables[table] += 1
                    part = {}
                lines.setdefault(table, begin + 1)
                if table in tables:
                    table = (*table, tables[table] - 1)
                    lines.setdefault(table, begin + 1)
        for place, _ in _walk(part):
            here = (*table, *place)
            if here not in lines:
                # Within an array or table of several lines, a key is there once.
                key = rf"[\s,{{\"']{re.escape(str(place[-1]))}[\"']?\s*="
                rows = range(begin, end)
                inside = [n for n in rows if re.search(key, f" {written[n]}")]
                lines[here] = (inside[0] if len(inside) == 1 else begin) + 1
        begin = end
    return data, lines


def _read_json(text: str) -> tuple[Any, Lines]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise _SyntaxError(error.lineno, error.msg) from error
    decode = json.JSONDecoder().raw_decode
    lines: Lines = {(): 1}

    def skip(at: int) -> int:
        step = _STEP.match(text, at)
        return step.end() if step else at

    def walk(at: int, place: Place) -> int:
        """The end of the value that begins there."""
        if text[at] not in "{[":
            return decode(text, at)[1]
        is_object, count, at = text[at] == "{", 0, skip(at + 1)
        while text[at] not in "}]":
            line, step = text.count("\n", 0, at) + 1, count
            if is_object:
                step, at = decode(text, at)
            if (here := (*place, step)) in lines:
                raise _SyntaxError(line, f"{_written(here)} is given twice")
            lines[here] = line
            count, at = count + 1, skip(walk(skip(at), here))
        return at + 1

    walk(skip(0), ())
    return data, lines


def _read_yaml(text: str) -> tuple[Any, Lines]:
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError as error:
        msg = "YAML files need PyYAML: pip install PyYAML"
        raise ImportError(msg) from error

    def line_of(mark: Any) -> int:
        # Not `mark.line`, which counts U+2028 and others as ends of lines.
        return text.count("\n", 0, mark.index) + 1

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or error
        raise _SyntaxError(line_of(mark) if mark else 1, said) from error
    lines: Lines = {(): 1}

    def walk(node: Any, place: Place) -> None:
        is_table = isinstance(node, yaml.MappingNode)
        items = node.value if isinstance(node, yaml.CollectionNode) else ()
        for index, item in enumerate(items):
            key, value = item if is_table else (item, item)
            here = (*place, key.value if is_table else index)
            line = line_of(key.start_mark)
            if here in lines:  # PyYAML takes the last of equal keys.
                raise _SyntaxError(line, f"{_written(here)} is given twice")
            lines[here] = line
            walk(value, here)

    walk(root, ())
    return data, lines


_READERS: Final = {
    ".toml": _read_toml,
    ".json": _read_json,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
}


# --- reading --------------------------------------------------------------------------


def from_config(cls: type[_M], source: Source, fields: Mapping[str, Any]) -> _M:
    """A router of class `cls`; see `RetryRouter.from_config`."""
    config = _Config(source)
    if not isinstance(config.data, Mapping):
        config.must_be("a table with `routes`", config.data)
        config.check()
    given = _resolve(config, config.data, cls.model_fields, ())
    for name in given.keys() & fields.keys():
        config.problem(
            (name,), "is also given as an argument: remove it from the config"
        )
    tables = given.pop("routes", None)
    if not isinstance(tables, Sequence) or isinstance(tables, str) or not tables:
        what = "a list of 'provider:model' strings or tables, at least one"
        config.must_be(what, tables, "routes")
        tables = ()
    routes = _routes_of(config, tables)
    given = {n: v for n, v in given.items() if not config.is_wrong(*config.at((), n))}
    if "store" in given:
        with config.noting((), "store"):
            given["store"] = as_store(given.pop("store"))
    if not config.is_wrong():
        # What a store does not tell.
        source = {n: v for n, v in config.data.items() if n.startswith("store")}
        given |= {"routes": routes, "source": source}
    with config.noting(()):  # Without routes, to find what else is wrong.
        made = cls(**{**fields, **given})
        if not config.is_wrong():
            return made
    config.check()
    raise AssertionError


def _resolve(
    config: _Config, table: Mapping[str, Any], known: Iterable[str], place: Place
) -> dict[str, Any]:
    """A table with the values of environment variables, and objects for its tables."""
    names = {name for name in known if name not in _OBJECTS | _FILLED_IN}
    given = {}
    for name, value in table.items():
        here = (*place, name)
        plain = name.removesuffix(_ENV) if isinstance(name, str) else name
        if not place and str(name).startswith("x-"):
            _refuse_secrets(config, value, here)  # A place for YAML's anchors.
        elif name in _OBJECTS and name in known:
            config.problem(here, "cannot be given in a config: build it in code")
        elif name == "routes" and name in names:
            given[name] = value  # Its tables are read one by one.
        elif name in names:
            given[name] = _resolve_value(config, name, value, here)
        elif plain not in names:
            advice = nearest(name, names)
            for other, cls in _TABLES.items():
                if name in inspect.signature(cls).parameters:
                    advice = f"; it belongs into the table {other!r}"
                    break
            if place:
                advice += "; arguments of the model go into 'params'"
            config.problem(here, f"unknown key{advice}")
        elif plain in _POOL and not isinstance(value, list | tuple):
            config.problem(here, "must be a list of environment variables' names")
        elif plain == "api_key" and isinstance(value, list | tuple):
            what = "must be the name of one environment variable, not a list"
            config.problem(here, f"{what}; for several keys, write api_keys_env")
        else:
            given[plain] = _variable(config, value, here)
    return given


def _resolve_value(config: _Config, name: str, value: Any, place: Place) -> Any:
    """The value of a field, or the object that its table describes."""
    _refuse_secrets(config, value, place)
    if name == "failover_on":
        is_list = isinstance(value, list | tuple)
        for index, rules in enumerate(value if is_list else [value]):
            _check_actions(config, rules, (*place, index) if is_list else place)
    elif isinstance(value, Mapping):
        if name == "options":
            return _arguments(config, value, place)
        if name == "breaker_settings":
            numbers = CircuitBreakerSettings.__annotations__
            for one in [name for name in value if name not in numbers]:
                config.problem((*place, one), f"unknown key{nearest(one, numbers)}")
        elif name in _TABLES:
            return _build(config, _TABLES[name], value, place)
    elif name == "options" or (name in _TABLES and value is not None):
        cls = _TABLES.get(name)
        of = "call options" if cls is None else f"{cls.__name__} arguments"
        config.must_be(f"a table of {of}", value, *place)
    elif name == "breaker_settings" and value is False:  # TOML has no null.
        return None
    if name in _POOL and not isinstance(value, list | tuple):
        config.must_be("a list", value, *place)
    return value


def _routes_of(config: _Config, tables: Sequence[Any]) -> list[Route]:
    """The routes of a config, without those that have problems."""
    return [
        route
        for index, table in enumerate(tables)
        for route in _build_routes(config, table, ("routes", index))
    ]


def _build_routes(config: _Config, table: Any, place: Place) -> list[Route]:
    """The route of a table or a string; all of a pool."""
    given, params = _read_route(config, table, place)
    if config.is_wrong(*place):
        return []
    spec, pool = given["model"], {n: given.pop(n) for n in _POOL if n in given}
    keys = pool.get("api_keys") or []
    texts = (one for _, one in _walk([params, given.get("options"), keys]))
    secrets = {x for x in texts if isinstance(x, str) and len(x) >= SHORTEST_SECRET}
    with config.noting(place, "model", secrets=secrets):
        if isinstance(spec, str):
            key = {"api_key": keys[0]} if keys else {}
            given["model"] = init_model(spec, **params, **key)
            _check_params(config, given["model"], spec, params, place)
        elif params:
            what = "params need a 'provider:model' string as the model"
            config.problem(config.at(place, "model"), what)
        if not pool:
            return [Route(**given)]
        # What is wrong now is wrong with the pool: the model was made.
        with config.noting(place, next(iter(pool)), secrets=secrets):
            return Route.pool(**given, **pool)
    return []


def _read_route(
    config: _Config, table: Any, place: Place
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a route, and the arguments of its model."""
    is_table = isinstance(table, Mapping)
    table = table if is_table else {"model": table}
    names = {*Route.model_fields, "params", "api_key", *_POOL}
    given = _resolve(config, table, names, place)
    if "model" not in given:
        config.problem(place, "has no model: write model = 'provider:model'")
    elif isinstance(spec := given["model"], str):
        given["source"] = {n: v for n, v in table.items() if n in _SOURCE}
    elif isinstance(spec, list | tuple | Mapping | float | None):
        what = "string" if is_table else "string or a table"
        at = (*place, "model") if is_table else place
        config.must_be(f"a 'provider:model' {what}", spec, *at)
    params, at = given.pop("params", {}), (*place, "params")
    if not isinstance(params, Mapping):
        config.must_be("a table of the model's arguments", params, *at)
        params = {}
    params = _arguments(config, params, at)
    if "api_key" in given:
        if "api_key" in params:
            config.problem((*at, "api_key_env"), "is given twice")
        params["api_key"] = given.pop("api_key")
    if "api_key" in params and "api_keys" in given:
        what = "is given besides api_keys: leave one of them out"
        config.problem(config.at(place, "api_key"), what)
    return given, params


def _arguments(
    config: _Config, table: Mapping[Any, Any], place: Place
) -> dict[str, Any]:
    """Arguments of a function, with the values of environment variables."""
    for name in table:
        if not isinstance(name, str):  # As YAML reads `1:` and `on:`.
            config.problem((*place, name), "must be a string: write it in quotes")
    named = {name: item for name, item in table.items() if isinstance(name, str)}
    found: dict[str, Any] = _with_variables(config, named, place)
    return found


def _with_variables(config: _Config, value: Any, place: Place) -> Any:
    """Data with the values of environment variables, such as headers have them."""
    if isinstance(value, list | tuple):
        return [_with_variables(config, v, (*place, i)) for i, v in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    found = {}
    for name, item in value.items():
        here = (*place, name)
        is_name = str(name).endswith(_ENV) and not isinstance(item, Mapping | list)
        if name == "metadata":
            found[name] = item  # It may say the environment where a program runs.
        elif is_name:
            found[name.removesuffix(_ENV)] = _variable(config, item, here)
        else:
            found[name] = _with_variables(config, item, here)
    return found


def _build(
    config: _Config, cls: Callable[..., Any], table: Mapping[str, Any], place: Place
) -> Any:
    """An object of a table of its arguments."""
    parameters = inspect.signature(cls).parameters
    known = parameters.keys() - {"clock", "store"}
    named = (cls, str(table.get("name") or ""))
    if named[1] and named in config.shared:
        same, made = config.shared[named]
        if same != table:
            config.problem(place, f"{named[1]!r} has other numbers elsewhere")
        return made
    if unknown := [name for name in table if name not in known]:
        for name in unknown:
            config.problem((*place, name), f"unknown key{nearest(name, known)}")
        return None
    needed = [
        name for name in known if parameters[name].default is inspect.Parameter.empty
    ]
    if missing := [name for name in needed if name not in table]:
        config.problem(
            place, f"{cls.__name__} needs {', '.join(sorted(missing))}: add it"
        )
        return None
    with config.noting(place):
        made = cls(**table)
        config.shared[named] = table, made
        return made
    return None


def _check_actions(config: _Config, table: Any, place: Place) -> None:
    kinds, actions = [one.value for one in FailureKind], [*map(str, FailureAction)]
    if not isinstance(table, Mapping):
        config.must_be("a table of kinds of failures and actions", table, *place)
        return
    for kind, action in table.items():
        here = (*place, kind)
        if isinstance(kind, str) and kind not in kinds:
            config.problem(here, f"unknown kind of failure{nearest(kind, kinds)}")
        if action not in actions:
            what = ", ".join(map(repr, actions))
            config.problem(here, f"must be one of {what}, not {shown(action)}")


def _check_params(
    config: _Config, model: Any, spec: str, params: Mapping[str, Any], place: Place
) -> None:
    """Refuse arguments that the model's class does not know: it may drop them."""
    if spec.partition(":")[0] in _OWN_PARAMS or not isinstance(model, BaseChatModel):
        return
    known = set(type(model).model_fields)
    for field in type(model).model_fields.values():
        for alias in (field.alias, field.validation_alias):
            names = alias.choices if isinstance(alias, AliasChoices) else [alias]
            known.update(name for name in names if isinstance(name, str))
    for name in params:
        if name not in known and type(model).model_config.get("extra") != "allow":
            what = f"{type(model).__name__} has no such argument"
            near = nearest(name, known) or "; what its API takes goes to model_kwargs"
            config.problem(config.at(place, name), f"{what}{near}")


def _variable(config: _Config, name: Any, place: Place) -> Any:
    """What an environment variable says, or each in a list of them."""
    if isinstance(name, list | tuple):
        return [_variable(config, one, (*place, i)) for i, one in enumerate(name)]
    value = os.environ.get(name) if isinstance(name, str) else None
    if value:
        if len(value) >= SHORTEST_SECRET:
            config.from_variables.add(value)
        return value
    if isinstance(name, str) and re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
        config.problem(place, f"the environment variable {name} is not set")
    else:  # Without the value, which may be the key itself.
        what = "must be the name of an environment variable, such as 'OPENAI_API_KEY'"
        config.problem(place, f"{what}; what is given is not shown: it may be a key")
    return ""


def _refuse_secrets(config: _Config, value: Any, place: Place) -> None:
    """Refuse keys and passwords, at whatever depth."""
    for here, one in _walk(value, place):
        name = [step for step in here if isinstance(step, str)][-1]
        if isinstance(one, SecretStr) or (
            isinstance(one, str)
            and len(one) >= SHORTEST_SECRET  # Not the "EMPTY" of local servers.
            and not name.endswith(_ENV)  # That must be a name in any case.
            and (_SECRET.search(name) or has_key(one))
        ):
            named = "['NAME', ...]" if name in _POOL else "'NAME'"
            config.problem(
                here,
                "a config must not contain keys or passwords: put it into an"
                f" environment variable, and write {name}_env = {named}",
            )


# --- writing --------------------------------------------------------------------------


def to_config(router: Any) -> dict[str, Any]:
    """The config of a router; see `RetryRouter.to_config`."""
    config, tables, pools = _Config({}), [], set[str]()
    data = _fields_of(config, router, (), router.store)
    for index, route in enumerate(router.routes):
        place: Place = ("routes", index)
        if route.pool_id in pools:
            continue  # The table of the first route makes all.
        if route.pool_id:
            pools.add(route.pool_id)
            if not route.source:
                config.problem(place, "is of a pool that was not made by from_config")
        table = dict(route.source or _source_of(config, route.model, place))
        table |= _fields_of(config, route, place, router.store)
        if route.pool_id:
            table["name"] = route.name.rpartition("#")[0]
        switches = integration_of(route.model).call_options
        own = {n: v for n, v in route.options.items() if switches.get(n, _NONE) != v}
        written = table.pop("options", None)  # They may name variables.
        if own:
            is_same = _with_variables(config, written, (*place, "options")) == own
            table["options"] = written if is_same else own
            if not _is_data(own):
                config.problem(
                    (*place, "options"), "contain values that are not plain data"
                )
        tables.append(table)
    data["routes"] = tables
    for name, value in data.items():
        _refuse_secrets(config, value, (name,))
    config.check()
    again = _routes_of(config, tables)
    config.check()
    for route, other in zip(router.routes, again, strict=True):
        if other.prepared("").identity != route.identity:  # It was replaced since.
            config.problem((), f"the model of {route.name!r} is not the config's")
    config.check()
    return {name: _plain(value) for name, value in data.items()}


def _fields_of(config: _Config, made: Any, place: Place, store: Any) -> dict[str, Any]:
    """The fields that are not as they would be anyway, as data."""
    data: dict[str, Any] = {}
    source = made.source or {}
    routes = getattr(made, "routes", None)
    scope = made.scope if routes is None else router_scope(r.scope for r in routes)
    for name, field in type(made).model_fields.items():
        value = getattr(made, name)
        if name == "metadata" and value:  # LangChain's, of its own version.
            value = {k: v for k, v in value.items() if k != "lc_versions"} or None
        is_left = value == _default(field)
        if is_left or name in _FILLED_IN | {"model", "routes", "options"}:
            continue
        if name in _TABLES:
            shared, value = value, _numbers_of(value)
            if value.get("store", _NONE) is store:  # It has joined that of the router.
                del value["store"]
                if value.get("name") == scope:
                    del value["name"]
            here, is_named = (*place, name), "name" in value
            met = config.written.setdefault(id(shared), (here, is_named))
            is_shared = name != "retry_policy" and met[0] != here
            if is_shared and not (is_named and met[1]):
                what = f"is also {_written(met[0])}, which a config says by a name"
                config.problem(here, f"{what}: give it a name, as in name='account'")
        elif name == "breaker_settings":
            value = False if value is None else dict(value)
        if name in _OBJECTS or not _is_data(value):
            kept = {n: source[n] for n in (name, f"{name}{_ENV}") if n in source}
            data |= kept
            if not kept:
                config.problem((*place, name), f"is not data, but {shown(value)}")
        else:
            data[name] = value
    return data


def _numbers_of(made: Any) -> dict[str, Any]:
    """The arguments of a policy, or of a shared object, that are not the defaults."""
    known = inspect.signature(type(made)).parameters
    make = made.__reduce__()[0]  # What a pickle has of the objects that are shared.
    given = getattr(make, "keywords", None)
    values = given or {n: getattr(made, n) for n in known if hasattr(made, n)}
    return {n: v for n, v in values.items() if v != known[n].default}


def _source_of(config: _Config, model: Any, place: Place) -> dict[str, Any]:
    """The string and the arguments that make an equal model."""
    spec, place = provider_string(model), (*place, "model")
    if spec is None:
        config.problem(place, f"{type(model).__name__} has no 'provider:model'")
        return {}
    fields = type(model).model_fields
    values = {
        name: getattr(model, name)
        for name, field in fields.items()
        if name not in _MADE and not (field.exclude and "client" in name)
    }
    params = {
        name: value
        for name, value in values.items()
        if name in model.model_fields_set - _OF_SPEC
        and value != _default(fields[name])
        and _is_data(value)
    }
    with config.noting(place):
        again = init_model(spec, **params)
        for name, value in values.items():
            if getattr(again, name) != value:
                what = "is not data"
                if isinstance(value, SecretStr):
                    what = (
                        "is not in the provider's own environment variable: build the"
                        " model by from_config, with api_key_env"
                    )
                config.problem(place, f"{type(model).__name__}.{name} {what}")
    return {"model": spec, **({"params": params} if params else {})}


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True, validated_data={})


def _plain(value: Any) -> Any:
    """The same data in Python's own types: writers of YAML take no others."""
    if isinstance(value, Mapping):
        return {_plain(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [*map(_plain, value)]
    if isinstance(value, str):
        return str.__str__(value)
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return value


def _is_data(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_data(v) for key, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_data, value))
    return isinstance(value, str | int | float)
