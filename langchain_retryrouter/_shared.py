"""What models and processes share: objects, and operations on records of a store.

Breakers, budgets and limits do not know Redis. They know a `Store`, and give it an
`Operation`: a small function that changes one record, written in Lua for Redis and in
Python for `stores.MemoryStore`. A record is a flat dict of strings and numbers; one
operation runs on it at a time. Times are milliseconds on the store's clock, `now`.

How to share something over a store, which the class `Shareable` prepares:

* `store.watch(shareable)` once. Each second, and when a store that was away is back,
  the store calls `shareable.refresh()`, which submits what it has to ask or to say.
  What other processes announce goes to `shareable.learned`. The store keeps a weak
  reference only.
* `store.submit(operation, name, args, on_reply)` at any time, from any thread or event
  loop, and not with a lock held that `on_reply` or `learned` takes. It returns at once.
  False: the store is away, nothing will follow, the local state decides. True:
  `on_reply` is called once, with the reply, or with None if it failed; by a
  `MemoryStore` before `submit` returns, else in the store's thread.
* `store.wake()` before each use, since a fork or `close()` stops the store's threads;
  a `MemoryStore` has none, and asks what it watches then.
* The last `store.close()`, and the end of the program, call `shareable.leave()`, which
  submits what it gives back. What is watched may be used again afterwards.

Whether an operation was done is not known if its reply is late: Redis may have done it,
or do it later. So what must not count twice is said as a total, or has a number.

A reply is a list of numbers and strings; if its first item is 1 all that is shared
under this name, in all processes, gets it as well. A record is kept for an hour after
its last change, and after any time in a field whose name ends in `_until`. The body of
a Lua function sees `r` (the record), `now`, `a` (the arguments), and the functions of
`LUA_COMMON`; in Lua and in Python it changes `r` in place, and returns the reply. A
field that becomes nil or None is deleted. `Operation.name` is the kind of the record.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import math
import os
import secrets
import socket
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import (
    Any,
    ClassVar,
    Final,
    NamedTuple,
    Protocol,
    Self,
    TypeAlias,
    runtime_checkable,
)

Record: TypeAlias = dict[str, Any]
Reply: TypeAlias = list[Any]


class Operation(NamedTuple):
    """What can be done with one kind of record: in Lua, and the same in Python."""

    name: str
    lua: str
    apply: Callable[[Record, int, list[Any]], Reply]

    def run(self, record: Record, now: int, args: list[Any]) -> Reply:
        """Change a record as the script in Lua does; the reply."""
        reply = self.apply(record, now, args)
        for field in [field for field in record if record[field] is None]:
            del record[field]
        return reply


@runtime_checkable
class Store(Protocol):
    """Where records are; `stores.MemoryStore` and `stores.RedisStore` are stores."""

    closes_with_model: bool
    """Whether a model made it of a URL, and closes it."""

    @property
    def process(self) -> str:
        """A name for this process that no other has: `host:pid:random`."""

    @property
    def is_up(self) -> bool:
        """Whether the store answered last time; True before it was asked."""

    def wake(self) -> None:
        """Start what a fork or `close()` has stopped; nearly free if it runs."""

    def submit(
        self,
        operation: Operation,
        name: str,
        args: list[Any],
        on_reply: Callable[[Reply | None], None] | None = None,
    ) -> bool:
        """Run an operation in the background; False if the store is away."""

    def watch(self, shareable: Shareable) -> None:
        """Keep it informed of its record."""

    def close(self) -> None:
        """Close the connections; a store that is used again opens new ones."""


@runtime_checkable
class Clock(Protocol):
    """Tells the time, gives random numbers, and waits; `testing.FakeClock` is one."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""

    def time(self) -> float:
        """Seconds since the Unix epoch, to read HTTP dates with."""

    def random(self) -> float:
        """A number in `[0, 1)`, for jitter."""

    def sleep(self, seconds: float, /) -> None:
        """Wait, blocking the thread."""

    def asleep(self, seconds: float, /) -> Awaitable[None]:
        """Wait without blocking the event loop."""


def name_hash(*parts: object) -> str:
    """Eight digits that tell apart what has the same name."""
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:8]


