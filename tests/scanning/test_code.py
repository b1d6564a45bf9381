"""Code in another form than a pickle's, and documents and models without any."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
import torch

from cgpt_convert.formats.gguf import fields
from cgpt_convert.plan import Field
from cgpt_convert.scanning import code
from cgpt_convert.scanning.result import FileScan, Verdict
from tests.helpers import zips
from tests.helpers.hostile_pickles import Payload
from tests.helpers.running import run
from tests.helpers.scan_files import member, said, scanned, tarred, zipped

UNDER = "_" * 2
REACHES = {
    "plain": "{{ ''.__class__.__mro__ }}",
    "subscript": "{{ messages['__class__'] }}",
    "attr": "{{ messages|attr('x') }}",
    "escape": r"{{ messages['\x5f\x5fclass\x5f\x5f'] }}",
    "octal": r"{{ messages['\137\137class'] }}",
    "put together": "{{ messages['_' ~ '_class' ~ '_' ~ '_'] }}",
    "format": "{{ messages['%c%cclass'|format(95, 95)] }}",
    "helper": "{{ lipsum.x }}",
    "import": "{%- import 'other' as other %}",
    "include": "{% include 'other' %}",
}
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' }}{% endfor %}{{ eos_token }}"
)


def document(value: Any, folder: Path, name: str = "config.json") -> FileScan:
    return scanned(json.dumps(value).encode(), folder, name=name)


@pytest.mark.parametrize("name", REACHES)
def test_a_template_that_reaches_for_internals_is_foreign(name: str, tmp_path: Path) -> None:
    text = REACHES[name]
    jinja2.Environment(autoescape=False).parse(text)  # it is a template
    for value in (text, [{"name": "default", "template": text}]):
        found = document({"chat_template": value}, tmp_path, "tokenizer_config.json")
        assert (found.verdict, found.sightings[0].rule.id) == (Verdict.FOREIGN, "CGPT020")
    assert scanned(text.encode(), tmp_path, name="chat_template.jinja").verdict is Verdict.FOREIGN
    assert scanned(gguf(text), tmp_path).verdict is Verdict.FOREIGN
    escaped = json.dumps({"chat_template": text}).replace("chat", "\\u0063hat").encode()
    assert scanned(escaped, tmp_path).verdict is Verdict.FOREIGN
    assert run("scan", tmp_path / "file").code == 1


JINJA = {
    "behind text": "import __init__\n{{ ''.__class__.__mro__ }}",
    "in a block": "{% for c in [].__class__.__base__.__subclasses__() %}{% endfor %}",
    "behind a raw block": "{% raw %}{# {{ ' {% endraw %}{{ cycler.__init__.__globals__ }}",
    "behind a dictionary": "{{ {'a': {'b': {}}}.__class__ }}",
    "behind a delimiter in a string": """{{ '}}' ~ "%}" ~ x.__class__ }}""",
    "put together": "{{ x['_' ~ '_class_' ~ '_'] }}",
    "of capitals": "{{ x['__CLASS__'|lower] }}",
    "of a harmless name": "{{ x['__init__'].__globals__ }}",
    "by a computed name": "{{ x|attr('cl' ~ name) }}",
}
ORDINARY = {
    "private variables": "{{ __a.slug }} {% if '__init__.py' in files %}{{ x.__b }}{% endif %}",
    "Python around": "class A:\n    def __init__(self): {{ body }}\n    {# __class__ #}",
    "a raw block": "{% raw %}{{ x.__class__ }}{% endraw %}",
    "helpers": "{% extends 'x' %}{% set a = joiner(', ') %}{{ a() }}{{ x|attr('name') }}",
    "a mark": "{%- set sentinel = '__NOT_A_NUMBER__' -%}{{ sentinel }}",
    "the version": "{{ __version__ }} {{ module.__name__ }}",
}


@pytest.mark.parametrize("suffix", [".jinja", ".jinja2", ".j2", ".yaml.J2", ".template", ".tpl"])
@pytest.mark.parametrize("name", JINJA)
def test_a_template_of_any_program_that_reaches_for_internals_is_foreign(
    name: str, suffix: str, tmp_path: Path
) -> None:
    jinja2.Environment(autoescape=False).parse(JINJA[name])
    found = scanned(JINJA[name].encode(), tmp_path, name=f"page{suffix}")
    assert (found.verdict, found.sightings[0].rule.id) == (Verdict.FOREIGN, "CGPT020")
    member = f"templates/page{suffix}"
    assert scanned(zipped({member: JINJA[name].encode()}), tmp_path).verdict is Verdict.FOREIGN


@pytest.mark.parametrize("text", ORDINARY.values(), ids=ORDINARY)
def test_an_ordinary_template_of_any_program_is_none(text: str, tmp_path: Path) -> None:
    jinja2.Environment(autoescape=False).parse(text)
    assert scanned(text.encode(), tmp_path, name="page.j2").verdict is Verdict.NOTHING


def test_jinja_runs_code_by_a_template_that_is_foreign(tmp_path: Path) -> None:
    text = "{{ cycler.__init__.__globals__['os'].getpid() }}"
    assert scanned(text.encode(), tmp_path, name="page.jinja").verdict is Verdict.FOREIGN
    program = "import jinja2, sys; print(jinja2.Template(open(sys.argv[1]).read()).render())"
    command = [sys.executable, "-c", program, str(tmp_path / "page.jinja")]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(made.stdout) > 1


def test_the_tags_of_a_template_are_found_in_linear_time() -> None:
    for part in ("{{ '", "{{ '\\'", "{", "{{ (", "{% raw %}", "{# ", "}}"):
        assert list(code.jinja("{{ '\\" + part * 200_000)) is not None


def gguf(text: str) -> bytes:
    field = fields.encode(Field("tokenizer.chat_template", "string", text))
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + field


def test_usual_templates_are_clean(tmp_path: Path) -> None:
    assert scanned(gguf(CHAT), tmp_path).verdict is Verdict.CLEAN
    found = document({"chat_template": CHAT}, tmp_path, "tokenizer_config.json")
    assert found.verdict is Verdict.NOTHING


NAMING: dict[str, Any] = {
    "auto_map": {"auto_map": {"AutoModel": "modeling_x.Model"}},
    "auto_map of another repository": {"auto_map": {"AutoTokenizer": ["a/b--x.Y", None]}},
    "attention": {"_attn_implementation_internal": "owner/kernels"},
    "attention, nested": {"text_config": {"attn_implementation": "owner/kernels@v1"}},
    "pipeline": {"custom_pipelines": {"x": {"impl": "pipe.Pipe", "pt": ["AutoModel"]}}},
    "peft": {"auto_mapping": {"base_model_class": "X", "parent_library": "team.models"}},
    "sentence-transformers": [{"idx": 0, "name": "0", "path": "", "type": "team.Model"}],
    "keras": {"class_name": "Lambda", "config": {"function": []}},
    "keras, a lambda": {"class_name": "__lambda__", "config": {"value": "4wEA"}},
    "keras, a module": {"module": "os", "class_name": "system", "config": "id"},
    "keras, a function": {"module": "keras.utils", "class_name": "function", "config": "get_file"},
    "keras, a built-in": {"module": "builtins", "class_name": "function", "config": "exec"},
    "export": {"as_expr": {"expr_str": "__import__('os').system('id')"}},
    "export, inside a function": {"expr_str": "Max(\"__import__('os').system('id')\", 1)"},
    "export, a lambda": {"expr_str": "(lambda: 1)()"},
    "export, guards": {"guards_code": ["L['x'].size()[0] == 2", "exit()"]},
    "export, a target": {"target": "torch.os.system", "inputs": [], "outputs": []},
    "export, a tree": {"in_spec": '{"context": "{\\"default_factory_module\\": \\"os\\"}"}'},
}
PLAIN: dict[str, Any] = {
    "config": {"model_type": "gpt2", "auto_map": None, "_attn_implementation": "sdpa"},
    "peft": {"auto_mapping": {"base_model_class": "X", "parent_library": "transformers.models.x"}},
    "sentence-transformers": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    ],
    "keras": {"module": "keras.layers", "class_name": "Dense", "config": {"units": 2}},
    "keras, a function": {"module": "keras.activations", "class_name": "function"},
    "export": {"expr_str": "Symbol('s77', positive=True, integer=True)"},
    "export, arithmetic": {"expr_str": "Max(1, Mod(s0 + 2*u1, 8)//4)", "target": "x"},
    "export, guards": {"guards_code": ["L['x'].size()[0] % 8 == 0", "2 <= s77 and s77 <= 64"]},
    "export, a target": {"target": "torch.ops.aten.add.Tensor", "inputs": []},
}


@pytest.mark.parametrize("name", NAMING)
def test_a_document_that_names_code_is_foreign(name: str, tmp_path: Path) -> None:
    found = document(NAMING[name], tmp_path)
    assert found.verdict is Verdict.FOREIGN, found
    assert {sighting.rule.id for sighting in found.sightings} == {"CGPT020"}
    twice = json.dumps({"x": NAMING[name]})[:-1] + ', "x": 1}'  # one reader takes the other
    assert scanned(twice.encode(), tmp_path).verdict is Verdict.FOREIGN
    assert scanned(zipped({"config.json": twice.encode()}), tmp_path).verdict is Verdict.FOREIGN


@pytest.mark.parametrize("name", PLAIN)
def test_plain_documents_name_none(name: str, tmp_path: Path) -> None:
    assert document(PLAIN[name], tmp_path).verdict is Verdict.NOTHING


def scripted(folder: Path, module: torch.nn.Module) -> FileScan:
    path = folder / "m.pt"
    torch.jit.save(torch.jit.script(module), str(path))
    return scanned(path.read_bytes(), folder)


class Writes(torch.nn.Module):
    """Writes a file when it is loaded."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> int:
        return 1

    @torch.jit.export
    def __setstate__(self, state: int) -> None:
        torch.save(torch.ones(1), "RAN")
        self.training = False


