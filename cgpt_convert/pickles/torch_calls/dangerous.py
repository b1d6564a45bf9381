"""Classification of foreign names for messages: other packages' classes, or code execution.

It only helps a person to react. Permission depends on an exact allowlist, and a name that this
module does not recognise is equally foreign.
"""

from __future__ import annotations

import re
import sys

from cgpt_convert.pickles.torch_calls.rebuild import KNOWN


def is_dangerous_path(dotted: str) -> bool:
    """Return `is_dangerous` for a dotted name, in which the end of the module is unknown."""
    module, _, name = dotted.rpartition(".")
    return not module or ".__" in dotted or is_dangerous(module, name)


def is_dangerous(module: str, name: str) -> bool:
    """Return whether the name can run, or give access to, code chosen by the file.

    Everything in Python's standard library counts, except known data types.
    """
    module, name = module.strip(), name.strip()
    if name.startswith("__") or ".__" in name:
        return True
    top = module.partition(".")[0]
    if is_standard(top):
        return not _is_data(module, name)
    return f"{module}.{name}" in _RUNNING or f"{module}.".startswith(_WITHIN)


def runs_input(name: str) -> bool:
    """Return whether the words of a function's name say that it runs or loads its input.

    Names that begin with a capital are classes and do not count.
    """
    bare = name.strip("_")
    if bare[:1].isupper():
        return False
    words = re.sub("(?<=[a-z])(?=[A-Z])", "_", bare).lower().split("_")
    return not _VERBS.isdisjoint(words)


def reads_on(module: str, name: str) -> bool:
    """Return whether it is a class that reads raw data between the opcodes of a pickle."""
    return f"{module}.{name}" in _READING


def is_known_package(name: str) -> bool:
    """Return whether the name is a package that is commonly installed with models."""
    return is_standard(name) or name in _PACKAGES


def is_standard(name: str) -> bool:
    """Return whether the name is a package or module of the standard library of any Python."""
    return name in sys.stdlib_module_names or name in _FORMERLY


def _is_data(module: str, name: str) -> bool:
    if module in ("builtins", "__builtin__", "exceptions"):
        return name.endswith(("Error", "Exception", "Warning")) or name in _BUILTIN_DATA
    return f"{module}.{name}" in KNOWN or name in _DATA.get(module, "").split()


_BUILTIN_DATA = ("Ellipsis", "NotImplemented", "KeyboardInterrupt", "StopIteration", "SystemExit")

# what earlier and later Pythons have: a file may be loaded with one, or have been written for one
_FORMER = (
    "_aix_support _interpreters _osx_support _pyrepl annotationlib compression "
    "asynchat asyncore cgi cgitb crypt distutils imghdr lib2to3 mailcap nntplib pipes smtpd sndhdr "
    "telnetlib uu xdrlib __builtin__ ConfigParser Queue SocketServer StringIO cPickle cStringIO "
    "commands copy_reg dircache dummy_thread execfile exceptions httplib imp os2emxpath popen2 "
    "posixfile thread urllib2 urlparse xmlrpclib"
)

# of the standard library: types that only hold data, and calls that only make them
_DATA = {
    "_codecs": "encode",
    "_collections": "deque",
    "argparse": "Namespace",
    "array": "array _array_reconstructor",
    "collections": "ChainMap UserDict UserList UserString deque",
    "copy_reg": "_reconstructor __newobj__",
    "copyreg": "_reconstructor __newobj__",
    "datetime": "date datetime time timedelta timezone tzinfo",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "functools": "partial",  # calling its function takes another call, which is reported
    "ipaddress": "IPv4Address IPv4Network IPv6Address IPv6Network",
    "logging": "Logger getLogger",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "pathlib._local": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "random": "Random",
    "re": "_compile",
    "time": "struct_time",
    "types": "SimpleNamespace",
    "typing": "Any Callable Dict FrozenSet List Literal Optional Set Tuple Type Union",
    "uuid": "UUID SafeUUID",
    "zoneinfo": "ZoneInfo",
}

# words in names of functions that run or load their input
_VERBS = frozenset(
    {"compile", "eval", "evaluate", "exec", "execfile", "execute", "import", "interact", "load"}
    | {"loads", "open", "popen", "run", "runcode", "runctx", "runfile", "runsource", "runstring"}
    | {"script", "shell", "spawn", "system", "timeit"}
)

# joblib: arrays are between the opcodes, or in files opened by a given name
_READING = frozenset(
    f"joblib.{module}.{name}Wrapper"
    for module in ("numpy_pickle", "numpy_pickle_compat")
    for name in ("NumpyArray", "NDArray", "ZNDArray")
)

# other packages' modules and functions that run, fetch or load what they are told to
_MODULES = (
    "IPython aiohttp asteval celery cffi cloudpickle dill docker fabric fsspec httpx invoke "
    "joblib.externals nose numba numexpr numpy.distutils numpy.f2py numpy.testing paramiko "
    "pexpect pip pkg_resources plumbum psutil ptyprocess py pydoc pytest ray requests setuptools "
    "sh tensorflow torch._dynamo torch._inductor torch._ops torch.classes torch.distributed.rpc "
    "torch.fx torch.hub torch.jit torch.ops torch.package torch.testing "
    "torch.utils._config_module torch.utils.bottleneck torch.utils.collect_env "
    "torch.utils.cpp_extension torch.utils.model_zoo urllib3 werkzeug"
)
_FUNCTIONS = (
    "jinja2.Template jinja2.environment.Template joblib.load joblib.numpy_pickle.load numpy.load "
    "numpy.ctypeslib.load_library pandas.eval pandas.io.pickle.read_pickle pandas.read_pickle "
    "six.exec_ six.reraise sympy.lambdify sympy.sympify sympy.core.sympify.sympify "
    "sympy.parsing.sympy_parser.parse_expr sympy.utilities.lambdify.lambdify torch.load "
    "torch.serialization.load yaml.load yaml.unsafe_load"
)

# sets, because a file may name a hundred thousand
_FORMERLY = frozenset(_FORMER.split())
_RUNNING = frozenset(_FUNCTIONS.split())
_WITHIN = tuple(f"{module}." for module in _MODULES.split())
_PACKAGES = frozenset(
    name.partition(".")[0] for name in (*_MODULES.split(), *_FUNCTIONS.split(), *KNOWN)
)