def process_name() -> str:
    """A name for this process that no other has, also after a fork."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


numbers: Final = itertools.count()
"""Of objects that are shared, each of its own in this process."""

_forkable: Final[weakref.WeakSet[Any]] = weakref.WeakSet()


def watch_forks(one: Any) -> None:
    """Have `one.forked()` called in each child of a fork, as long as it is alive."""
    _forkable.add(one)


class Locked:
    """An object with a lock; in the child of a fork it is a new one."""

    def __init__(self) -> None:
        """Make the lock, and another one in each child of a fork."""
        # Reentrant: the garbage collector may run a finalizer in between.
        self._lock = threading.RLock()
        watch_forks(self)

    def forked(self) -> None:
        """This is the child of a fork: a thread of the parent may have had the lock.

        Subclasses forget what the parent has under way.
        """
        self._lock = threading.RLock()


def _forked() -> None:
    for one in list(_forkable):
        one.forked()


if hasattr(os, "register_at_fork"):  # Not on Windows.
    os.register_at_fork(after_in_child=_forked)


class OneForAll:
    """Copies and deep copies of what holds this object hold the same object."""

    def __copy__(self) -> Self:
        """The same object, which is to be shared."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The same object, which is to be shared."""
        return self


class Shareable(OneForAll, Locked):
    """An object that models share, and over a store all objects of its name.

    A class calls `_use` at the end of its `__init__`, since a store may answer at once.
    """

    _operation: ClassVar[Operation]
    _kind: ClassVar[str] = "limit"  # In error messages.
    _store: Store | None = None

    def __init__(self, name: str) -> None:
        """Not shared over a store so far."""
        require("name", name, "a string", is_met=isinstance(name, str))
        super().__init__()
        self.name = name
        self.number = next(numbers)  # Tells it from others of its name here.

    def _use(self, store: Store | None) -> None:
        """Use the store that was given, if there is one.

        Raises:
            ValueError: It is not a store, or this has no name. The value is not shown,
                since a URL may have a password.
        """
        if store is None:
            return
        is_store = isinstance(store, Store)
        if not is_store:
            msg = (
                "store must be a RedisStore(url) or a MemoryStore() of"
                f" langchain_retryrouter.stores, not of type {type(store).__name__}"
            )
            raise ValueError(msg)
        if not self.name:
            msg = f"a {self._kind} with a store needs a name, the same in all processes"
            raise ValueError(msg)
        self.join(store, self.name)

    def join(self, store: Store | None, name: str) -> None:
        """Share this, under `name` if it has none, unless it has a store already."""
        with self._lock:
            if store is None or self._store is not None:
                return
            self.name = self.name or name
            self._store = store
            self._forget_store()
        store.watch(self)

    def _forget_store(self) -> None:
        """Begin with nothing that the store has said or granted."""

    @property
    def store(self) -> Store | None:
        """Where it is shared with other processes; None if it is not."""
        return self._store

    @property
    def record(self) -> tuple[str, str]:
        """The kind and the name of its record."""
        return self._operation.name, self.name

    @property
    def is_shared(self) -> bool:
        """Whether other processes use it, too, and know what this one learns."""
        return self._store is not None

    def _wake(self) -> None:
        if self._store is not None:
            self._store.wake()

    def _submit(
        self, args: list[Any], on_reply: Callable[[Reply | None], None]
    ) -> None:
        """Run the operation on the record; None is the reply if the store is away."""
        store, (_, name) = self._store, self.record
        if store is not None and not store.submit(
            self._operation, name, args, on_reply
        ):
            on_reply(None)

    def refresh(self) -> None:
        """Submit what is to be asked or said; called by the store each second."""

    def learned(self, reply: Reply) -> None:
        """Take note of what any process has announced; called by the store."""

    def leave(self) -> None:
        """Submit what is given back; called by a store that ends its threads."""


# --- what operations have in common ---------------------------------------------------

PRESENCE: Final = 30_000
"""Milliseconds after which a process that was not seen does not count any more."""

MOST_SECONDS: Final = 1e9
"""31 years: a store cannot keep a time without an end."""

