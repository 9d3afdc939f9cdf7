"""A Realtime turn as states and events, without a socket."""

import base64
from typing import Any

import pytest

from audiobatch.errors import (
    AudioBatchError,
    AuthenticationFailed,
    BadReply,
    ContentFiltered,
    CreditExhausted,
    DeploymentGone,
    OutcomeUnknown,
    RateLimited,
    RequestRejected,
    Unavailable,
)
from audiobatch.model import AudioPart, Request, Usage
from audiobatch.transports.realtime_protocol import RealtimeTurn, Stage, State
from audiobatch.transports.realtime_reply import reply_of
from audiobatch.transports.realtime_request import (
    CHUNK_BYTES,
    InputAudioSettings,
    Utterance,
    response_event,
    session_of,
    stages_of,
)

ASK = {"type": "response.create"}
SETUP = {"type": "session.update", "session": {}}
CREATED = {"type": "session.created", "session": {"id": "sess_1"}}
UPDATED = {"type": "session.updated", "session": {}}
BEGUN = {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress"}}
MOMENT = base64.b64encode(bytes(4800)).decode()


def about(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "response_id": "resp_1", **fields}


def heard(pcm: str = MOMENT, words: str = "Hello") -> list[dict[str, Any]]:
    return [
        about("response.output_audio_transcript.delta", delta=words),
        about("response.output_audio.delta", delta=pcm),
    ]


def done(status: str = "completed", *, transcript: str = "Hello", **details: Any) -> dict[str, Any]:
    content = [{"type": "output_audio", "transcript": transcript}]
    response = {
        "id": "resp_1",
        "status": status,
        "status_details": {"type": status, **details} if details else None,
        "output": [{"type": "message", "content": content}] if transcript else [],
        "usage": {"input_tokens": 3, "output_tokens": 4},
    }
    return {"type": "response.done", "response": response}


def turn(**settings: Any) -> RealtimeTurn:
    stages = settings.pop("stages", [Stage([SETUP], ("session.updated",))])
    return RealtimeTurn(stages, ASK, **{"wants_audio": True, **settings})


def asked(**settings: Any) -> RealtimeTurn:
    """A turn whose response was asked for."""
    one = turn(**settings)
    assert list(one.start()) == []
    assert list(one.receive(CREATED)) == [SETUP]
    assert list(one.receive(UPDATED)) == [ASK]
    assert one.state is State.ASKED
    return one


def feed(one: RealtimeTurn, *events: dict[str, Any]) -> None:
    for event in events:
        assert list(one.receive(event)) == []


def test_a_turn_goes_from_hello_to_done() -> None:
    one = asked()
    feed(one, BEGUN)
    states = [one.state]
    feed(one, *heard(words="Hel"), *heard(words="lo"), done())
    states.append(one.state)
    assert states == [State.ANSWERING, State.DONE]
    assert (one.reply.transcript, len(one.reply.pcm), one.reply.finish_reason) == ("Hello", 9600, "stop")


def test_a_session_that_is_open_already_is_told_at_once() -> None:
    one = turn(new_session=False)
    assert list(one.start()) == [SETUP]
    assert list(one.receive(UPDATED)) == [ASK]


def test_nothing_is_asked_for_before_all_is_acknowledged() -> None:
    acks = ("session.updated", "item:item_1", "input_audio_buffer.committed")
    one = turn(stages=[Stage([SETUP], acks)])
    assert list(one.receive(CREATED)) == [SETUP]
    added = {"type": "conversation.item.added", "item": {"id": "item_1"}}
    other = {"type": "conversation.item.added", "item": {"id": "item_2"}}
    committed = {"type": "input_audio_buffer.committed", "item_id": "item_2"}
    for event in (UPDATED, other, committed):
        assert list(one.receive(event)) == []
        assert one.safe_to_repeat
    assert list(one.receive(added)) == [ASK]
    assert not one.safe_to_repeat


def test_stages_follow_each_other() -> None:
    first, second = {"type": "one"}, {"type": "two"}
    one = turn(stages=[Stage([first], ("session.updated",)), Stage([second], ("item:x",))])
    assert list(one.receive(CREATED)) == [first]
    assert list(one.receive(UPDATED)) == [second]
    assert list(one.receive({"type": "conversation.item.done", "item": {"id": "x"}})) == [ASK]


def test_speech_that_the_service_does_not_find_is_no_speech() -> None:
    one = turn(stages=[Stage([SETUP], ("input_audio_buffer.cleared",), expects_speech=True)])
    list(one.receive(CREATED))
    with pytest.raises(RequestRejected, match="no speech"):
        one.receive({"type": "input_audio_buffer.cleared"})


def test_unknown_events_and_other_responses_are_passed_over() -> None:
    one = asked()
    stranger = {"type": "response.output_audio.delta", "response_id": "resp_9", "delta": MOMENT}
    feed(one, {"type": "brand.new"}, BEGUN, stranger, {"type": "conversation.item.added"}, {}, *heard())
    feed(one, {"type": "response.done", "response": {"id": "resp_9", "status": "failed"}})
    assert one.state is State.ANSWERING
    assert len(one.reply.pcm) == 4800


def transcribed(item: str, words: str) -> dict[str, Any]:
    kind = "conversation.item.input_audio_transcription.completed"
    return {"type": kind, "item_id": item, "transcript": words}


@pytest.mark.parametrize("early", [True, False])
def test_the_input_s_transcript_may_come_before_or_after_the_reply(early: bool) -> None:
    acks = ("input_audio_buffer.committed",)
    one = turn(stages=[Stage([SETUP], acks)], transcript_due=True)
    list(one.receive(CREATED))
    assert list(one.receive({"type": "input_audio_buffer.committed", "item_id": "i"})) == [ASK]
    if early:
        feed(one, transcribed("i", " What I said. "))
    feed(one, BEGUN, *heard(), done())
    assert one.state is (State.DONE if early else State.TRANSCRIBING)
    if not early:
        feed(one, transcribed("i", " What I said. "))
    assert one.state is State.DONE
    assert one.reply.input_transcript == "What I said."


def test_a_transcript_that_comes_late_is_none_of_the_next_turn_s() -> None:
    one = turn(stages=[], new_session=False)
    assert list(one.start()) == [ASK]
    feed(one, {**transcribed("i", "What I said before."), "usage": TOKENS}, BEGUN, *heard(), done())
    assert one.state is State.DONE
    assert (one.reply.input_transcript, one.reply.input_usages) == ("", {})


@pytest.mark.parametrize("how", ["failed", "closed", "error"])
def test_a_reply_does_not_wait_for_a_transcript_that_fails(how: str) -> None:
    one = turn(stages=[Stage([SETUP], ("input_audio_buffer.committed",))], transcript_due=True)
    list(one.receive(CREATED))
    list(one.receive({"type": "input_audio_buffer.committed", "item_id": "i"}))
    feed(one, BEGUN, *heard(), done())
    if how == "failed":
        feed(one, {"type": "conversation.item.input_audio_transcription.failed", "item_id": "i"})
    elif how == "closed":
        one.ended("gone")
    else:
        feed(one, {"type": "error", "error": {"type": "server_error"}})
    assert one.state is State.DONE
    assert one.reply.input_transcript == ""
    assert one.reply.input_usages == ({} if how == "failed" else {"i": None}), "what failed is not billed"


TOKENS = {"type": "tokens", "input_tokens": 14, "output_tokens": 45, "total_tokens": 59}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, None),
        ({"i": TOKENS}, Usage(input_audio_tokens=14, output_text_tokens=45)),
        ({"i": {"type": "duration", "seconds": 1.25}}, Usage(input_audio_tokens=13)),
        ({"i": TOKENS, "j": TOKENS}, Usage(input_audio_tokens=28, output_text_tokens=90)),
        ({"i": TOKENS, "j": None}, Usage(input_audio_tokens=35)),
    ],
    ids=["none made", "tokens", "a duration", "two", "one not told: the whole recording"],
)
def test_what_a_transcript_of_the_input_took(told: dict[str, Any], expected: Usage | None) -> None:
    one = asked()
    feed(one, BEGUN, *heard(), done())
    one.reply.input_usages = told
    sound = AudioPart(data=b"", format="wav", duration_s=3.5)
    assert reply_of(request(audio=sound), one.reply, "gpt-realtime", 1.0).input_usage == expected