class Saves(torch.nn.Module):
    """Writes a file when it is called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "RAN")
        return x


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_foreign_if_it_runs_at_load_or_writes_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = scripted(tmp_path, Writes())
    torch.jit.load(tmp_path / "m.pt")
    assert (tmp_path / "RAN").exists()  # torch ran it
    assert found.verdict is Verdict.FOREIGN
    assert "Writes.__setstate__, which torch.jit.load runs" in said(found)
    assert scripted(tmp_path, Saves()).verdict is Verdict.FOREIGN
    found = scripted(tmp_path, torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()))
    assert found.verdict is Verdict.CLEAN


def test_a_class_with_setstate_can_be_allowed(tmp_path: Path) -> None:
    text = "class A(Module):\n  def __setstate__(self, state: int) -> NoneType:\n    pass\n"
    entries = [
        member(),
        member("archive/constants.pkl"),
        member("archive/code/__torch__/team.py", text.encode()),
    ]
    data = zips.build(entries)
    assert scanned(data, tmp_path).verdict is Verdict.FOREIGN
    found = scanned(data, tmp_path, "__torch__.team.A")
    assert (found.verdict, found.added) == (Verdict.CLEAN, ["__torch__.team.A"])
    assert scanned(data, tmp_path, "__torch__.team.B").verdict is Verdict.FOREIGN


@pytest.mark.parametrize(
    "line",
    ["torch.save(x, 'a')", "torch . \\\n save(x)", "ops.team.run(x)", "y = ops", "getattr(t, n)"],
)
def test_operators_with_effects_are_found(line: str) -> None:
    assert list(code.script(f"def f(x):\n  {line}\n", "__torch__", lambda *_: False))


@pytest.mark.parametrize(
    "line", ["torch.add(x, 1)", "ops.prim.dtype(x)", 'getattr(self, "0")', "ops.torchvision.nms(x)"]
)
def test_operators_that_compute_are_not(line: str) -> None:
    assert not list(code.script(f"def f(x):\n  {line}\n", "__torch__", lambda *_: False))


def test_an_archive_with_python_source_is_foreign(tmp_path: Path) -> None:
    source = member("archive/collections.py", b"print(1)")
    extern = member("archive/.data/extern_modules", b"numpy")
    assert scanned(zips.build([member(), source]), tmp_path).verdict is Verdict.FOREIGN
    assert scanned(zips.build([source, extern]), tmp_path).verdict is Verdict.FOREIGN
    assert scanned(zips.build([member("archive/m/x.pkl"), extern]), tmp_path).verdict is (
        Verdict.NOT_SCANNED
    )
    served = {"MAR-INF/MANIFEST.json": b"{}", "handler.py": b"x", "model.pt": b"\x80\2N."}
    assert scanned(zipped(served), tmp_path).verdict is Verdict.FOREIGN
    assert scanned(tarred(served), tmp_path).verdict is Verdict.NOT_SCANNED
    project = {"setup.py": b"import os", "README.md": b"text"}  # nothing loads it
    for data in (zipped(project), tarred(project)):
        assert scanned(data, tmp_path).verdict is Verdict.NOTHING


SETUPTOOLS = (
    b"import os; var = 'SETUPTOOLS_USE_DISTUTILS'; enabled = os.environ.get(var, 'local') == "
    b"'local'; enabled and __import__('_distutils_hack').add_shim(); "
)
SITES = {
    b"/srv/project\n": (0, 0),
    b"import team_finder\n": (1, 0),
    b"import team_finder; team_finder.install()\n": (1, 0),
    SETUPTOOLS: (1, 0),
    b"import os; os.system('id')\n": (1, 1),
    b"# note\nimport\tos, sys; exec('1')\n": (1, 1),
    b"\xef\xbb\xbfimport os; os.system('id')\n": (1, 1),
}


@pytest.mark.parametrize("text", SITES, ids=range(len(SITES)))
def test_lines_that_python_runs_at_its_start_are_foreign(text: bytes, tmp_path: Path) -> None:
    installed = tmp_path / "lib" / "site-packages"
    installed.mkdir(parents=True)
    for folder, code_ in zip((tmp_path, installed), SITES[text], strict=True):
        (folder / "x.pth").write_bytes(text)
        assert run("scan", folder / "x.pth").code == code_, folder


class Exported(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x))[:, :2]


@pytest.mark.filterwarnings("ignore")
def test_an_exported_program_is_clean_unless_it_names_code(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Exported(), (torch.randn(3, 4),), dynamic_shapes=({0: batch},))
    path = tmp_path / "m.pt2"
    torch.export.save(program, path)
    assert scanned(path.read_bytes(), tmp_path, name="x.pt2").verdict is Verdict.CLEAN
    entries = zips.entries_of(path.read_bytes())
    model = next(name for name in entries if name.endswith("model.json"))
    changed = entries[model].raw().replace(b"Symbol('s", b"exit('s")
    assert changed != entries[model].raw()
    entries[model] = zips.Entry(model, changed)
    assert scanned(zips.build(entries.values()), tmp_path).verdict is Verdict.FOREIGN
    native = zips.Entry("m/data/aotinductor/model/x.so", b"\x7fELF" + bytes(range(90)))
    data = zips.build([*entries.values(), native])
    found = scanned(data, tmp_path)
    assert (found.verdict, "machine code" in str(found.problems)) == (Verdict.FOREIGN, True)
    source = zips.Entry("m/data/aotinductor/model/x.wrapper.cpp", b"int main() {}")
    assert scanned(zips.build([*entries.values(), source]), tmp_path).verdict is Verdict.FOREIGN


@pytest.mark.slow  # joblib
def test_a_joblib_file_is_not_scanned_rather_than_damaged(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    path = tmp_path / "m.joblib"
    for compress in (0, 3, ("xz", 3), ("lzma", 3), ("bz2", 3)):
        joblib.dump({"a": np.arange(9.0), "b": [1, "x"]}, path, compress=compress)
        found = scanned(path.read_bytes(), tmp_path, name="x.joblib")
        assert found.verdict is Verdict.NOT_SCANNED
        assert "joblib" in found.problems[0].detail
        joblib.dump({"b": [1, "x"]}, path, compress=compress)
        assert scanned(path.read_bytes(), tmp_path).verdict is Verdict.CLEAN
        joblib.dump({"a": np.arange(9.0), "b": Payload()}, path, compress=compress)
        assert scanned(path.read_bytes(), tmp_path).verdict is not Verdict.CLEAN


YAML = {
    "apply": "a: !!python/object/apply:os.getpid []\n",
    "name": "a: !!python/name:os.system ''\n",
    "in full": "a: !<tag:yaml.org,2002:python/name:os.system> ''\n",
    "escaped": "a: !!%70ython/name:os.system ''\n",
    "put together": "%TAG !p! tag:yaml.org,2002:py\n---\na: !p!thon/name:os.system ''\n",
    "by another handle": "%TAG ! tag:yaml.org,2002:python/\n---\na: !name:os.system ''\n",
}


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_an_unsafe_loader_imports_from_is_foreign(name: str, tmp_path: Path) -> None:
    found = scanned(YAML[name].encode(), tmp_path, name="hparams.yaml")
    assert (found.verdict, found.sightings[0].rule.id) == (Verdict.FOREIGN, "CGPT020")
    pytest.importorskip("yaml")
    program = "import sys, yaml; print(yaml.unsafe_load(open(sys.argv[1]))['a'])"
    command = [sys.executable, "-c", program, str(tmp_path / "hparams.yaml")]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "system" in made.stdout or int(made.stdout) > 1


def test_plain_yaml_is_no_code(tmp_path: Path) -> None:
    text = b"%TAG ! tag:example.com,2000:\n---\n# !!python/name:os.system\na: !!str b\nc: !x {}\n"
    assert scanned(text, tmp_path, name="config.yml").verdict is Verdict.NOTHING


HYDRA = ("os.system", "builtins.exec", "subprocess.Popen", "torch.hub.load", "posix.system")
USUAL = ("torch.optim.Adam", "builtins.dict", "pathlib.Path", "functools.partial", "team.Net")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("target", [*HYDRA, *USUAL])
def test_functions_that_hydra_would_call_are_foreign(
    target: str, encoding: str, tmp_path: Path
) -> None:
    texts = {
        "config.json": json.dumps({"model": {"_target_": target, "args": ["id"]}}),
        "config.yaml": f"model:\n  - _target_: {target}\n    args: [id]\n",
        "flow.yml": f'model: {{"_target_": "{target}"}}\n',
    }
    for name, text in texts.items():
        verdict = scanned(text.encode(encoding), tmp_path, name=name).verdict
        assert verdict is (Verdict.FOREIGN if target in HYDRA else Verdict.NOTHING), name


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_json_in_other_encodings_is_read(encoding: str, tmp_path: Path) -> None:
    text = json.dumps({"auto_map": {"AutoModel": "team--code.Net"}})
    assert json.loads(text.encode(encoding)) == json.loads(text)
    assert scanned(text.encode(encoding), tmp_path, name="config.json").verdict is Verdict.FOREIGN
    plain = json.dumps({"auto": 1}).encode(encoding)
    assert scanned(plain, tmp_path, name="config.json").verdict is Verdict.NOTHING


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_yaml_in_other_encodings_is_read(encoding: str, tmp_path: Path) -> None:
    text = "a: !!python/object/apply:os.system [id]\n"
    assert scanned(text.encode(encoding), tmp_path, name="a.yaml").verdict is Verdict.FOREIGN
    assert scanned("a: 1\n".encode(encoding), tmp_path, name="a.yaml").verdict is Verdict.NOTHING


def test_templates_in_yaml_that_reach_for_internals_are_foreign(tmp_path: Path) -> None:
    template = "{{ cycler.__init__.__globals__.os.getpid() }}"
    assert jinja2.Template(template, autoescape=True).render() == str(os.getpid())
    for text in (f"chat_template: >-\n  {template}\n", f'a: ["{template}"]\n'):
        assert scanned(text.encode(), tmp_path, name="c.yaml").verdict is Verdict.FOREIGN
    for text in (
        'name: {{ .Values.name | replace "_" "-" }}\n',
        "run: ${{ matrix.__python__ }}\nnote: __globals__\n",
        "version: {{ environ.get('__VERSION__', '_') }}\n",
    ):
        assert scanned(text.encode(), tmp_path, name="c.yaml").verdict is Verdict.NOTHING
