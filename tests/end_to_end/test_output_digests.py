"""Every output is byte for byte what an earlier revision of the program wrote."""

import json
from pathlib import Path

import pytest

from tests.helpers import output_digests
from tests.helpers.running import run

RECORDED = json.loads(output_digests.RECORDED.read_bytes())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: output_digests.write_model(name, folder / name) for name in output_digests.MODELS}


def test_the_source_models_are_those_of_the_record(models: dict[str, Path]) -> None:
    for name, path in models.items():
        assert RECORDED[name]["files"] == {path.name: output_digests.sha256(path.read_bytes())}


def test_the_record_has_every_output() -> None:
    names = {f"{model}: {output}" for model, output in output_digests.cases()}
    assert RECORDED.keys() == names | set(output_digests.MODELS)


@pytest.mark.parametrize(("model", "output"), list(output_digests.cases()))
def test_an_output_has_the_digests_that_were_recorded(
    models: dict[str, Path], tmp_path: Path, model: str, output: str
) -> None:
    def succeed(words: list[str]) -> bytes:
        result = run(*words)
        assert result.code == 0, result.err
        return result.raw

    files = output_digests.digests(output, models[model], tmp_path / "out", succeed)
    assert files == RECORDED[f"{model}: {output}"]["files"]
