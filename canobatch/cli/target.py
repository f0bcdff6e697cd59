"""Targets: what the user points at, loaded so that workers can import it too.

A file is imported under its own name, from its own directory (the directory above its package, if it is in one),
never as ``__main__``: its functions and classes cross to workers by name.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from canobatch.effects import first_line
from canobatch.errors import TargetError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


class Kind(NamedTuple):
    """What a command can do something with."""

    #: Such as "workflow".
    noun: str
    #: Whether an object is one.
    fits: Callable[[object], bool]
    #: Name of the class, for factories that say what they return.
    class_name: str = ""


def workflow_kind() -> Kind:
    """Return the kind that is a `Workflow`."""
    from canobatch.workflow import Workflow  # noqa: PLC0415 - the engine is not loaded to show a help

    return Kind("workflow", lambda found: isinstance(found, Workflow), "Workflow")


def scheduler_kind() -> Kind:
    """Return the kind that is a `Scheduler`."""
    from canobatch.scheduler import Scheduler  # noqa: PLC0415 - as above

    return Kind("scheduler", lambda found: isinstance(found, Scheduler), "Scheduler")


def function_kind() -> Kind:
    """Return the kind that is a function of the user's."""
    return Kind("function", lambda found: callable(found) and not isinstance(found, type))


def load_target(text: str, kind: Kind) -> Any:
    """Return the object that ``text`` names: itself, what its factory makes, or the only one of its module.

    Raises:
        TargetError: There is no such file, module or attribute; its code failed; it is of another kind.
    """
    module, attribute = load_module(text)
    if attribute is None:
        return _only_one(module, kind, text)
    return _as_kind(_attribute(module, attribute, text), kind, attribute, text)


def load_module(text: str) -> tuple[ModuleType, str | None]:
    """Return the module of a target, and its attribute if one is named.

    Raises:
        TargetError: There is no such file or module, or its code failed.
    """
    place, _, attribute = text.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    is_file = place.endswith(".py") or "/" in place or _is_file(Path(place))
    return (_load_file(Path(place), text) if is_file else _load_name(place, text)), attribute or None


# -- modules


def _load_file(path: Path, text: str) -> ModuleType:
    if not _is_file(path):
        raise TargetError(f"there is no file {path}{_similar_file(path)}", target=text)
    if path.suffix != ".py":
        raise TargetError(f"{path} is not a Python file; its name must end in .py", target=text)
    path = path.resolve()
    name, root = path.stem, path.parent
    if name == "__init__":
        name, root = root.name, root.parent
    while (root / "__init__.py").is_file():
        name, root = f"{root.name}.{name}", root.parent
    if "." in path.stem:
        raise TargetError(
            f"{path} cannot be imported by workers: a module's name has no dots; rename the file", target=text
        )
    if str(root) in sys.path:
        sys.path.remove(str(root))
    sys.path.insert(0, str(root))
    other = sys.modules.get(name)
    if other is not None and not _is_file_of(other, path):
        raise TargetError(
            f"{path} cannot be imported: {name} is the name of another module "
            f"({getattr(other, '__file__', None) or 'built in'}); rename the file",
            target=text,
        )
    return _import(name, text)


def _is_file(path: Path) -> bool:
    with suppress(OSError):  # a name may be too long to ask
        return path.is_file()
    return False