def test_parts_that_voice_detection_cut_are_joined_in_order() -> None:
    one = turn(
        stages=[Stage([SETUP], ("input_audio_buffer.cleared",), expects_speech=True)], transcript_due=True
    )
    list(one.receive(CREATED))
    for item in ("a", "b"):
        feed(one, {"type": "input_audio_buffer.committed", "item_id": item})
    feed(one, transcribed("b", "then."))
    assert list(one.receive({"type": "input_audio_buffer.cleared"})) == [ASK]
    feed(one, BEGUN, *heard(), done(), transcribed("a", "First"))
    assert one.reply.input_transcript == "First then."


@pytest.mark.parametrize(
    ("status", "details", "finish_reason"),
    [
        ("completed", {}, "stop"),
        ("incomplete", {"reason": "max_output_tokens"}, "length"),
        ("incomplete", {"reason": "content_filter"}, "content_filter"),
    ],
)
def test_the_status_becomes_a_finish_reason(status: str, details: dict[str, str], finish_reason: str) -> None:
    one = asked()
    feed(one, BEGUN, *heard(), done(status, **details))
    assert one.reply.finish_reason == finish_reason


LIMITED = {"type": "tokens", "code": "rate_limit_exceeded", "message": "Please try again in 1.5s."}
OVER = {"type": "invalid_request_error", "code": "session_expired", "message": "Your session hit its end."}


