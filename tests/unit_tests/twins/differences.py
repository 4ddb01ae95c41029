"""Where twins differ, and why: each difference as it is, to the line.

A difference that is not written down here fails, and so does one that has grown.
"""

from __future__ import annotations

from typing import NamedTuple


class Difference(NamedTuple):
    """What one twin has and the other has not.

    Attributes:
        reason: Why it must be so.
        lines: Lines of the normal forms: `-` the sync twin's, `+` the async twin's.
    """

    reason: str
    lines: str


_CROWD = "only calls in one event loop have to let each other, and others, pass"

WRITTEN = {
    "_callbacks.RetryVisibleChatModel.stream": Difference(_CROWD, "+    _enter()"),
    "_drive.calls.call": Difference(
        "a task can be cut off from outside; a thread's request is handed its limit;"
        f" {_CROWD}",
        """
-    result = retrying(plan, steering, lambda: send(begin(steering)), notify)
+    result = retrying(plan, steering, lambda: _send(steering, send), notify)
+    go_on()
""",
    ),
    "_drive.calls.retrying": Difference(_CROWD, "+        go_on()"),
    "_drive.turns.begin": Difference(_CROWD, "+    go_on()"),
    "_drive.clock._SystemClock.sleep": Difference(
        "the two calls of sleep, each once",
        """
-    time.sleep(seconds)
+    return asyncio.sleep(seconds)
""",
    ),
    "_drive.streams.EventSource": Difference(
        "a blocking read is unblocked from another thread, a task by its loop",
        """
-
-    def abort(self) -> None:
-        pass
""",
    ),
    "_drive.streams._Opened": Difference(
        "limits are the watchdog's in sync, the event loop's in async",
        """
-    watch: Watch
""",
    ),
    "_drive.streams.stream": Difference(
        "limits are the watchdog's in sync, the event loop's in async",
        """
-        opened.watch.end()
""",
    ),
    "_drive.streams._open": Difference(
        "limits are the watchdog's in sync, the event loop's in async",
        """
-    clock = steering.clock
-    began = clock.monotonic()
+    source: EventSource[E] | None = None
-    source = connect(attempt)
-    opened = _Opened(source, follower, Watch(source.abort))
-        if attempt.timeout is not None:
-            opened.watch.expect_within(attempt.timeout - (clock.monotonic() - began))
-        for event in opened.events:
-            if follower.hold(event) and opened.watch.pause():
-                return opened
-            if follower.guard.saw_token and opened.watch.pause():
-                opened.watch.expect_within(follower.limit())
-        follower.ended()
+        with asyncio.timeout(attempt.timeout) as limit:
+            source = connect(attempt)
+            opened = _Opened(source, follower)
+            for event in opened.events:
+                if follower.hold(event):
+                    return opened
+                if follower.guard.saw_token:
+                    _reschedule(limit, follower.limit())
+            follower.ended()
-        opened.watch.end()
-        source.close()
-        if opened.watch.has_fired and isinstance(error, RetryRouterError):
+        if source is not None:
+            source.close()
+        if isinstance(error, TimeoutError) and limit.expired():
""",
    ),
    "_drive.streams._pull": Difference(
        "limits are the watchdog's in sync, the event loop's in async",
        """
-    follower, watch = (opened.follower, opened.watch)
+    follower = opened.follower
-    watch.expect_within(limit)
-        event = next(opened.events, _END)
+        event = _anext_within(opened.events, limit)
-        if watch.has_fired:
-            return follower.fell_silent(limit or 0.0)
-    if limit is not None:
-        watch.pause()
+    if event is _SILENCE:
+        return follower.fell_silent(limit or 0.0)
""",
    ),
    "chat_models._exchange.Exchange": Difference(
        "what takes any iterable cannot take an async one: it is collected first",
        """
-                return assemble(events)
+                return assemble(list(events))
""",
    ),
    "chat_models._routes.Route.generate": Difference(
        "what a model streams it may stream in one of both ways only",
        """
-    if self._is_asked_directly(options, api=False):
+    if self._is_asked_directly(options, api=True):
""",
    ),
    "chat_models._routes.Route.stream": Difference(
        "an async generator is not closed by who leaves it, and says so in its type",
        """
-    if not self._can_stream(options, api=False):
+    if not self._can_stream(options, api=True):
""",
    ),
    "chat_models._trip.Trip": Difference(
        "sync code keeps to a limit by a thread, async code by its event loop,"
        " whose cancels a foreign coroutine may lose",
        """
+        del attempt
-        with self._named_errors(leg), self._timed(leg):
-            ask = partial(leg.route.generate, leg.messages, asked.stop)
-            result = within(attempt.timeout, partial(ask, asked.options))
+        with self._named_errors(leg), self._timed(leg), heeding_cancels():
+            result = leg.route.generate(leg.messages, asked.stop, asked.options)
-        events = self._events(self._leg())
+        del attempt
+        events = _Direct(self._events(self._leg()))
-            return HedgedSource(PumpedSource(events), _Hedge(self, self._rival), says)
-        if attempt.timeout is None and self._session.policy.stall_timeout is None:
-            return _Direct(events)
-        return PumpedSource(events)
+            return HedgedSource(events, _Hedge(self, self._rival), says)
+        return events
-        return PumpedSource(self._events(self._leg(position)))
+        return _Direct(self._events(self._leg(position)))
""",
    ),
    "chat_models._trip._Direct": Difference(
        "what is aborted from another thread in sync is cancelled in async, and a"
        " foreign coroutine may lose that",
        """
-    def __iter__(self) -> Iterator[Event]:
-        return self._events
+    def __iter__(self) -> Self:
+        return self
-    def abort(self) -> None:
-        pass
+    def __next__(self) -> Event:
+        with heeding_cancels():
+            return next(self._events)
""",
    ),
    "chat_models._exchange._ToldAtOnce": Difference(
        "what is aborted from another thread in sync is cancelled in async",
        """
-    def abort(self) -> None:
-        pass
-
""",
    ),
    "chat_models._exchange._ForeignEvents": Difference(
        "what is aborted from another thread in sync is cancelled in async",
        """
-    def abort(self) -> None:
-        pass
-
""",
    ),
    "embeddings._exchange.Exchange": Difference(
        "a task can be cut off from outside; a thread's request is handed its limit",
        """
-    def send(self, attempt: Attempt) -> list[Vector]:
+    def send(self, _attempt: Attempt) -> list[Vector]:
-        return self._read(self._client.post(path, payload, attempt.timeout))
+        return self._read(self._client.post(path, payload))
""",
    ),
    "embeddings.gpt_router.GPTRouterEmbeddings.embed_documents": Difference(
        "chunks are sent one after the other in sync, side by side in async",
        """
-    return joined([self._embed(chunk) for chunk in chunks])
+    return joined(in_order(self._embed, chunks, self.max_concurrency))
""",
    ),
    "_openai.clients.sending.create": Difference(
        "a task is cut off from outside; a thread's reads are given what is left",
        """
-    with typed_errors(wall, resource), read_within(attempt.timeout), whole_answers():
+    with typed_errors(wall, resource), whole_answers():
""",
    ),
    "_openai.clients.repeats.send": Difference(
        "what is written by hand is written to aiohttp's connections",
        """
+        if not stream:
+            answer = http_client_of(client).ask(repeat)
+            if answer is not None:
+                return _checked(client, answer)
""",
    ),
    "_openai.clients.bounded_bodies.bound": Difference(
        "the HTTP library tells the bodies of its twins apart by their class",
        """
-    _put_between(response, 'SyncByteStream')
+    _put_between(response, 'ByteStream')
""",
    ),
    "_openai.clients.sending.open_stream": Difference(
        "a task is cut off from outside; a thread's reads are given what is left",
        """
-    with typed_errors(wall, resource), read_within(attempt.timeout):
+    with typed_errors(wall, resource):
""",
    ),
    "llms._closing.closing": Difference(
        "a method is asked for by its name, as a string",
        """
-    has_end = hasattr(chunks, 'close')
+    has_end = hasattr(chunks, 'aclose')
""",
    ),
}

