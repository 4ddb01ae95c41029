"""`RedisStore`: what is shared between processes, over Redis or Valkey.

`RedisStore` is a handle of a `_Lane`: two threads and two connections for each address
in a process. One thread takes what callers submit from a queue, and sends what has come
together as one pipeline; each second it reads all that is watched. The other thread
listens to announcements. Callers never wait for either.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import importlib
import inspect
import json
import logging
import pickle
import queue
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from langchain_retryrouter._shared import (
    LUA_COMMON,
    NAMES,
    Locked,
    OneForAll,
    Operation,
    Reply,
    Shareable,
    process_name,
)
from langchain_retryrouter.stores import KEPT, Scope, call_listener, read_scope

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT: Final = 0.25
_COMMAND_TIMEOUT: Final = 0.05
_REPAIR_INTERVAL: Final = 1.0
_INDEX_INTERVAL: Final = 5.0
_MOST_WAITING: Final = 10_000
_MOST_TOGETHER: Final = 200
_LOG_INTERVAL: Final = 60.0  # Seconds in which the same refusal is not logged again.

_LUA: Final = """
local r, before = {}, {}
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local value = tonumber(fields[i + 1]) or fields[i + 1]
  r[fields[i]], before[fields[i]] = value, value
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
%s
local function run(a)
%s
end
local reply = run(cjson.decode(ARGV[2]))
local latest, has_changed, is_news = now, false, reply[1] == 1
for field, value in pairs(r) do
  if before[field] ~= value then
    has_changed = true
    local text = type(value) == 'number' and string.format('%%.17g', value) or value
    redis.call('HSET', KEYS[1], field, text)
  end
  if string.sub(field, -6) == '_until' then latest = math.max(latest, value) end
end
for field in pairs(before) do
  if r[field] == nil then
    has_changed = true
    redis.call('HDEL', KEYS[1], field)
  end
end
if has_changed then
  redis.call('PEXPIRE', KEYS[1], string.format('%%.0f', latest - now + %d))
end
for i, value in ipairs(reply) do  -- cjson would keep 14 digits of a number.
  reply[i] = type(value) == 'number' and string.format('%%.17g', value)
    or cjson.encode(value)
end
local text = '[' .. table.concat(reply, ',') .. ']'
if is_news then
  redis.call('PUBLISH', ARGV[1], cjson.encode({KEYS[1], text}))