@pytest.mark.parametrize(
    ("events", "error", "words"),
    [
        ([BEGUN, *heard(), done("cancelled", reason="turn_detected")], BadReply, "turn_detected"),
        ([BEGUN, *heard(), done("in_progress")], BadReply, "in_progress"),
        ([BEGUN, *heard(), done("failed", error={"message": "broken"})], OutcomeUnknown, "broken"),
        ([BEGUN, done("failed", transcript="", error=LIMITED)], RateLimited, "try again"),
        ([BEGUN, done("failed", error={"type": "server_error"})], Unavailable, "server_error"),
        ([BEGUN, done("failed")], Unavailable, "error"),
        ([BEGUN, done("failed", error={"code": "insufficient_quota"})], CreditExhausted, "insufficient"),
        ([BEGUN, done("failed", error={"code": "content_filter"})], ContentFiltered, "content_filter"),
        ([BEGUN, done("incomplete", transcript="", reason="content_filter")], ContentFiltered, "filter"),
        ([BEGUN, done()], BadReply, "neither audio nor text"),
        ([BEGUN, *heard(pcm="AAA")], BadReply, "base64"),
        ([BEGUN, about("response.output_audio.delta")], BadReply, "base64"),
        ([BEGUN, *heard(), {"type": "error", "error": OVER}], OutcomeUnknown, "its end"),
        ([{"type": "error", "error": OVER}], OutcomeUnknown, "its end"),
        (
            [{"type": "error", "error": {"type": "invalid_request_error", "message": "No."}}],
            RequestRejected,
            "No",
        ),
        ([{"type": "error", "error": LIMITED}], RateLimited, "try again"),
        (
            [BEGUN, *heard(), {"type": "error", "error": {"type": "server_error"}}],
            OutcomeUnknown,
            "server_error",
        ),
        ([{"type": "response.done", "response": None}], BadReply, "None"),
    ],
)
def test_every_other_end_is_an_error(
    events: list[dict[str, Any]], error: type[AudioBatchError], words: str
) -> None:
    one = asked()
    with pytest.raises(error, match=words):
        feed(one, *events)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OVER, Unavailable),
        (LIMITED, RateLimited),
        ({"type": "invalid_request_error", "code": "invalid_value", "message": "Bad voice"}, RequestRejected),
        ({"type": "invalid_request_error", "code": "invalid_api_key"}, AuthenticationFailed),
        ({"type": "invalid_request_error", "code": "model_not_found"}, DeploymentGone),
        ({"type": "insufficient_quota"}, CreditExhausted),
        ({"type": "server_error", "code": None, "message": "Sorry"}, Unavailable),
        ({}, Unavailable),
    ],
)
def test_an_error_before_anything_was_asked_for_cost_nothing(
    error: dict[str, Any], expected: type[AudioBatchError]
) -> None:
    one = turn()
    list(one.receive(CREATED))
    with pytest.raises(expected):
        one.receive({"type": "error", "error": error})


