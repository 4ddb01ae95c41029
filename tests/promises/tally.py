"""Whether what was heard of broken streams is the truth, and how often it was not."""

from __future__ import annotations

from dataclasses import dataclass, field

from langchain_retryrouter import RetryRouterError
from tests.promises.recordings import Recording, Told, Way
from tests.promises.stream_listeners import Heard, Listener


@dataclass
class Tally:
    """What became of many broken streams; of what went wrong some is described."""

    tried: int = 0
    taken_for_whole: int = 0
    lost_or_doubled: int = 0
    not_made_good: int = 0
    unnamed_errors: int = 0
    examples: list[str] = field(default_factory=list)

    def take(
        self, listener: Listener, recording: Recording, way: Way, place: int, h: Heard
    ) -> None:
        """Judge what was heard of `recording`, broken at `place` in this way."""
        self.tried += 1
        faults = {
            "taken_for_whole": h.error is None
            and not _is_whole(listener, recording, way, place, h),
            "lost_or_doubled": h.error is not None
            and not _is_beginning(listener, recording, way, place, h),
            "not_made_good": h.error is not None
            and _should_be_good(listener, recording, way, place),
            "unnamed_errors": not isinstance(h.error, RetryRouterError | None),
        }
        for fault in filter(faults.__getitem__, faults):
            setattr(self, fault, getattr(self, fault) + 1)
            self.examples.append(
                f"{fault}: {listener.name}, {recording.name}, {way.name} at {place}:"
                f" {h.told}, {h.finish_reason!r}, {h.error!r}"
            )


def _is_whole(
    listener: Listener, recording: Recording, way: Way, place: int, heard: Heard
) -> bool:
    """Whether an answer without an error is all of it, and its end was told."""
    could_be = (
        way.is_damage or listener.is_retried or way.is_behind_the_end(recording, place)
    )
    finish = recording.finish_reason
    return (
        could_be
        and finish is not None
        and heard.told == recording.all_told
        and (heard.finish_reason == finish or not listener.tells_finish)
    )


def _is_beginning(
    listener: Listener, recording: Recording, way: Way, place: int, heard: Heard
) -> bool:
    """Whether what came before an error is the beginning of the truth, and is told."""
    truth, before = recording.all_told, way.told(recording, place)
    delivered = getattr(heard.error, "delivered", "")
    text = delivered if listener.is_invoked else heard.told.text
    told = Told(text, heard.told.call)
    return (
        text == delivered
        and _begins(truth, told)
        and (
            listener.is_invoked
            or not way.keeps_order
            or (_begins(told, before) if way.is_damage else told == before)
        )
    )


def _begins(whole: Told, part: Told) -> bool:
    return whole.text.startswith(part.text) and whole.call.startswith(part.call)


def _should_be_good(
    listener: Listener, recording: Recording, way: Way, place: int
) -> bool:
    """Whether a whole stream, sent next, has to make the broken one good."""
    is_undone = listener.is_recovered or not any(way.told(recording, place))
    return listener.is_retried and is_undone