_MOST_PROCESSES: Final = 64  # Beyond so many, presence is not counted.
_MOST_OBJECTS: Final = 100  # Beyond so many, a record forgets the silent ones,
_SILENCE: Final = 3_600_000  # after so many milliseconds.
_SILENT: Final = 120_000  # After so many, what an object has leased goes back.

LUA_COMMON: Final = """
local function count(prefix, since)
  local left = 0
  for field, at in pairs(r) do
    if string.sub(field, 1, #prefix) == prefix then
      if at < since then r[field] = nil else left = left + 1 end
    end
  end
  return left
end
local function count_processes(process)
  local members, seen = count('p:', now - 30000), r['p:' .. process]
  if not seen and members < 64 then members, seen = members + 1, 0 end
  if seen and now - seen > 10000 then r['p:' .. process] = now end
  return members
end
local function gone(me)
  if now - (r['u:' .. me] or 0) > 60000 then r['u:' .. me] = now end
  local known, found = 0, {}
  for field, at in pairs(r) do
    if string.sub(field, 1, 2) == 'u:' then
      known = known + 1
      if at < now - 3600000 then found[#found + 1] = string.sub(field, 3) end
    end
  end
  if known <= 100 then return {} end
  for _, who in ipairs(found) do r['u:' .. who] = nil end
  return found
end
"""


def _count(r: Record, prefix: str, since: float) -> int:
    """Delete the fields with this prefix and an earlier time; how many are left."""
    fields = [field for field in r if field.startswith(prefix)]
    for field in fields:
        if r[field] < since:
            del r[field]
    return sum(field in r for field in fields)


def _count_processes(r: Record, now: int, process: str) -> int:
    """Note that a process is there; how many are, 64 at most."""
    members, seen = _count(r, "p:", now - PRESENCE), r.get(f"p:{process}")
    if seen is None and members < _MOST_PROCESSES:
        members, seen = members + 1, 0
    if seen is not None and now - seen > PRESENCE / 3:
        r[f"p:{process}"] = now
    return members


def _gone(r: Record, now: int, me: str) -> list[str]:
    """Note that an object is there; of many those that were silent for an hour."""
    if now - r.get(f"u:{me}", 0) > _SILENCE / 60:
        r[f"u:{me}"] = now
    known = [field[2:] for field in r if field.startswith("u:")]
    if len(known) <= _MOST_OBJECTS:
        return []
    _count(r, "u:", now - _SILENCE)
    return [who for who in known if f"u:{who}" not in r]


# --- circuit breakers -----------------------------------------------------------------

