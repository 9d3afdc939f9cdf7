"""The pool of a job file: entries completed from the job, credentials by variable, mistakes told."""

from pathlib import Path
from typing import Any

import pytest

from audiobatch.config.jobspec import JobSpec
from audiobatch.config.settings import Environment, check_service, credential, resolve
from audiobatch.config.targets import check_prices, targets_of
from audiobatch.errors import ConfigError
from tests.narrowing import present
from tests.running import spec_of

EAST = {"deployment": "gpt-audio", "name": "east", "endpoint": "https://east.openai.azure.com"}
WEST = {"deployment": "gpt-audio", "name": "west", "endpoint": "https://west.openai.azure.com"}


def environment(**variables: Any) -> Environment:
    return Environment(variables=variables)


def test_what_an_entry_leaves_out_comes_from_the_job() -> None:
    spec = spec_of(
        endpoint="https://one.openai.azure.com", model="gpt-audio", deployments=[{"deployment": "a"}]
    )
    (one,) = targets_of(spec, environment=environment(AZURE_OPENAI_API_KEY="k"))
    assert (one.name, one.endpoint, one.model, one.provider) == ("a", spec.endpoint, "gpt-audio", "azure")
    assert one.price is not None


def test_entries_stand_in_order_of_priority_with_quotas_and_prices_of_their_own() -> None:
    price = {"text_in": 1.1, "text_out": 2, "audio_in": 3, "audio_out": 4}
    spec = spec_of(deployments=[{**EAST, "priority": 1, "rpm": 60}, {**WEST, "price": price}])
    west, east = targets_of(spec, environment=environment(AZURE_OPENAI_API_KEY="k"))
    assert (west.name, str(present(west.price).text_in)) == ("west", "1.1")
    assert (east.name, east.rpm) == ("east", 60)


def test_each_may_have_a_key_of_its_own_by_the_name_of_a_variable() -> None:
    spec = spec_of(deployments=[EAST, {**WEST, "key_variable": "WEST_KEY"}])
    keys = environment(AZURE_OPENAI_API_KEY="for-east", WEST_KEY="for-west")
    assert [present(target.credential).key for target in targets_of(spec, environment=keys)] == [
        "for-east",
        "for-west",
    ]
    with pytest.raises(ConfigError, match="WEST_KEY is not set"):
        targets_of(spec, environment=environment(AZURE_OPENAI_API_KEY="for-east"))


def test_providers_may_be_mixed() -> None:
    spec = spec_of(deployments=[EAST, {"deployment": "gpt-audio-1.5", "provider": "openai"}])
    keys = environment(AZURE_OPENAI_API_KEY="a", OPENAI_API_KEY="o")
    azure, openai = targets_of(spec, environment=keys)
    assert (present(azure.credential).key, present(openai.credential).key, openai.endpoint) == (
        "a",
        "o",
        None,
    )


