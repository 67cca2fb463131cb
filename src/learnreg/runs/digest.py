"""What tells one problem, loss or learner from another: a digest of everything an object is made
of, the same in every process.

Objects are taken apart as ``pickle`` would, so ``__getstate__`` decides what counts: caches that it
leaves out do not, nor do the attributes that a class names in ``__fingerprint_exclude__``.
Functions count by what they do: code, what they have caught, defaults, and the globals that they
use. So do classes from outside installed packages. Installed packages count by name.

What does not count: where a tensor lies (device, memory format), hooks and the training mode of
modules, docstrings of classes, and how far a ``torch.Generator`` has advanced: the seed says which
numbers it gives, and the data that were drawn from it are counted themselves, whereas a physics
that measures something in between is still the same physics. What a function imports in its body
counts by name.

What cannot be taken apart (open connections, running threads) is refused in words.
"""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
import io
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import CheckpointError
from ..core.ranges import shown

WORDS = (str, bytes, int, float, complex, bool, range, torch.dtype, torch.layout)
PLAIN = (*WORDS, torch.memory_format, type(None), type(...), type(NotImplemented))
"""Told by their repr."""

MODULE_FIELDS = frozenset(vars(nn.Module())) - {"_parameters", "_buffers", "_modules"}
"""Hooks, training mode and the like."""

LOCKS = (type(threading.Lock()), type(threading.RLock()))

BUILTINS = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)

WRAPPERS = (staticmethod, classmethod)

OWN, KNOWN = "learnreg", ("learnreg", "torch", "deepinv", "numpy")
"""Packages whose version does not count; other installed ones do with theirs."""


def digest_of(*parts: object) -> str:
    """Changes when any of the parts does.

    Raises:
        CheckpointError: names what cannot be told from another of its kind.
    """
    return _Digest().of(parts).hex()