end
return text
"""


@dataclass(frozen=True)
class _Address:
    """How to connect: classes of the client's library, and the connection's settings.

    Its text is the address without a password; with Redis Sentinel that is the name of
    the service.
    """

    client: type[Any]
    pool: type[Any]
    connection: type[Any]
    settings: dict[str, Any]
    service: str | None = None

    def connect(self, timeout: float = _COMMAND_TIMEOUT) -> Any:
        """A client with connections and time limits of its own, which never retries."""
        settings = self.settings | {
            "decode_responses": True,
            "socket_timeout": timeout,
            "socket_connect_timeout": _CONNECT_TIMEOUT,
            "retry": None,
            "retry_on_error": [],
            "retry_on_timeout": False,
            "health_check_interval": 0,
            "protocol": 2,
        }
        pool = self.pool(connection_class=self.connection, **settings)
        return self.client(connection_pool=pool)

    def __repr__(self) -> str:
        given = {"host": "localhost", "port": 6379} | self.settings
        if path := given.get("path"):
            return f"unix://{path}"
        is_secure = "SSLConnection" in [cls.__name__ for cls in self.connection.__mro__]
        scheme, place = "redis" + "s" * is_secure, f"{given['host']}:{given['port']}"
        if self.service is not None:
            scheme, place = f"{scheme}+sentinel", self.service
        return f"{scheme}://{place}/{given.get('db') or 0}"


def _read_address(given: Any) -> _Address:
    """The address in a URL, or that of a client."""
    client = _client_of(given) if isinstance(given, str) else given
    pool = getattr(client, "connection_pool", None)
    settings = getattr(pool, "connection_kwargs", None)
    if pool is None or not isinstance(settings, dict):
        what = "a URL such as 'redis://localhost:6379/0', or a redis.Redis client"
        msg = f"RedisStore takes {what}, not of type {type(client).__name__}"
        raise TypeError(msg)
    cls = type(client)
    if inspect.iscoroutinefunction(cls.execute_command):
        msg = (
            f"RedisStore takes a sync client, not {cls.__module__}.{cls.__name__}: its"
            " thread serves async code as well; give the URL, or redis.Redis(...)"
        )
        raise TypeError(msg)
    pools = (one for one in type(pool).__mro__ if one.__name__ == "ConnectionPool")
    # What belongs to the pool of the client, and not to the address.
    settings = {
        name: value
        for name, value in sorted(settings.items())
        if not name.startswith(("maint_", "orig_", "himport_", "event_", "retry"))
        and type(value) is not object  # A mark for "not given", lost in a pickle.
    }
    kind, service = next(pools, type(pool)), getattr(pool, "service_name", None)
    return _Address(cls, kind, pool.connection_class, settings, service)


_LIKE: Final = (
    "the store's URL must be like redis://localhost:6379/0, rediss://..., or"
    " unix:///path"
)


def _client_of(url: str) -> Any:
    try:
        redis = importlib.import_module("redis")
    except ImportError as error:
        advice = "pip install 'langchain-retryrouter[redis]'"
        msg = f"RedisStore needs the package redis: {advice}"
        raise ImportError(msg) from error
    try:
        client = redis.Redis.from_url(url)
        client.connection_pool.make_connection()  # It is not connected, but checked.
    except (ValueError, TypeError, redis.RedisError) as error:
        # Not what is wrong, if that may be a part of the password.
        reason = (
            "a part of it cannot be read (in a password / is %2F, # is %23, ? is %3F)"
            if "@" in url and isinstance(error, ValueError)
            else error
        )
        msg = f"{_LIKE}: {reason}"
        raise ValueError(msg) from None
    # The library ignores what it cannot use of these.
    parts = urlsplit(url)
    if parts.scheme.lower() == "unix":
        return client
    database = unquote(parts.path).strip("/")
    if database and not (database.isascii() and database.isdigit()):
        msg = f"{_LIKE}: its path must be the number of a database (as in /0), or empty"
        raise ValueError(msg)
    if parts.port == 0:
        msg = f"{_LIKE}: its port must be a number from 1 to 65535, not 0"
        raise ValueError(msg)
    return client


class _Job(NamedTuple):
    operation: Operation
    key: str
    args: str
    on_reply: Callable[[Reply | None], None] | None


@functools.lru_cache(maxsize=64)
def script(operation: Operation) -> tuple[str, str]:
    """The text of an operation's script, and its hash."""
    text = _LUA % (LUA_COMMON, operation.lua, KEPT)
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class _Run(NamedTuple):
    """What the two threads work with until they are stopped."""

    client: Any
    jobs: queue.SimpleQueue[_Job | None]
    stopped: threading.Event