# open_until: closed if there is none, half open once it is over. gen: grows with each
# change between open and closed, also if the store was emptied in between, since it is
# never below the time. lease_no: fences what a prober says after its lease has ended.
_LUA_BREAKER: Final = """
local action, me = a[1], a[2]
local process = string.match(me, '^[^#]*')
local members, changed, granted = count_processes(process), 0, 0
local function change(fields)
  changed = 1
  r.gen, r.by = math.max((r.gen or 0) + 1, now), process
  r.open_until, r.held_until, r.why = nil, nil, nil
  r.lease_by, r.lease_until, r.probed = nil, nil, nil
  count('v:', math.huge)
  for field, value in pairs(fields) do r[field] = value end
end
if action == 'hold' then
  local ends = now + a[3]
  if ends > (r.open_until or 0) + 50 then
    local held = a[4] == 1 and ends or nil
    change({open_until = ends, held_until = held, why = a[5], probed = r.probed})
  end
elseif action == 'pause' then
  if now + a[3] > (r.pause_until or 0) + 50 then
    r.pause_until, r.paused_by, changed = now + a[3], process, 1
  end
elseif action == 'vote' then
  if not r.open_until then
    r['v:' .. a[3]] = now
    local votes, needed = count('v:', now - a[5]), a[6]
    if a[7] == 1 then needed = math.min(needed, members) end
    if votes >= needed then change({open_until = now + a[4], why = a[8]}) end
  end
elseif action == 'retract' then
  r['v:' .. a[3]] = nil
elseif action == 'probe' then
  if a[3] > (r.gen or 0) then
    r.gen, r.open_until, r.by, r.why = a[3], now, process, a[6]
  end
  if r.open_until then
    local is_free = (r.lease_until or 0) <= now or r.lease_by == me
    local is_due = r.open_until <= now or (a[4] == 1 and not r.probed)
    local is_last = r.failed_by == process and members > 1
      and now < r.open_until + 1000
    if is_free and is_due and not is_last then
      granted = (r.lease_no or 0) + 1
      r.lease_no, r.lease_by, r.lease_until, r.probed = granted, me, now + a[5], 1
    end
  end
elseif action == 'close' then
  if r.gen == a[3] and r.open_until then change({}) end
elseif action == 'restore' then
  if a[3] > (r.gen or 0) then
    change({gen = a[3], open_until = now + a[4], why = a[6], probed = 1})
    r.held_until = a[5] > 0 and now + a[5] or nil
  end
elseif r.lease_by == me and r.lease_no == a[3] then
  if action == 'renew' then
    r.lease_until = now + a[4]
  elseif action == 'cancelled' then
    r.lease_by, r.lease_until = nil, nil
  elseif action == 'succeeded' then
    r.failed_by = nil
    change({})
  elseif action == 'failed' then
    change({open_until = now + a[4], why = 'its probe failed', probed = 1})
    r.held_until, r.failed_by = a[5] > 0 and now + a[5] or nil, process
  end
end
local function left(moment)
  return moment and math.max(0, moment - now) or -1
end
return {changed, r.gen or 0, left(r.open_until), left(r.held_until),
  left(r.pause_until), granted, left(r.lease_until), members,
  r.open_until and r.why or ''}
"""


def _breaker(r: Record, now: int, a: list[Any]) -> Reply:
    action, me, *args = a
    process = me.partition("#")[0]
    members = _count_processes(r, now, process)
    changed = granted = 0
    gen, open_until = r.get("gen", 0), r.get("open_until")

    def change(**fields: Any) -> None:
        nonlocal changed
        changed = 1
        r.update(gen=max(gen + 1, now), by=process)
        r.update(open_until=None, held_until=None, why=None)
        r.update(lease_by=None, lease_until=None, probed=None)
        _count(r, "v:", math.inf)
        r.update(fields)

    if action == "hold":
        pause, is_held, why = args
        ends, probed = now + pause, r.get("probed")
        if ends > (open_until or 0) + 50:
            held = ends if is_held else None
            change(open_until=ends, held_until=held, why=why, probed=probed)
    elif action == "pause":
        if now + args[0] > r.get("pause_until", 0) + 50:
            r.update(pause_until=now + args[0], paused_by=process)
            changed = 1
    elif action == "vote":
        if open_until is None:
            voter, pause, window, needed, is_felt, why = args
            r[f"v:{voter}"] = now
            votes = _count(r, "v:", now - window)
            if votes >= (min(needed, members) if is_felt else needed):
                change(open_until=now + pause, why=why)
    elif action == "retract":
        r[f"v:{args[0]}"] = None
    elif action == "probe":
        known, is_early, lease, why = args
        if known > gen:
            open_until = now
            r.update(gen=known, open_until=now, by=process, why=why)
        if open_until is not None:
            is_free = r.get("lease_until", 0) <= now or r.get("lease_by") == me
            is_due = open_until <= now or (is_early and not r.get("probed"))
            was_last = r.get("failed_by") == process and members > 1
            is_last = was_last and now < open_until + 1000
            if is_free and is_due and not is_last:
                granted = r.get("lease_no", 0) + 1
                r.update(lease_no=granted, lease_by=me)
                r.update(lease_until=now + lease, probed=1)
    elif action == "close":
        if gen == args[0] and open_until is not None:
            change()
    elif action == "restore":
        known, pause, held, why = args
        if known > gen:
            change(gen=known, open_until=now + pause, why=why, probed=1)
            r["held_until"] = now + held if held > 0 else None
    elif r.get("lease_by") == me and [r.get("lease_no")] == args[:1]:
        if action == "renew":
            r["lease_until"] = now + args[1]
        elif action == "cancelled":
            r.update(lease_by=None, lease_until=None)
        elif action == "succeeded":
            change(failed_by=None)
        elif action == "failed":
            _, pause, held = args
            change(open_until=now + pause, why="its probe failed", probed=1)
            held_until = now + held if held > 0 else None
            r.update(held_until=held_until, failed_by=process)

    def left(field: str) -> int:
        moment = r.get(field)
        return -1 if moment is None else max(0, int(moment) - now)

    moments = map(left, ("open_until", "held_until", "pause_until"))
    lease = left("lease_until")
    why = "" if r.get("open_until") is None else r.get("why", "")
    return [changed, r.get("gen", 0), *moments, granted, lease, members, why]