class _Digest:
    """One digest. Every object has one of its own, kept as long as this lives, so equal objects
    give the same whether they are one or several; ``open`` has those that are being taken apart.
    """

    def __init__(self) -> None:
        self.known: dict[int, tuple[bytes, object]] = {}  # why the object: its id must stay its own
        self.open: dict[int, int] = {}
        self.path: list[str] = []

    def of(self, part: object, name: str = "") -> bytes:
        """The digest of anything; ``name`` says where it is, for refusals."""
        if type(part) in PLAIN:
            return _join(type(part).__name__, repr(part))
        key = id(part)
        if key in self.known:
            return self.known[key][0]
        if key in self.open:
            return _join("again", str(self.open[key]))
        self.open[key] = len(self.open)
        self.path.append(name)
        found = _join(*self._pieces(part))
        del self.open[key]
        self.path.pop()
        self.known[key] = found, part
        return found

    def _pieces(self, part: object) -> Iterable[str | bytes]:
        """What ``part`` is made of, its kind first."""
        if isinstance(part, Tensor):
            return self._tensor(part)
        if isinstance(part, np.ndarray):
            return self._array(part)
        if isinstance(part, Enum):
            return "member", self.of(type(part)), part.name or repr(part.value)
        if isinstance(part, type):
            return self._class(part)
        if type(part) in (tuple, list, dict, set, frozenset):
            return self._container(part)
        if isinstance(part, torch.Generator):
            return "generator", str(part.initial_seed())
        if isinstance(part, torch.device):
            return ("device",)
        return self._code(part) or self._object(part)

    # --- numbers ----------------------------------------------------------------------------------
    def _tensor(self, part: Tensor) -> Iterator[bytes | str]:
        yield from ("tensor", str(part.dtype), str(tuple(part.shape)))
        try:
            whole = part.detach()
            whole = whole.to_dense() if whole.layout != torch.strided else whole
            # data may be larger than memory
            for piece in whole.split(64) if whole.dim() else [whole]:
                plain = piece.cpu().resolve_conj().resolve_neg().contiguous().view(-1)
                yield plain.view(torch.uint8).numpy().tobytes()
        except RuntimeError as error:  # without numbers: fake ones, those of a transform
            raise self._refusal(part) from error

    def _array(self, part: np.ndarray[Any, Any]) -> Iterable[str | bytes]:
        inside = part.tobytes() if not part.dtype.hasobject else self.of(part.tolist())
        return "array", part.dtype.str, str(part.dtype.descr), str(part.shape), inside

    def _container(self, part: Any) -> Iterable[str | bytes]:
        kind = type(part).__name__
        if isinstance(part, dict):
            items = ((self.of(k), self.of(v, f"[{shown(k)}]")) for k, v in part.items())
            return kind, *(piece for item in items for piece in item)
        if isinstance(part, set | frozenset):  # their order differs between processes
            return kind, *sorted(self.of(item) for item in part)
        return kind, *(self.of(item, f"[{i}]") for i, item in enumerate(part))

    # --- what is done -----------------------------------------------------------------------------
    def _code(self, part: Any) -> Iterable[str | bytes] | None:
        """Functions in all their forms, and modules; None for anything else."""
        if isinstance(part, types.FunctionType):
            return self._function(part)
        if isinstance(part, types.CodeType):
            names = (part.co_code, part.co_exceptiontable, repr(part.co_names))
            return "code", *names, *(self.of(c) for c in part.co_consts)
        if isinstance(part, types.MethodType):
            return "method", self.of(part.__func__), self.of(part.__self__, ".__self__")
        if isinstance(part, WRAPPERS):
            return type(part).__name__, self.of(part.__func__)
        if isinstance(part, property):
            return "property", *(self.of(f) for f in (part.fget, part.fset, part.fdel))
        if isinstance(part, functools._lru_cache_wrapper):
            return "cached", self.of(part.__wrapped__)
        if isinstance(part, types.ModuleType):
            return self._module(part)
        if isinstance(part, BUILTINS):
            owner = getattr(part, "__self__", None)
            return "builtin", part.__qualname__, self.of(owner)
        return None

    def _function(self, part: types.FunctionType) -> Iterable[str | bytes]:
        caught = tuple(map(_content, part.__closure__ or ()))
        pieces = [
            self.of(part.__code__),
            self.of(caught, f" in {part.__qualname__}"),
            self.of(part.__defaults__, f" in {part.__qualname__}"),
            self.of(part.__kwdefaults__, f" in {part.__qualname__}"),
            self.of({k: v for k, v in vars(part).items() if not k.startswith("__")}),
        ]
        codes = list(_codes(part.__code__))
        if installed(str(part.__module__)):
            # one that uses nothing is what it does: unpickled lambdas are other functions
            far = any(code.co_names for code in codes)
            return "function", *pieces, *([f"{part.__module__}.{part.__qualname__}"] if far else [])
        names = {name for code in codes for name in code.co_names}
        for name in sorted({name for code in codes for name in _globals(code)}):
            if name in part.__globals__:
                value = part.__globals__[name]
                if isinstance(value, types.ModuleType) and not installed(value.__name__):
                    value = {k: vars(value)[k] for k in sorted(names) if k in vars(value)}
                pieces += [name.encode(), self.of(value, f" {name} in {part.__qualname__}")]
        return "function", *pieces

    def _module(self, part: types.ModuleType) -> Iterable[str | bytes]:
        """By name; one of the user's own by what its file says."""
        file = getattr(part, "__file__", None)
        own = bool(file) and not installed(part.__name__) and Path(str(file)).is_file()
        content = Path(str(file)).read_bytes() if own else b""
        return "module", part.__name__, _version(part.__name__), content

    def _class(self, part: type) -> Iterable[str | bytes]:
        module: object = part.__module__  # that of functions is a descriptor
        module = module if isinstance(module, str) else "builtins"
        if installed(module):
            return "class", module, part.__qualname__, _version(module)
        # without its module, which is __main__ in one process and __mp_main__ in the next
        pieces = [self.of(base) for base in (type(part), *part.__bases__)]
        for name, value in sorted(vars(part).items()):
            function = isinstance(value, (types.FunctionType, property, *WRAPPERS))
            hidden = name.startswith("__") and name.endswith("__") and not function
            if name == "_abc_impl" or hidden:
                continue
            pieces += [name.encode(), self.of(value, f"{part.__qualname__}.{name}")]
        return "own class", part.__qualname__, *pieces

    # --- objects ----------------------------------------------------------------------------------
    def _object(self, part: Any) -> Iterable[str | bytes]:
        """Class and fields, in the form that pickle would keep."""
        kind = self.of(type(part))
        if isinstance(part, LOCKS):
            return "lock", kind
        if isinstance(part, io.IOBase):  # a log, say: nothing that numbers depend on
            return "file", kind
        if isinstance(part, types.MappingProxyType):
            return "mapping", self.of(dict(part))
        if isinstance(part, weakref.ReferenceType):
            return "reference", self.of(part())
        known = copyreg.dispatch_table.get(type(part))
        try:
            reduced = known(part) if known else part.__reduce_ex__(2)
        except Exception as error:
            if not _refuses_itself(type(part)):
                raise self._refusal(part) from error
            reduced = (type(part), (), vars(part))
        if isinstance(reduced, str):
            return "name", kind, reduced
        make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        pieces = [self.of(make), self.of(arguments)]
        pieces += [self._state(part, state)]
        pieces += [self.of(list(items or ()), "[...]"), self.of(dict(pairs or ()), "[...]")]
        return "object", kind, *pieces

    def _state(self, part: object, state: object) -> bytes:
        """The fields, in an order of their own: how they came to be there does not matter."""
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            return _join("slots", *(self._state(part, one) for one in state))
        if not isinstance(state, dict):
            return self.of(state, ".__getstate__()")
        left_out = frozenset(
            name for k in type(part).__mro__ for name in vars(k).get("__fingerprint_exclude__", ())
        )
        if isinstance(part, nn.Module):
            left_out |= MODULE_FIELDS
        # ours write functions in a form that pickles; what is behind them is the same thing
        ours = str(type(part).__module__).split(".")[0] == OWN
        own: dict[str, object] = getattr(part, "__dict__", {}) if ours else {}
        pieces: list[str | bytes] = []
        for key in sorted(state, key=str):
            if key not in left_out:
                value = own[key] if key in own else state[key]
                pieces += [self.of(key), self.of(value, f".{key}")]
        return _join("fields", *pieces)

    def _refusal(self, part: object) -> CheckpointError:
        place = "".join(self.path) or " it"
        return CheckpointError(
            f"what the run depends on{' ' if place[0] != ' ' else ''}{place}",
            given=f"{type(part).__module__}.{type(part).__qualname__}, which cannot be told from "
            "another of its kind",
            expected="numbers, tensors, functions and objects made of them",
            remedy="Leave it out of __getstate__ of the object that holds it or name it in "
            "__fingerprint_exclude__ of its class (if no number depends on it), or go on without "
            "a folder.",
        )


