"""`cgpt-convert models`."""

from __future__ import annotations

import json

from click.testing import CliRunner

from cgpt_convert.cli.models import command


def test_table_has_every_model_and_the_count_that_others_leave_blank() -> None:
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[: lines.index("")]}
    assert len(rows) == 12
    assert rows["cerebras-gpt-13b"] == (
        "40 5120 40 128 20480 12,853,386,240 13B 2.57e11 2.3e22 1.575 51.4 GB 51.6 GB yes"
    )
    assert rows["gpt2"] == "12 768 12 64 3072 124,439,808 124M - - - 498 MB - -"


def test_json_has_numbers_and_null_for_what_nobody_published() -> None:
    result = CliRunner().invoke(command, ["--json"])
    assert result.exit_code == 0
    rows = {row["name"]: row for row in json.loads(result.output)["models"]}
    assert len(rows) == 11
    big = rows["cerebras-gpt-13b"]
    assert (big["parameters"], big["n_layer"], big["d_head"]) == (12_853_386_240, 40, 128)
    assert (big["pile_loss"], big["pile_loss_paper"]) == (1.575, 1.572)
    assert big["training_flops"] == 2.3e22
    assert big["float32_nbytes"] == 51_413_544_960
    assert big["file_nbytes"] == 51_581_317_280
    assert rows["gpt2-xl"]["file_nbytes"] is None
    assert rows["gpt2-xl"]["training_tokens"] is None
    assert rows["gpt2-xl"]["mapping"] is False
