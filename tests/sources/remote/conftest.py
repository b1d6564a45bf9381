"""One nginx with one set of models for all tests of a process."""

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.helpers.servers import Nginx, nginx


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cs/, hf/ and sharded/: the small model as the vendor writes it, each with its config.json.

    forged.bin: hf/'s file, but one record's local header names another.
    big.pt: 5.4 GB, most of it holes, of which torch says that their values were not saved.
    """
    import torch

    from tests.helpers import vendor

    small = vendor.SIZES["small"]
    folder = tmp_path_factory.mktemp("models")
    for layout in ("cs", "hf"):
        vendor.write(small, folder / layout, layout)
        vendor.write_config(small, folder / layout, layout)
    vendor.write(small, folder / "sharded", "hf", shards=True)
    data = bytearray((folder / "hf" / "pytorch_model.bin").read_bytes())
    at = data.rindex(b"archive/data/5FB")  # in the local header: torch pads after the name
    data[at : at + 14] = b"archive/data/6"
    (folder / "forged.bin").write_bytes(data)
    with torch.serialization.skip_data():
        state = {f"layer.{i}.weight": torch.empty(5_400_000 // 200 * 1024) for i in range(50)}
        torch.save(
            {**state, **{f"layer.{i}.bias": torch.empty(1) for i in range(300)}}, folder / "big.pt"
        )
    return folder


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    with nginx(tmp_path_factory.mktemp("nginx")) as running:
        for each in models.iterdir():
            copy = running.www / each.name
            copy.symlink_to(each)
        yield running


@pytest.fixture(autouse=True)
def _no_proxy() -> Iterator[None]:
    with patch.dict("os.environ", {"NO_PROXY": "*"}):
        yield