class _Lane(Locked):
    """The threads and connections to one address in this process."""

    def __init__(self, address: _Address, namespace: str) -> None:
        super().__init__()
        self.address = self._given = address
        self.namespace = namespace
        # The braces put all keys into one slot of a cluster, and so on one node.
        self.prefix = f"{{{namespace}}}:"
        self.channel = f"{self.prefix}news"
        self.handles: set[int] = set()  # The stores that are open.
        self._watched = defaultdict[str, weakref.WeakSet[Shareable]](weakref.WeakSet)
        self.forked()

    def forked(self) -> None:
        """This is the child of a fork, where the threads are not, or a new lane."""
        super().forked()
        self.process = process_name()
        self.is_up, self._is_late = True, False
        self.run: _Run | None = None  # None while there are no threads.
        self._worker: threading.Thread | None = None
        # When all that is watched, and the index of names, is due to be sent.
        self._repair_at = self._index_at = 0.0
        self._logged: dict[str, float] = {}

    # --- called by anybody ---

    def key(self, kind: str, name: str) -> str:
        """The key of a record; names are hashed, since they may say too much."""
        text = f"{kind}|{name}".encode()
        return f"{self.prefix}{hashlib.sha256(text).hexdigest()[:32]}"

    def start(self) -> None:
        """Start the threads."""
        with self._lock:
            if self.run is not None:
                return
            run = _Run(self.address.connect(), queue.SimpleQueue(), threading.Event())
            self.run, was_up = run, self.is_up
            # It was not asked since it was closed.
            self.is_up, self._is_late, self._repair_at = True, False, 0.0
            name = f"retryrouter {self.address}"
            self._worker, listener = (
                threading.Thread(target=target, args=(run,), name=name, daemon=True)
                for target in (self._work, self._listen)
            )
            try:
                self._worker.start()
                listener.start()
            except RuntimeError as error:  # Too many threads, or the program ends.
                run.stopped.set()
                self._worker = self.run = None
                self.is_up = was_up
                self._set_up(is_up=False, error=error)

    def stop(self, wait: float = 0.0) -> None:
        """Send what is waiting, and end the threads; `wait` seconds for the sending.

        What is watched gives back what it has, before.
        """
        for one in self._all_watched() if self.run is not None else ():
            call_listener(one.leave)
        with self._lock:
            run, self.run = self.run, None
            if run is not None:
                run.stopped.set()
                run.jobs.put(None)
        if self._worker is not None and wait:
            self._worker.join(wait)

    def leave(self, handle: int) -> None:
        """A store is closed, or there is no reference to it left."""
        self.handles.discard(handle)
        if not self.handles:
            self.stop()

    def follow(self, client: Any, moved: Any = None) -> None:
        """Go to the node of a cluster that has the keys, or back to the given one."""
        settings = {"host": "localhost", "port": 6379} | self._given.settings
        if moved is not None:
            # Redis 7 may say: this one.
            host = moved.host or self.address.settings.get("host")
            settings |= {"host": host, "port": moved.port}
        self.address = replace(self._given, settings=settings)
        pool = client.connection_pool
        pool.disconnect()
        pool.connection_kwargs.update(host=settings["host"], port=settings["port"])
        pool.reset()  # Its connections have the old address.

    def submit(self, job: _Job) -> bool:
        with self._lock:  # What is put after the end of the threads is lost.
            run = self.run
            if run is None or not self.is_up or run.jobs.qsize() > _MOST_WAITING:
                return False
            run.jobs.put(job)
        return True

    def watch(self, shareable: Shareable) -> None:
        with self._lock:
            watched = self._watched[self.key(*shareable.record)]
            is_new = not watched
            watched.add(shareable)
            if is_new:
                self._repair_at = self._index_at = 0.0
        if is_new and (run := self.run) is not None:
            run.jobs.put(None)
        elif not is_new:  # All the others are not asked for each model that is made.
            shareable.refresh()

    # --- the thread that sends ---

    def _work(self, run: _Run) -> None:
        while not (run.stopped.is_set() and run.jobs.empty()):
            # In a function, since a job in a variable would keep its breaker alive.
            self._work_once(run)
        with contextlib.suppress(Exception):
            run.client.connection_pool.disconnect()

    def _work_once(self, run: _Run) -> None:
        taken: list[_Job | None] = []
        pause = self._repair_at - time.monotonic()
        with contextlib.suppress(queue.Empty):
            taken.append(run.jobs.get(timeout=max(0.0, pause)))
            while len(taken) < _MOST_TOGETHER:
                taken.append(run.jobs.get_nowait())
        jobs = [job for job in taken if job is not None]
        is_due = not run.stopped.is_set() and time.monotonic() >= self._repair_at
        if is_due:
            self._repair_at = time.monotonic() + _REPAIR_INTERVAL
            for one in self._all_watched() if self.is_up else ():
                call_listener(one.refresh)  # It asks what is new.
        if is_due or (jobs and run.stopped.is_set()):
            jobs += self._index()  # What is sent last is to be found by its name.
        replies: list[Any] = [None] * len(jobs)
        # While Redis is away only the index of names is sent, which shows its return.
        is_sent = self.is_up or any(job.operation is NAMES for job in jobs)
        if jobs and is_sent:
            try:
                replies = self._send(run.client, jobs)
            except Exception as error:  # noqa: BLE001 - of any client's library
                # One that is late may be this process's fault, on a busy machine.
                if self._is_late or type(error).__name__ != "TimeoutError":
                    self._set_up(is_up=False, error=error)
                    if self.address != self._given:  # That node may be no more.
                        self.follow(run.client)
                self._is_late = True
            else:
                self._is_late = False
                self._set_up(is_up=True)
        for job, reply in zip(jobs, replies, strict=True):
            if isinstance(reply, Exception):
                self._index_at = 0.0  # Which shows whether it refuses all.
                self._log_refusal(job, reply)
            if job.on_reply is not None:
                is_reply = isinstance(reply, str)
                call_listener(job.on_reply, json.loads(reply) if is_reply else None)

    def _all_watched(self) -> list[Shareable]:
        with self._lock:
            for key in [key for key, ones in self._watched.items() if not ones]:
                del self._watched[key]
            return [one for ones in self._watched.values() for one in ones]

    def _index(self) -> list[_Job]:
        """The index of names, if it is due, or Redis is away: it shows the return."""
        if self.is_up and time.monotonic() < self._index_at:
            return []
        self._index_at = time.monotonic() + _INDEX_INTERVAL
        names = sorted({"|".join(one.record) for one in self._all_watched()})
        return [_Job(NAMES, f"{self.prefix}names", json.dumps(names), None)]

    def _send(self, client: Any, jobs: list[_Job]) -> list[Any]:
        replies = self._run(client, jobs)
        # Errors are known by their names, whichever library they come from.
        kinds = [type(one).__name__ for one in replies]
        if "MovedError" in kinds:
            self.follow(client, replies[kinds.index("MovedError")])
            replies = self._run(client, jobs)
            kinds = [type(one).__name__ for one in replies]
        missing = [at for at, kind in enumerate(kinds) if kind == "NoScriptError"]
        if missing:  # Redis was restarted, or its scripts were flushed.
            again = self._run(client, [jobs[at] for at in missing], loads=True)
            for at, reply in zip(missing, again, strict=True):
                replies[at] = reply
        for job, reply in zip(jobs, replies, strict=True):
            if job.operation is NAMES and isinstance(reply, Exception):
                # It refuses all; after a failover the address may be another node's.
                client.connection_pool.disconnect()
                raise reply
        return replies

    def _run(self, client: Any, jobs: list[_Job], *, loads: bool = False) -> list[Any]:
        """Run jobs in one pipeline; `loads` sends their scripts before them."""
        scripts = {script(job.operation) for job in jobs} if loads else set()
        with client.pipeline(transaction=False) as pipeline:
            for text, _ in scripts:
                pipeline.script_load(text)
            for job in jobs:
                sha = script(job.operation)[1]
                pipeline.evalsha(sha, 1, job.key, self.channel, job.args)
            replies = pipeline.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, Exception):
                reply.__traceback__ = None  # Its frames would keep the jobs alive.
        return list(replies[len(scripts) :])

    def _set_up(self, *, is_up: bool, error: Exception | None = None) -> None:
        if is_up is self.is_up:
            return
        self.is_up = is_up
        if is_up:
            self._repair_at = 0.0  # What is not sent is sent now.
            logger.warning("the store %s is back", self.address)
        else:
            away = "the store %s is away: each process decides alone (%s: %s)"
            logger.warning(away, self.address, type(error).__name__, error)

    def _log_refusal(self, job: _Job, error: Exception) -> None:
        kind, now = type(error).__name__, time.monotonic()
        if now - self._logged.get(kind, -_LOG_INTERVAL) >= _LOG_INTERVAL:
            self._logged[kind] = now
            said = "the store %s refused %s: %s"
            logger.warning(said, self.address, job.operation.name, error)

    # --- the thread that listens ---

    def _listen(self, run: _Run) -> None:
        while not run.stopped.is_set():
            try:
                with run.client.pubsub(ignore_subscribe_messages=True) as pubsub:
                    pubsub.subscribe(self.channel)
                    # What was announced before is read; and Redis may be a new one.
                    self._repair_at = self._index_at = 0.0
                    run.jobs.put(None)
                    while not run.stopped.is_set() and self.is_up:
                        message = pubsub.get_message(timeout=_REPAIR_INTERVAL)
                        if message:
                            self._learn(message["data"])
            except Exception as error:  # noqa: BLE001 - the other thread reports it
                logger.debug("the store's listener is away: %s", error)
            run.stopped.wait(_REPAIR_INTERVAL)

    def _learn(self, data: str) -> None:
        key, text = json.loads(data)
        with self._lock:
            watched = list(self._watched.get(key, ()))
        for one in watched:
            call_listener(one.learned, json.loads(text))