BREAKER: Final = Operation("breaker", _LUA_BREAKER, _breaker)
"""The breakers of one name. Arguments: an action, `process#number`, and the action's
own. Reply: changed, generation, milliseconds left of open (-1: closed), held, pause
and lease, the number of the granted lease or 0, processes, why it is open."""


# --- retry budgets --------------------------------------------------------------------

# A message that was not answered is sent again, with its number; `s:` is the last one
# of each object, so that none counts twice. A record that was lost begins with what the
# first one knows.
_LUA_BUDGET: Final = """
local me, number, capacity, delta, known = unpack(a)
for _, who in ipairs(gone(me)) do r['s:' .. who] = nil end
if number > (r['s:' .. me] or 0) then
  r['s:' .. me] = number
else
  delta = 0
end
r.capacity = capacity
r.tokens = math.max(-capacity, math.min(capacity, (r.tokens or known) + delta))
local members = count_processes(string.match(me, '^[^#]*'))
return {delta < 0 and 1 or 0, r.tokens, members}
"""


def _budget(r: Record, now: int, a: list[Any]) -> Reply:
    me, number, capacity, delta, known = a
    for who in _gone(r, now, me):
        r[f"s:{who}"] = None
    if number > r.get(f"s:{me}", 0):
        r[f"s:{me}"] = number
    else:
        delta = 0
    tokens = max(-capacity, min(capacity, r.get("tokens", known) + delta))
    r.update(capacity=capacity, tokens=tokens)
    members = _count_processes(r, now, me.partition("#")[0])
    return [int(delta < 0), tokens, members]


BUDGET: Final = Operation("budget", _LUA_BUDGET, _budget)
"""The tokens of one name. Arguments: `process#number`, the number of the message,
capacity, what to add, and the tokens before that, as far as the object knows. Reply:
changed, tokens, processes."""


# --- rate limits ----------------------------------------------------------------------

_LEFT_AFTER: Final = 5_000  # Milliseconds after which a silent process holds no permit.
_HUNGRY_FOR: Final = 1_500  # After which a process that waits is not waited for.
_DEEPEST: Final = 60_000  # Milliseconds of the rate that may be owed.

# A process that gets less than it wants while a request waits is hungry since then. As
# much as those need that are hungry for longer is left for them: so the processes take
# turns. The one whose turn it is gets what it needs for one request while anything is
# left, and the others wait until that is paid for: no large request starves.
_LUA_LIMIT: Final = """
local process, most, wanted, needed, busy, kinds = unpack(a)
local hungry, before, held, since = 0, 0, 0, r['w:' .. process] or now
r['p:' .. process] = now
local members = count('p:', now - 5000)
for field, value in pairs(r) do
  local what, who = string.sub(field, 1, 2), string.sub(field, 3)
  if (what == 'w:' or what == 'c:') and who ~= process then
    local seen = r['p:' .. who]
    if not seen then
      r[field] = nil
    elseif what == 'c:' then
      held = held + value
    elseif now - seen < 1500 then
      hungry = hungry + 1
      if value < since then before = before + 1 end
    end
  end
end
local elapsed, is_hungry = math.max(0, now - (r.at or now)), false
local reply = {0, members, hungry, 0}
for _, one in ipairs(kinds) do
  local kind, rate, capacity, change, want, need, queued = unpack(one)
  local level = (r[kind] or 1) + elapsed * rate + change
  level = math.max(-60000 * rate, math.min(capacity, level))
  local granted = 0
  if want > 0 and level > before * need and (need > 0 or hungry == 0) then
    granted = math.min(want, math.max(need, level / (hungry + 1)))
  end
  if granted > 0 then since = now end
  if granted < queued then is_hungry = true end
  r[kind], r[kind .. '_per_minute'] = level - granted, rate * 60000
  reply[#reply + 1] = granted
end
if most > 0 then
  local permits = math.min(wanted, most - held)
  if hungry > 0 then
    permits = math.min(permits, math.max(1, math.floor(most / (hungry + 1))))
  end
  permits = math.max(busy, permits)
  if permits < needed then is_hungry = true end
  r['c:' .. process], reply[4] = permits, permits
end
r.at, r['w:' .. process] = now, is_hungry and since or nil
return reply
"""