def test_the_wait_of_a_refusal_is_that_of_the_exhausted_counter() -> None:
    one = asked()
    limits = [
        {"name": "requests", "limit": 10, "remaining": 0, "reset_seconds": 7.5},
        {"name": "tokens", "limit": 10, "remaining": 5, "reset_seconds": 60},
    ]
    feed(one, BEGUN, {"type": "rate_limits.updated", "rate_limits": limits})
    with pytest.raises(RateLimited) as limited:
        one.receive(done("failed", error=LIMITED))
    assert limited.value.retry_after_s == 7.5
    other = asked()
    with pytest.raises(RateLimited) as limited:
        other.receive(done("failed", error=LIMITED))
    assert limited.value.retry_after_s == 1.5


@pytest.mark.parametrize("timed_out", [True, False])
def test_an_end_is_free_before_the_question_and_unknown_after_it(timed_out: bool) -> None:
    for early in (turn(), turn(new_session=False)):
        with pytest.raises(Unavailable):
            early.ended("closed (1000)", timed_out=timed_out)
    one = asked()
    feed(one, BEGUN, *heard())
    with pytest.raises(OutcomeUnknown, match=r"0\.1 s of the reply") as unknown:
        one.ended("closed (1000)", timed_out=timed_out)
    assert unknown.value.error_type == ("timed_out" if timed_out else "disconnected")


def test_a_frame_that_is_no_event_is_a_bad_reply_once_it_may_have_cost_something() -> None:
    with pytest.raises(Unavailable):
        turn().not_an_event("<html>")
    with pytest.raises(BadReply):
        asked().not_an_event("<html>")


def request(**changes: Any) -> Request:
    settings: dict[str, Any] = {
        "item_id": "a",
        "turn": 1,
        "system": "",
        "history": (),
        "text": "Hi",
        "audio": None,
        "modalities": ("text", "audio"),
        "voice": "alloy",
        "format": "mp3",
    }
    return Request(**(settings | changes))


def test_a_request_as_session_and_question() -> None:
    plain = session_of(request(), InputAudioSettings(transcription_model="whisper-1"))
    assert plain == {
        "type": "realtime",
        "output_modalities": ["audio"],
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "transcription": None,  # nothing is spoken: nothing is to be written down
                "turn_detection": None,
            },
            "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "alloy"},
        },
    }
    sound = AudioPart(data=b"", format="wav", duration_s=1.0)
    spoken = session_of(
        request(audio=sound, system="Be kind.", modalities=("text",), voice=""),
        InputAudioSettings(transcription_model="whisper-1", voice_detection=True, silence_ms=700),
    )
    assert spoken["instructions"] == "Be kind."
    assert spoken["output_modalities"] == ["text"]
    assert "voice" not in spoken["audio"]["output"]
    assert spoken["audio"]["input"]["transcription"] == {"model": "whisper-1"}
    detection = spoken["audio"]["input"]["turn_detection"]
    assert detection["silence_duration_ms"] == 700
    # A pause in a recording neither answers nor interrupts.
    assert (detection["create_response"], detection["interrupt_response"]) == (False, False)
    assert response_event(request(max_completion_tokens=9))["response"] == {
        "output_modalities": ["audio"],
        "max_output_tokens": 9,
    }