# The lane of each address in this process; stores of one address share it.
_LANES: Final = dict[tuple[str, str], _Lane]()


@atexit.register
def _stop_all() -> None:
    for lane in list(_LANES.values()):
        lane.stop(wait=2 * _CONNECT_TIMEOUT)


class RedisStore(OneForAll):
    """Shares breakers, budgets and limits of the same name over Redis or Valkey.

    Redis can never take a call down: calls hardly wait for it, and while it is away
    each process decides by what it knows, and sends it afterwards. Two threads and two
    connections serve all stores of one address in a process; a connection is made
    within 250 ms and a command answered within 50 ms, or Redis is away. Survives forks.
    A pickle has the address, and the password that is in it; another process makes
    connections of its own.

    Needs Redis 5 or newer, and the package `redis` (`pip install
    'langchain-retryrouter[redis]'`), or a client of `valkey`.

    Example:
        ```python
        from langchain_retryrouter.stores import RedisStore

        store = RedisStore("redis://localhost:6379/0")
        router = RetryRouter(routes=[primary, backup], store=store)
        ```

    Args:
        url: A URL (`redis://`, `rediss://`, `unix://`), or a sync client, whose
            settings are used for connections of the store's own. Of a cluster, the URL
            of any node.
        namespace: The beginning of all keys. Services that use other accounts of the
            same providers need another one.

    Raises:
        ImportError: The package `redis` is not installed.
        TypeError: `url` is an async client, or no client.
        ValueError: The URL or the namespace cannot be used.
    """

    closes_with_model = False

    def __init__(self, url: Any, *, namespace: str = "rr") -> None:
        """Connect in the background."""
        if not isinstance(namespace, str) or not namespace:
            msg = f"namespace must be a string with a character at least: {namespace!r}"
            raise ValueError(msg)
        self._open(_read_address(url), namespace)

    def _open(self, address: _Address, namespace: str) -> None:
        self._address = address
        key = f"{vars(address)}", namespace
        self._lane = _LANES.setdefault(key, _Lane(address, namespace))
        weakref.finalize(self, self._lane.leave, id(self)).atexit = False
        self._lane.handles.add(id(self))
        self.wake()

    @property
    def process(self) -> str:
        """A name for this process that no other has."""
        return self._lane.process

    @property
    def is_up(self) -> bool:
        """Whether Redis answered last time; True before it was asked."""
        return self._lane.is_up

    @property
    def namespace(self) -> str:
        """The beginning of all keys."""
        return self._lane.namespace

    def wake(self) -> None:
        """Start the threads again after a fork or `close()`."""
        if self._lane.run is None:
            self._lane.handles.add(id(self))
            self._lane.start()

    def submit(
        self,
        operation: Operation,
        name: str,
        args: list[Any],
        on_reply: Callable[[Reply | None], None] | None = None,
    ) -> bool:
        """Run an operation in the background; False if Redis is away."""
        key = self._lane.key(operation.name, name)
        return self._lane.submit(_Job(operation, key, json.dumps(args), on_reply))

    def watch(self, shareable: Shareable) -> None:
        """Keep it informed of its record."""
        self._lane.watch(shareable)

    def snapshot(self) -> list[Scope]:
        """All that is shared now, read from Redis.

        Raises:
            Exception: Redis does not answer within a second: the client's own error.
        """
        lane = self._lane
        client = lane.address.connect(timeout=1.0)
        try:
            try:
                found = client.hgetall(f"{lane.prefix}names")
            except Exception as error:
                if type(error).__name__ != "MovedError":
                    raise
                lane.follow(client, error)
                found = client.hgetall(f"{lane.prefix}names")
            seconds, micros = client.time()
            names = [name.partition("|")[::2] for name in sorted(found)]
            with client.pipeline(transaction=False) as pipeline:
                for kind, name in names:
                    pipeline.hgetall(lane.key(kind, name))
                records = pipeline.execute()
        finally:
            client.connection_pool.disconnect()
        now = int(seconds) * 1000 + int(micros) // 1000
        return [
            read_scope(kind, name, {f: _number(v) for f, v in record.items()}, now)
            for (kind, name), record in zip(names, records, strict=True)
            if record
        ]

    def close(self) -> None:
        """Close the connections, unless other stores of this address are open.

        What is waiting is sent, and `SpendLimit`s give back what they do not use. A
        store that is used again opens new ones.
        """
        self._lane.leave(id(self))

    def __getstate__(self) -> tuple[_Address, str, bool]:
        """The address and the namespace, and whether a model closes it.

        Raises:
            TypeError: The client has settings that cannot be pickled.
        """
        try:
            pickle.dumps(self._address)
        except Exception as error:
            msg = (
                "a RedisStore of this client cannot be pickled, since the client has"
                " settings that cannot, as one of Redis Sentinel: give a URL, or make"
                " the store, and what uses it, anew in each process"
            )
            raise TypeError(msg) from error
        return self._address, self.namespace, self.closes_with_model

    def __setstate__(self, state: tuple[_Address, str, bool]) -> None:
        """Connect to the same address."""
        address, namespace, self.closes_with_model = state
        self._open(address, namespace)

    def __repr__(self) -> str:
        """The address without a password."""
        where, namespace = str(self._address), self.namespace
        return f"{type(self).__name__}({where!r}, namespace={namespace!r})"


def _number(text: str) -> Any:
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() else number