def _is_file_of(module: ModuleType, path: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve() == path


def _load_name(name: str, text: str) -> ModuleType:
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise TargetError(
            f"{text!r} is not a target; give package.module:attribute or path/to/file.py:attribute", target=text
        )
    return _import(name, text)


def _import(name: str, text: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # One of its own imports is another matter.
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise TargetError(f"there is no module {error.name}{_similar_module(error.name)}", target=text) from error
        raise _failure(text, error) from error
    except (Exception, SystemExit) as error:
        raise _failure(text, error) from error


def _failure(text: str, error: BaseException) -> TargetError:
    if isinstance(error, SyntaxError):
        where = f" ({error.filename}, line {error.lineno})" if error.filename else ""
    else:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
        where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    what = f"{type(error).__name__}: {error.msg}" if isinstance(error, SyntaxError) else first_line(error)
    return TargetError(f"cannot load {text}: {what}{where}", target=text)


def _is_machinery(filename: str) -> bool:
    return filename.startswith("<") or Path(filename).is_relative_to(Path(__file__).parent.parent)


# -- attributes


def _attribute(module: ModuleType, attribute: str, text: str) -> Any:
    found: Any = module
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            hint = _did_you_mean(name, [each for each in dir(found) if not each.startswith("_")])
            where = module.__name__ if found is module else f"{module.__name__}:{attribute.partition('.' + name)[0]}"
            raise TargetError(f"{where} has no attribute {name!r}{hint}", target=text) from error
    return found


def _as_kind(found: Any, kind: Kind, name: str, text: str) -> Any:
    if kind.fits(found):
        return found
    if callable(found) and kind.class_name:
        made = _call(found, name, text)
        if kind.fits(made):
            return made
        if inspect.iscoroutine(made):
            made.close()
        raise TargetError(f"{text}: {name}() made {_describe(made)}, not a {kind.noun}", target=text)
    raise TargetError(f"{text} is {_describe(found)}, not a {kind.noun}", target=text)


def _call(factory: Callable[[], Any], name: str, text: str) -> Any:
    needed = _needed_arguments(factory)
    if needed:
        raise TargetError(f"{text}: {name}() needs {', '.join(needed)}; a factory takes no arguments", target=text)
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise _failure(text, error) from error


def _needed_arguments(factory: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [each.name for each in parameters if each.default is each.empty and each.kind not in variadic]


def _only_one(module: ModuleType, kind: Kind, text: str) -> Any:
    found = members(module, kind)
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise TargetError(
            f"{text} has {len(found)} {kind.noun}s: {', '.join(found)}; say which, as in {text}:{next(iter(found))}",
            target=text,
        )
    factories = [name for name, each in vars(module).items() if _makes(each, module, kind)] if kind.class_name else []
    if len(factories) == 1:
        return _as_kind(getattr(module, factories[0]), kind, factories[0], text)
    if factories:
        raise TargetError(
            f"{text} has {len(factories)} functions that make a {kind.noun}: {', '.join(factories)}; say which, as in "
            f"{text}:{factories[0]}",
            target=text,
        )
    raise TargetError(
        f"{text} has no {kind.noun}; bind one to a name of the module, or name a function that makes one: "
        f"{text}:function",
        target=text,
    )


def members(module: ModuleType, kind: Kind) -> dict[str, Any]:
    """Return what a module holds of a kind, by name, each object once; of functions those that it defines."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for name, each in list(vars(module).items()):
        if name.startswith("_") or id(each) in seen or not kind.fits(each):
            continue
        if not kind.class_name and getattr(each, "__module__", None) != module.__name__:
            continue
        seen.add(id(each))
        found[name] = each
    return found


def _makes(each: object, module: ModuleType, kind: Kind) -> bool:
    """Return whether it is a factory of the module's own, by its annotation."""
    if not inspect.isfunction(each) or each.__module__ != module.__name__ or _needed_arguments(each):
        return False
    returned = each.__annotations__.get("return")
    name = returned if isinstance(returned, str) else getattr(returned, "__name__", "")
    return name.rpartition(".")[2] == kind.class_name


# -- words


def _describe(found: object) -> str:
    if found is None or isinstance(found, bool | int | float | str):
        return repr(found)[:60]
    name = getattr(found, "__name__", None)
    if name is None:
        return f"a {type(found).__name__}"
    return f"the {'class' if isinstance(found, type) else type(found).__name__} {name}"


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 3, 0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _similar_file(path: Path) -> str:
    parent = path.parent
    with suppress(OSError):  # as above
        if parent.is_dir():
            return _did_you_mean(path.name, [each.name for each in parent.glob("*.py") if each.is_file()])
    return f": there is no directory {parent}"


def _similar_module(name: str) -> str:
    parent, _, last = name.rpartition(".")
    if parent:
        spec = importlib.util.find_spec(parent)
        places = None if spec is None else spec.submodule_search_locations
        known = [each.name for each in pkgutil.iter_modules(places)] if places else []
    else:
        known = [each.name for each in pkgutil.iter_modules([str(Path.cwd())])]
    hint = _did_you_mean(last, known)
    return hint or "; a file is given with its path, as in ./flows/etl.py"