def test_the_job_s_model_is_that_of_its_entries() -> None:
    assert spec_of(deployments=[{**EAST, "model": "gpt-audio-mini"}]).model == "gpt-audio-mini"
    assert spec_of(model="gpt-audio", deployments=[{**EAST, "model": "gpt-audio-mini"}]).model == "gpt-audio"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([{**EAST}, {**EAST}], "two .* are called east"),
        ([{**EAST, "rmp": 60}], "rmp"),
        ([{**EAST, "endpoint": "http://east.example"}], "https"),
        ([{**EAST, "key_variable": "not a name"}], "key_variable"),
    ],
)
def test_mistakes_are_told(wrong: list[dict[str, Any]] | list[dict[str, str]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spec_of(deployments=wrong)


def test_a_job_file_s_unknown_key_is_told_with_the_nearest(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text('[[deployments]]\ndeployment = "a"\nendpont = "https://x"\n')
    with pytest.raises(
        ConfigError, match=r"\[\[deployments\]\] number 1: unknown key 'endpont'; did you mean 'endpoint'"
    ):
        resolve({}, job_file=job, environment=environment())


@pytest.mark.parametrize(
    "line",
    [
        *("inputs = 5", "output = 3", "turns = 5", "turns = [5]", "deployments = 3", "deployments = [3]"),
        *("prices = 4", "fields = true", 'inputs = [["a"]]', "ledger = 1.5", "on_check = 3", "reports = 3"),
    ],
)
def test_a_job_file_s_value_of_another_kind_is_told_with_its_key(tmp_path: Path, line: str) -> None:
    job = tmp_path / "job.toml"
    job.write_text(f"{line}\n")
    with pytest.raises(ConfigError, match=rf"job\.toml: {line.partition(' ')[0]}"):
        resolve({}, job_file=job, environment=environment())


def test_words_for_yes_and_no_in_the_environment_are_truth_values() -> None:
    def resolved(**variables: Any) -> JobSpec:
        return resolve({}, environment=environment(**variables)).spec

    assert resolved(AUDIOBATCH_VERIFY_SPEECH="true").verify_speech == "gpt-4o-mini-transcribe"
    assert resolved(AUDIOBATCH_VERIFY_SPEECH="whisper").verify_speech == "whisper"
    assert resolved(AUDIOBATCH_NORMALIZE="Yes").normalize == -18
    assert resolved(AUDIOBATCH_NORMALIZE="off").normalize is None
    assert resolved(AUDIOBATCH_NORMALIZE="-20").normalize == -20
    assert resolved(AUDIOBATCH_STREAM="on").stream is True
    assert resolved(AUDIOBATCH_STREAM="0").stream is False
    with pytest.raises(ConfigError, match=r"AUDIOBATCH_STREAM\): stream = 'maybe'"):
        resolved(AUDIOBATCH_STREAM="maybe")


@pytest.mark.parametrize("key", ["canary-key\u200b-77", "canary–key-77", "canary key-77", "canary\x07key"])
def test_a_key_that_no_header_carries_is_told_by_its_variable_alone(key: str) -> None:
    spec = JobSpec(endpoint=EAST["endpoint"], deployment="a")
    with pytest.raises(ConfigError, match="AZURE_OPENAI_API_KEY has a character") as refused:
        credential(spec, environment(AZURE_OPENAI_API_KEY=key))
    assert "canary" not in refused.value.message


def test_a_setting_of_a_dotenv_file_is_known_as_one_however_often_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "")
    monkeypatch.delenv("AZURE_OPENAI_API_KEY")  # put back at the end
    (tmp_path / ".env").write_text("AZURE_OPENAI_API_KEY=canary-key-77\n")
    for _ in range(2):
        found = Environment.read(tmp_path)
        assert found.origin("AZURE_OPENAI_API_KEY") == ".env (AZURE_OPENAI_API_KEY)"
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "another-key-78")
    assert Environment.read(tmp_path).origin("AZURE_OPENAI_API_KEY") == "environment (AZURE_OPENAI_API_KEY)"


def test_what_copying_left_around_a_key_is_no_part_of_it() -> None:
    spec = JobSpec(endpoint=EAST["endpoint"], deployment="a")
    assert credential(spec, environment(AZURE_OPENAI_API_KEY=" \tcanary-key-77\r\n")).key == "canary-key-77"


@pytest.mark.parametrize("path", ["/openai/v1", "/openai/deployments/a/chat/completions"])
def test_an_azure_address_with_the_api_s_path_is_told_the_resource_s(path: str) -> None:
    endpoint = EAST["endpoint"] + path
    for spec in (
        JobSpec(endpoint=endpoint, deployment="a"),
        spec_of(deployments=[{"deployment": "a", "endpoint": endpoint}]),
        spec_of(endpoint=endpoint, deployments=[{"deployment": "a"}]),
    ):
        with pytest.raises(ConfigError, match=rf"what follows: {EAST['endpoint']}$"):
            check_service(spec)
    check_service(JobSpec(provider="openai", endpoint=endpoint))


def test_a_job_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text('voice = "echo"\n', encoding="utf-8-sig")
    assert resolve({}, job_file=job, environment=environment()).spec.voice == "echo"


def test_a_job_file_s_paths_are_relative_to_it_and_shown_without_detours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jobs").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs" / "job.toml").write_text('inputs = ["in", "-", "az://c/x"]\noutput = "../out/a"\n')
    spec = resolve({}, job_file=Path("jobs/job.toml"), environment=environment()).spec
    assert spec.inputs == (str(Path("jobs/in")), "-", "az://c/x")
    assert spec.output == str(Path("out/a"))
    monkeypatch.chdir(tmp_path / "jobs")
    spec = resolve({}, job_file=Path("job.toml"), environment=environment()).spec
    assert (spec.inputs[0], spec.output) == ("in", str(tmp_path / "out" / "a"))


def test_a_deployment_in_the_environment_does_not_meddle_with_the_pool(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(f'[[deployments]]\ndeployment = "a"\nendpoint = "{EAST["endpoint"]}"\n')
    found = resolve({}, job_file=job, environment=environment(AZURE_OPENAI_DEPLOYMENT_NAME="other"))
    assert found.spec.deployment is None


def test_an_entry_without_an_endpoint_is_told() -> None:
    with pytest.raises(ConfigError, match="needs an endpoint"):
        check_service(spec_of(deployments=[{"deployment": "a"}]))


def test_rows_may_name_only_entries_of_the_pool() -> None:
    spec = spec_of(deployments=[EAST])
    with pytest.raises(ConfigError, match="not one of the"):
        targets_of(spec, ["nowhere"], environment(AZURE_OPENAI_API_KEY="k"))


def test_without_entries_rows_add_deployments_beside_the_job_s() -> None:
    spec = JobSpec(endpoint="https://x.openai.azure.com", deployment="main", rpm=60)
    targets = targets_of(spec, ["other"], environment(AZURE_OPENAI_API_KEY="k"))
    assert [(target.name, target.named_only) for target in targets] == [("main", False), ("other", True)]


def test_an_entry_of_the_pool_takes_the_overflow_also_where_rows_name_it() -> None:
    spec = spec_of(deployments=[EAST, WEST])
    names = [target.name for target in targets_of(spec, with_credentials=False)]
    assert not any(target.named_only for target in targets_of(spec, names, with_credentials=False))


def test_a_cost_limit_wants_every_price_known() -> None:
    spec = spec_of(model="gpt-audio", max_cost="1", deployments=[EAST, {**WEST, "model": "mystery"}])
    with pytest.raises(ConfigError, match="west"):
        check_prices(spec, targets_of(spec, environment=environment(AZURE_OPENAI_API_KEY="k")))


def test_a_key_is_never_printed() -> None:
    spec = JobSpec(provider="openai")
    assert "canary" not in repr(credential(spec, environment(OPENAI_API_KEY="canary")))