_LIBRARIES = "urllib3 blocks and is timed by its sockets, aiohttp by the event loop"
_THREADS = "threads are waited for, tasks are cancelled"
_SDK = "the SDK's two clients differ in their parts, and in who owns them"

BY_LIBRARY = {
    "_gptrouter.bodies.SyncEvents": _LIBRARIES,
    "_gptrouter.bodies.read_all": _LIBRARIES,
    "_gptrouter.pools.sync_pool": _LIBRARIES,
    "_gptrouter.bodies._read_some": _LIBRARIES,
    "_gptrouter.transport.GatewayClient.generate": _LIBRARIES,
    "_gptrouter.transport.GatewayClient.post": _LIBRARIES,
    "_gptrouter.transport.GatewayClient.open_stream": _LIBRARIES,
    "_gptrouter.transport.GatewayClient._send": _LIBRARIES,
    "_gptrouter.sending.send": _LIBRARIES,
    "_openai.clients.plain.PlainEvents": _SDK,
    "_openai.clients.sharing._SharedClient": _SDK,
    "_openai.clients.streams.SDKStream": _SDK,
    "_openai.clients.streams._Body": _SDK,
    "_drive.concurrency.in_order": _THREADS,
    "_drive.hedging.HedgedSource": _THREADS,
    "_drive.hedging._Runner": _THREADS,
}
"""Twins over two different libraries: they differ in more than can be written down."""

ALONE = {
    "_callbacks._enter": _CROWD,
    "_callbacks.RetryVisibleChatModel.ainvoke": _CROWD,
    "llms.openai.OpenAILLM.ainvoke": _CROWD,
    "_drive.turnstile.enter": _CROWD,
    "_drive.turnstile.go_on": _CROWD,
    "_drive.calls._asend": "sync sends need no limit around them: see `call`",
    "_drive.streams._anext_within": "the sync twin's limit is the watchdog's",
    "_gptrouter.pools._LoopSession.open": "a sync pool belongs to no loop",
    "_gptrouter.pools._close_with_loop": "a sync pool belongs to no loop",
    "_gptrouter.sending._post_leanly": "urllib3 has one way, and our connections in it",
    "_gptrouter.sending._post_by_session": "likewise",
    "_aiohttp.LeanPosts.post": "likewise",
    **{
        f"_openai.clients.aio_transport.{name}": "the sync engine is the HTTP library's"
        for name in (
            "client_class.AioClient.ask",
            "client_class.AioClient.send",
            "_straight",
            "_Transport.ask",
            "_Transport.handle_async_request",
            "_Transport._send",
            "_Transport.aclose",
            "_Connector._create_connection",
            "_pieces",
            "_Body.__aiter__",
            "_Body.next_part",
            "_Body.aclose",
        )
    },
    "_openai.clients.bounded_bodies.aread_bounded": "the sync engine is the HTTP"
    " library's, which reads",
    "_openai.clients.sharing._keeper": "a sync client belongs to no loop",
    "_openai.clients.sharing.AsyncKey.__call__": "makes a sync key an async one",
}
"""Async functions that have no sync twin, and why."""