def _join(*pieces: str | bytes) -> bytes:
    """One digest of several pieces, each told from the next."""
    digest = hashlib.sha256()
    for piece in pieces:
        content = piece.encode() if isinstance(piece, str) else piece
        digest.update(str(len(content)).encode() + b":" + content)
    return digest.digest()


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return NotImplemented


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _globals(code: types.CodeType) -> Iterator[str]:
    """The names that it looks up outside."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(instruction.argval)


def _refuses_itself(kind: type) -> bool:
    """Whether a class says in Python how it pickles; its fields are at hand then."""
    hooks: tuple[Callable[..., object] | None, ...] = tuple(
        getattr(kind, name, None) for name in ("__reduce_ex__", "__reduce__", "__getstate__")
    )
    return any(isinstance(hook, types.FunctionType) for hook in hooks) and hasattr(kind, "__dict__")


@functools.cache
def installed(module: str) -> bool:
    """Whether a module is part of learnreg, of Python or of an installed package, which do not
    change between two runs as the code of a user does.
    """
    root = module.partition(".")[0]
    if root in ("__main__", "__mp_main__"):  # which may be that of a tool that runs the user's
        return False
    if root == OWN or root in sys.stdlib_module_names:
        return True
    found = sys.modules.get(root)
    paths = [getattr(found, "__file__", None), *getattr(found, "__path__", ())]
    places = {piece for path in paths if path for piece in Path(path).parts}
    return root in KNOWN or bool(places & {"site-packages", "dist-packages"})


def _version(module: str) -> str:
    """Of an installed package that nothing is known about."""
    root = module.partition(".")[0]
    if root in KNOWN or not installed(module):
        return ""
    return str(getattr(sys.modules.get(root), "__version__", ""))