def _limit(r: Record, now: int, a: list[Any]) -> Reply:
    process, most, wanted, needed, busy, kinds = a
    hungry = before = held = 0
    since = r.get(f"w:{process}", now)
    r[f"p:{process}"] = now
    members = _count(r, "p:", now - _LEFT_AFTER)
    for field, value in list(r.items()):
        what, who = field[:2], field[2:]
        if what in {"w:", "c:"} and who != process:
            seen = r.get(f"p:{who}")
            if seen is None:
                del r[field]
            elif what == "c:":
                held += value
            elif now - seen < _HUNGRY_FOR:
                hungry += 1
                before += value < since
    elapsed, is_hungry = max(0, now - r.get("at", now)), False
    reply = [0, members, hungry, 0]
    for kind, rate, capacity, change, want, need, queued in kinds:
        level = r.get(kind, 1) + elapsed * rate + change
        level = max(-_DEEPEST * rate, min(capacity, level))
        granted = 0
        if want > 0 and level > before * need and (need > 0 or not hungry):
            granted, since = min(want, max(need, level / (hungry + 1))), now
        is_hungry = is_hungry or granted < queued
        r[kind], r[f"{kind}_per_minute"] = level - granted, rate * 60_000
        reply.append(granted)
    if most > 0:
        permits = min(wanted, most - held)
        if hungry:
            permits = min(permits, max(1, most // (hungry + 1)))
        reply[3] = permits = max(busy, permits)
        is_hungry = is_hungry or permits < needed
        r[f"c:{process}"] = permits
    r["at"], r[f"w:{process}"] = now, since if is_hungry else None
    return reply


LIMIT: Final = Operation("limit", _LUA_LIMIT, _limit)
"""The leases of one rate limit. Arguments: process, `max_concurrency` or 0, permits
wanted, needed and in use; and of each kind its name, rate a millisecond, capacity, what
is given back, wanted, needed for one request, and for all that wait. Reply: 0,
processes, how many others are hungry, permits, and what is granted of each kind."""


# --- spend limits ---------------------------------------------------------------------

# t: what each object has in total, spent or leased, in the window that began at
# `window`, by its clock; base: the same of those that have left, or are forgotten. Each
# message says the total anew, so one that is lost, or was done and not answered, or was
# forgotten by Redis, is made good by the next. An object that has left comes back under
# another number. A late one gets nothing of a window that is over. Of one that is
# silent, as of a process that was killed, only s: counts, what it had spent or held.
_LUA_SPEND: Final = """
local me, window, ends, amount, total, more, used, has_left = unpack(a)
local mine, process = 't:' .. me, string.match(me, '^[^#]*')
local members, granted, is_news = count_processes(process), 0, 0
local function taken(who)
  local own, is_silent = r['t:' .. who] or 0, now - (r['u:' .. who] or 0) > 120000
  return is_silent and math.min(own, r['s:' .. who] or own) or own
end
if window > (r.window or -1) then
  count('t:', math.huge)
  count('s:', math.huge)
  count('u:', math.huge)
  r.window, r.base, r.taken = window, 0, 0
end
if window == r.window then
  for _, who in ipairs(gone(me)) do
    r.base, r['t:' .. who], r['s:' .. who] = r.base + taken(who), nil, nil
  end
  local others = r.base
  for field in pairs(r) do
    if string.sub(field, 1, 2) == 't:' and field ~= mine then
      others = others + taken(string.sub(field, 3))
    end
  end
  if total > (r[mine] or 0) then is_news = 1 end
  granted = math.max(0, math.min(more, amount - others - total))
  r[mine], r.taken = total + granted, others + total + granted
  r['s:' .. me], r.window_until = used, now + ends
  if has_left == 1 then
    r.base, r[mine] = r.base + total + granted, nil
    r['s:' .. me], r['u:' .. me], r['p:' .. process] = nil, nil, nil
  end
end
return {is_news, granted, r.taken, members, r.window}
"""


def _spend(r: Record, now: int, a: list[Any]) -> Reply:
    me, window, ends, amount, total, more, used, has_left = a
    mine, process = f"t:{me}", me.partition("#")[0]
    members, granted, is_news = _count_processes(r, now, process), 0, 0

    def taken(who: str) -> float:
        own: float = r.get(f"t:{who}", 0)
        is_silent = now - r.get(f"u:{who}", 0) > _SILENT
        return min(own, r.get(f"s:{who}", own)) if is_silent else own

    if window > r.get("window", -1):
        for prefix in ("t:", "s:", "u:"):
            _count(r, prefix, math.inf)
        r.update(window=window, base=0, taken=0)
    if window == r["window"]:
        for who in _gone(r, now, me):
            r["base"] += taken(who)
            r.pop(f"t:{who}", None)
            r.pop(f"s:{who}", None)
        known = [f for f in r if f.startswith("t:") and f != mine]
        others = r["base"] + sum(taken(field[2:]) for field in known)
        is_news = int(total > r.get(mine, 0))
        granted = max(0, min(more, amount - others - total))
        r.update({mine: total + granted}, taken=others + total + granted)
        r.update({f"s:{me}": used, "window_until": now + ends})
        if has_left:
            r["base"] += total + granted
            r.update(dict.fromkeys([mine, f"s:{me}", f"u:{me}", f"p:{process}"]))
    return [is_news, granted, r["taken"], members, r["window"]]


SPEND: Final = Operation("spend", _LUA_SPEND, _spend)
"""The money of one name and period. Arguments: `process#number`, the window's beginning
and its end in milliseconds, the amount, what the object has spent or leased in all, how
much more it asks for, what it has spent or holds, and 1 if it leaves. Reply: whether it
has more than was known, what was granted, what all have taken, processes, and the
window."""


# --- names ----------------------------------------------------------------------------

_NAMES_KEPT: Final = 3_600_000

_LUA_NAMES: Final = """
count('', now - 3600000)
for _, name in ipairs(a) do r[name] = now end
return {0}
"""


def _names(r: Record, now: int, a: list[Any]) -> Reply:
    _count(r, "", now - _NAMES_KEPT)
    r.update(dict.fromkeys(a, now))
    return [0]


NAMES: Final = Operation("names", _LUA_NAMES, _names)
"""The index of all records that were used within an hour, each as `kind|name`."""


# --- checks of the numbers and names that users give ---------------------------------


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number, 0 or more; not `True` or `False`."""
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and 0 <= value <= sys.float_info.max


def is_whole(value: Any) -> bool:
    """Whether `value` is an int, 0 or more."""
    return isinstance(value, int) and is_number(value)


def is_positive(value: Any) -> bool:
    """Whether `value` is a finite number above 0."""
    return is_number(value) and value > 0


def is_hook(value: Any) -> bool:
    """Whether `value` is None, or a function that sync code can call."""
    if value is None or not callable(value):
        return value is None
    is_async = inspect.iscoroutinefunction
    return not (is_async(value) or is_async(value.__call__))


def require(
    name: str, value: Any, allowed: str, *, is_met: bool, advice: str = ""
) -> None:
    """Check an argument.

    Raises:
        ValueError: The condition is not met. Never a TypeError, since pydantic reports
            ValueErrors only.
    """
    if not is_met:
        msg = f"{name} must be {allowed}, not {value!r}{advice}"
        raise ValueError(msg)
