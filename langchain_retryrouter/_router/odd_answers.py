"""Answers that LangChain could not read, told from a caller's own mistakes.

A server that answers 200 with an error, with null for `choices` or with a page makes an
integration raise a bare ValueError, TypeError, KeyError or AttributeError. A mistake in
the caller's messages or tools makes it raise the same. What tells the two apart is
*where*: the functions below are given nothing but a provider's answer, and call nothing
of the caller's. The traceback says whether the error came out of one of them.

The names were read in langchain-core 1.7.2, langchain-openai 1.7.3 and
langchain-anthropic 1.7.7; integrations that began as copies of the former have some of
them too. A name that is not here costs nothing but the retry: the error goes to the
caller as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import FrameType, TracebackType
from typing import Any, Final

from langchain_retryrouter import _json
from langchain_retryrouter._core.failure import FailureKind
from langchain_retryrouter._router.reports import Report, look, read_reported

_ODD: Final = (AttributeError, IndexError, KeyError, TypeError, ValueError)

_READERS: Final = frozenset(
    {
        # langchain-openai, and its copies.
        "_create_chat_result",
        "_convert_chunk_to_generation_chunk",
        "_convert_chunk_to_message_chunk",
        "_convert_delta_to_message_chunk",
        "_construct_lc_result_from_responses_api",
        "_convert_responses_chunk_to_generation_chunk",
        # langchain-anthropic.
        "_format_output",
        "_make_message_chunk_from_anthropic_event",
    }
)
_RESPONSES_READERS: Final = frozenset(
    {
        "_construct_lc_result_from_responses_api",
        "_convert_responses_chunk_to_generation_chunk",
    }
)
# These run the stream inside, and with it all that may be wrong on the way to it: only
# what they raise themselves says that the stream was empty.
_COLLECTORS: Final = frozenset({"generate_from_stream", "agenerate_from_stream"})
_INTEGRATION: Final = "langchain_"
_CODE_FIRST: Final = re.compile(r"^(?:code=')?(?P<code>[a-z_]+)(?:'|:) ")


def odd_answer(error: Exception) -> Report | None:
    """What was wrong with the answer that made an integration raise `error`.

    None where it was not the answer: a caller's mistake, or a bug.
    """
    if _json.is_unreadable(error):
        return _malformed(error)
    if not isinstance(error, _ODD) or _is_callers_schema(error):
        return None
    frames = list(_frames(error.__traceback__))
    readers = {f.f_code.co_name for f in frames if _is_integrations(f)} & _READERS
    if readers:
        return _reported_in(error, readers) or _malformed(error)
    if frames and frames[-1].f_code.co_name in _COLLECTORS:
        return _malformed(error)
    is_odd = _is_scalar_event(error) or (bool(frames) and _is_dump(frames[-1]))
    return _malformed(error) if is_odd else None


def _reported_in(error: Exception, readers: set[str]) -> Report | None:
    """The provider's own error, of an answer that was nothing else.

    langchain-openai raises `ValueError(response["error"])` for it, and for the
    Responses API the error as one text, its code first.
    """
    if type(error) is not ValueError or not error.args:
        return None
    told = error.args[0]
    dump = getattr(told, "model_dump", None)
    body = dump(warnings=False) if callable(dump) else told
    if isinstance(body, Mapping):
        return read_reported(dict(body))
    if not (isinstance(body, str) and readers & _RESPONSES_READERS):
        return None
    code = _CODE_FIRST.match(body)
    return read_reported({"message": body, "code": code["code"] if code else None})


def _malformed(error: Exception) -> Report:
    said = (
        str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    )
    return Report(
        FailureKind.MALFORMED,
        f"the provider's answer could not be read ({type(error).__name__}: {said})",
    )


def _frames(traceback: TracebackType | None) -> Iterator[FrameType]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _is_integrations(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith(_INTEGRATION)


def _is_scalar_event(error: Exception) -> bool:
    """Whether an event of a stream was JSON, and no object: `data: 42`.

    The SDKs hand on the bare value, and an integration asks it for its fields.
    """
    return (
        isinstance(error, AttributeError)
        and error.name == "model_dump"
        and isinstance(error.obj, str | int | float | list | None)
    )


def _is_dump(frame: FrameType) -> bool:
    """Whether it is an answer, as the SDK has it, that would not become plain data.

    It holds what JSON may say and nobody can write, such as half a character. The
    generated SDKs keep the types of their answers in `types`.
    """
    written = frame.f_locals.get("self")
    return frame.f_code.co_name == "model_dump" and (
        ".types." in type(written).__module__
    )


def _is_callers_schema(error: Exception) -> bool:
    """Whether an answer came that does not fit into the caller's pydantic class.

    The provider did its work then; the model's words are the caller's to judge.
    """
    title: Any = look(error, "title")
    if not isinstance(error, ValueError) or not hasattr(error, "errors"):
        return False
    return isinstance(title, str) and not title.startswith(_MESSAGES)


_MESSAGES: Final = ("AIMessage", "ChatMessage", "ChatGeneration", "ChatResult")
