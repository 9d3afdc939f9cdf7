"""The command `emulator`: flags in, `EmulatorConfig` out. Nothing heavy is imported until it runs."""

import sys
from pathlib import Path
from typing import Any

import click


def _pairs(_context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, mark, rest = value.partition("=")
        if not (name and mark and rest):
            raise click.BadParameter(f"{value!r} is not of the form {parameter.metavar}")
        pairs[name] = rest
    return pairs


def _quota_words(text: str) -> dict[str, int]:
    words: dict[str, int] = {}
    for word in text.split(","):
        kind, _, number = word.strip().partition(":")
        if kind not in ("rpm", "tpm") or not number.isdigit() or int(number) < 1:
            raise click.BadParameter(
                f"{word!r}: write rpm:N, tpm:N or both, N at least 1", param_hint="--quota"
            )
        words[kind] = int(number)
    return words


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--allow-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Another name by which /_emulator may be addressed. Repeatable.",
)
@click.option("--port", default=0, help="Plain HTTP; 0 takes a free one.")
@click.option("--tls-port", default=0, help="TLS; 0 takes a free one.")
@click.option("--api-key", default="emulator-key", show_default=True, help="The key that is let in.")
@click.option(
    "--deployment",
    "deployments",
    multiple=True,
    metavar="NAME=MODEL",
    callback=_pairs,
    help="A deployment beside those named like their model. Repeatable.",
)
@click.option(
    "--quota",
    "quotas",
    multiple=True,
    metavar="NAME=rpm:N,tpm:N",
    callback=_pairs,
    help="A deployment's requests and tokens a minute. Repeatable.",
)
@click.option("--latency", "latency_s", default=0.0, metavar="S", help="Seconds before each answer.")
@click.option(
    "--faults",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A JSON list of fault rules.",
)
@click.option("--journal", type=click.Path(dir_okay=False, path_type=Path), help="File of what was billed.")
@click.option(
    "--speech",
    type=click.Choice(["real", "tone"]),
    default="real",
    show_default=True,
    help="tone: no speech engines, for load.",
)
@click.option("--seed", default=0, help="For faults by share and for random latencies.")
@click.option("--token-life", "token_life_s", default=86_400.0, metavar="S", show_default=True)
@click.option("--audio-id-life", "audio_id_life_s", default=3600.0, metavar="S", show_default=True)
@click.option(
    "--session-life",
    "session_life_s",
    default=1800.0,
    metavar="S",
    show_default=True,
    help="A socket's longest session.",
)
@click.option(
    "--reply-seconds", "reply_audio_s", type=float, metavar="S", help="Every spoken reply this long."
)
@click.option("--max-audio-bytes", default=20 * 1024 * 1024, metavar="N", show_default=True)
@click.option(
    "--unstated-max-tokens",
    default=1000,
    metavar="N",
    show_default=True,
    help="What a token quota assumes of a request that names no maximum.",
)
@click.option(
    "--azure-first-chunk/--no-azure-first-chunk",
    default=True,
    show_default=True,
    help="Azure's streams begin with a chunk without choices.",
)
@click.option(
    "--azure-filter-results",
    type=click.Choice(["none", "on", "down"]),
    default="none",
    show_default=True,
    help="Content filter results in Azure's replies.",
)
@click.option(
    "--preview-voices-only", is_flag=True, help="The dated previews speak only alloy, echo and shimmer."
)
@click.option("--block-prompt-word", default="emulator_block_prompt", show_default=True)
@click.option("--block-reply-word", default="emulator_block_reply", show_default=True)
@click.option("--refuse-word", default="emulator_refuse", show_default=True)
@click.option("--exit-on-stdin-close", is_flag=True, hidden=True)
def emulator(deployments: dict[str, str], quotas: dict[str, str], **settings: Any) -> None:
    """Run a local stand-in for the audio models of Azure OpenAI and OpenAI.

    Prints one JSON line with its addresses when it is ready, and runs until Ctrl-C.
    """
    quota_words = {name: _quota_words(text) for name, text in quotas.items()}

    import asyncio

    from audiobatch_emulator.app import serve
    from audiobatch_emulator.config import EmulatorConfig, Quota
    from audiobatch_emulator.errors import EmulatorError

    try:
        config = EmulatorConfig(
            deployments=deployments,
            quotas={name: Quota(**words) for name, words in quota_words.items()},
            **settings,
        )
        asyncio.run(serve(config))
    except (EmulatorError, ValueError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(0)