def test_a_recording_is_sent_in_pieces_and_committed() -> None:
    pcm = bytes(range(256)) * 2500
    (stage,) = stages_of(
        [Utterance(text="Listen:", pcm=pcm)], InputAudioSettings(), session={"type": "realtime"}
    )
    events = list(stage.events)
    kinds = [event["type"] for event in events]
    pieces = [base64.b64decode(event["audio"]) for event in events if "audio" in event]
    assert kinds[:2] == ["session.update", "conversation.item.create"]
    assert kinds[-1] == "input_audio_buffer.commit"
    assert b"".join(pieces) == pcm
    assert max(map(len, pieces)) == CHUNK_BYTES
    item = events[1]["item"]
    assert stage.acks == ("session.updated", f"item:{item['id']}", "input_audio_buffer.committed")
    assert len(item["id"]) <= 32


def test_earlier_turns_are_told_again_in_order() -> None:
    told = [
        Utterance(text="One", pcm=bytes(9600)),
        Utterance(text="I heard one.", is_reply=True),
        Utterance(text="Two", pcm=bytes(9600)),
    ]
    stages = stages_of(told, InputAudioSettings(), session=None)
    events = [event for stage in stages for event in stage.events]
    said = [
        (event["item"]["role"], event["item"]["content"][0]["type"]) if "item" in event else event["type"]
        for event in events
    ]
    assert said == [
        ("user", "input_text"),
        "input_audio_buffer.append",
        "input_audio_buffer.commit",
        ("assistant", "output_text"),
        ("user", "input_text"),
        "input_audio_buffer.append",
        "input_audio_buffer.commit",
    ]
    assert [stage.acks.count("input_audio_buffer.committed") for stage in stages] == [1, 1]


def test_where_the_service_detects_speech_its_end_is_waited_for() -> None:
    hearing = InputAudioSettings(voice_detection=True, silence_ms=500)
    stages = stages_of([Utterance(text="Hi", pcm=bytes(48_000))], hearing, session={"type": "realtime"})
    assert [stage.expects_speech for stage in stages] == [False, True]
    events = list(stages[1].events)
    assert events[-1] == {"type": "input_audio_buffer.clear"}
    sent = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    assert len(sent) == 48_000 + 48_000  # a second of silence ends the last word


@pytest.mark.parametrize(
    "usage",
    [
        {"input_tokens": 5, "input_token_details": [1]},
        {"input_tokens": 5.5, "output_tokens": 1},
        {"input_tokens": "many", "output_tokens": 1},
    ],
)
def test_odd_token_counts_are_not_known_and_the_reply_is_kept(usage: dict[str, Any]) -> None:
    one = turn(wants_audio=False)
    one.reply.response, one.reply.text = {"id": "resp_1", "usage": usage}, "Hello"
    reply = reply_of(request(), one.reply, "gpt-realtime", 1.0)
    assert (reply.text, reply.usage) == ("Hello", None)


@pytest.mark.parametrize(
    "billed", [{"type": "duration", "seconds": "long"}, {"type": "tokens", "input_tokens": [1]}]
)
def test_an_odd_bill_for_the_input_s_words_is_taken_by_the_recording_s_length(billed: dict[str, Any]) -> None:
    one = turn(wants_audio=False)
    one.reply.text, one.reply.input_usages = "Hello", {"item_1": billed}
    sound = AudioPart(data=b"", format="wav", duration_s=2.0)
    assert reply_of(request(audio=sound), one.reply, "m", 1.0).input_usage == Usage(input_audio_tokens=20)
