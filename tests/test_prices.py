"""Prices and costs: decimal, by the service's own counts, never more than the worst case."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiobatch.config.prices import Price, price_of, price_table, total_usd
from audiobatch.config.targets import Target
from audiobatch.errors import ConfigError
from audiobatch.model import AudioPart, Exchange, PriorReply, Request, Usage, total_usage
from audiobatch.planning.worst_case import BOUND_TOKENS, bounded, worst_unknown_usd, worst_usd
from tests.narrowing import present
from tests.running import spec_of

REQUEST: dict[str, Any] = {
    "item_id": "a",
    "turn": 1,
    "system": "",
    "history": (),
    "audio": None,
    "voice": "alloy",
    "format": "wav",
}


def test_a_gpt_audio_reply_costs_what_one_computes_by_hand() -> None:
    # 8 text in, 17 text out, 37 audio out: 8 × 2.50 + 17 × 10 + 37 × 64 = 2558 millionths of a dollar
    usage = Usage(input_text_tokens=8, output_text_tokens=17, output_audio_tokens=37)
    assert present(price_of("gpt-audio-1.5")).cost_usd(usage) == Decimal("0.002558")


def test_an_hour_of_recordings_and_replies_to_the_cent() -> None:
    usage = Usage(
        input_text_tokens=10_000,
        input_audio_tokens=36_000,
        output_text_tokens=15_000,
        output_audio_tokens=72_000,
    )
    by_hand = Decimal("0.025") + Decimal("1.152") + Decimal("0.15") + Decimal("4.608")
    assert present(price_of("gpt-audio-1.5")).cost_usd(usage) == by_hand == Decimal("5.935")


def test_cached_tokens_are_taken_off_the_text_first() -> None:
    price = price_of("gpt-realtime-1.5")
    usage = Usage(input_text_tokens=100, input_audio_tokens=100, cached_tokens=150)
    assert present(price).cost_usd(usage) == (Decimal("0.40") * 150 + Decimal(32) * 50) / 1_000_000


def test_a_dated_snapshot_costs_what_its_family_does_and_an_unknown_model_is_unknown() -> None:
    assert price_of("gpt-audio-2025-08-28") == price_of("gpt-audio")
    assert price_of("gpt-audio-9") is None


def test_the_user_s_own_table_takes_the_place_of_ours_and_knows_providers(tmp_path: Path) -> None:
    own = tmp_path / "prices.toml"
    own.write_text(
        "[models.mine]\ntext_in = 1\ntext_out = 2\naudio_in = 3.1\naudio_out = 4\n"
        "[azure.mine]\ntext_in = 1\ntext_out = 2\naudio_in = 3\naudio_out = 5\n"
    )
    assert present(price_of("mine", "openai", prices=str(own))).audio_in == Decimal("3.1")
    assert present(price_of("mine", "azure", prices=str(own))).audio_out == Decimal(5)
    assert price_of("gpt-audio", prices=str(own)) is None


def test_a_sum_with_an_unknown_cost_is_unknown() -> None:
    assert total_usd([]) == Decimal(0)
    assert total_usd(iter([Decimal("0.1"), Decimal("0.2")])) == Decimal("0.3")
    assert total_usd([Decimal("0.1"), None]) is None


def test_usages_add_up_count_by_count_and_calls_without_any_are_left_out() -> None:
    one = Usage(input_text_tokens=1, input_audio_tokens=2, cached_tokens=3, output_text_tokens=4)
    other = Usage(input_text_tokens=10, output_audio_tokens=50)
    both = Usage(
        input_text_tokens=11,
        input_audio_tokens=2,
        cached_tokens=3,
        output_text_tokens=4,
        output_audio_tokens=50,
    )
    assert one + other == both
    assert total_usage([None, one, None, other]) == both
    assert total_usage([None]) is None


def test_a_table_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    with pytest.raises(ConfigError, match=r"price table .*bad.toml: cannot be read \(No such file"):
        price_table(bad)
    for text in ("[models.mine]\ntext_in = 'much'\n", "[models.mine]\ntext_in = '1'\n", "models = 3\n"):
        bad.write_text(text)
        with pytest.raises(ConfigError, match=r'needs text_in, .* numbers as "2.50"'):
            price_table(bad)
    bad.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not valid TOML"):
        price_table(bad)


PRICE = Price(text_in=Decimal("2.5"), text_out=Decimal(10), audio_in=Decimal(32), audio_out=Decimal(64))


@given(
    text=st.text(max_size=300),
    system=st.text(max_size=100),
    heard_s=st.floats(0, 600),
    longest=st.integers(1, 5000),
    share=st.floats(0, 1),
    follows=st.booleans(),
)
def test_no_call_costs_more_than_its_worst_case(
    text: str, system: str, heard_s: float, longest: int, share: float, follows: bool
) -> None:
    sound = AudioPart(data=b"", format="wav", duration_s=heard_s) if heard_s else None
    prior = PriorReply(audio_id="audio_1", audio_expires_at=None, text="Yes.")
    history = (Exchange(text="Earlier.", audio=sound, reply=prior),) if follows else ()
    request = Request(
        **{**REQUEST, "history": history, "audio": None if follows else sound, "system": system},
        text=text,
        modalities=("text", "audio"),
        max_completion_tokens=longest,
    )
    spoken = int(longest * share)
    usage = Usage(
        # a token a byte at most, and a few for each message
        input_text_tokens=len((text + system + "Earlier.").encode()) + 20,
        input_audio_tokens=int(heard_s * 10) + 1 + (longest if follows else 0),
        output_text_tokens=longest - spoken,
        output_audio_tokens=spoken,
    )
    assert PRICE.cost_usd(usage) <= worst_usd(request, PRICE)


def test_a_call_without_a_maximum_gets_one_where_a_limit_holds() -> None:
    request = Request(**REQUEST, text="Hello", modalities=("text", "audio"))
    assert bounded(request).max_completion_tokens == BOUND_TOKENS


def test_a_follow_up_in_text_with_no_sound_left_is_bounded_as_one_that_speaks() -> None:
    prior = PriorReply(audio_id=None, audio_expires_at=None, text="[0:00:00] Words.")
    history = (Exchange(text="What is said?", audio=None, reply=prior),)
    request = Request(
        **{**REQUEST, "history": history}, text="And?", modalities=("text",), max_completion_tokens=100
    )
    usage = Usage(input_text_tokens=20, output_audio_tokens=100)
    assert PRICE.cost_usd(usage) <= worst_usd(request, PRICE)


@pytest.mark.parametrize(
    ("job", "rate"),
    [
        ({"prompt": "a"}, 10),
        ({"prompt": ("a", "b")}, 64),
        ({"prompt": ("a", "b"), "transport": "realtime"}, 10),
    ],
)
def test_a_call_with_an_unknown_end_may_have_spoken_where_a_follow_up_is_asked_for_with_sound(
    job: dict[str, Any], rate: int
) -> None:
    place = Target(
        name="one", deployment="one", provider="azure", endpoint=None, api_version="v1", model="m",
        credential=None, price=PRICE,
    )  # fmt: skip
    spec = spec_of(modalities="text", max_completion_tokens=1000, **job)
    assert worst_unknown_usd([place], spec) == Decimal(rate) * 1000 / 1_000_000
