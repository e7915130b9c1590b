"""A function of the user's app, found again by the workers of Flower's simulation.

Ray hands a ClientApp to its workers as a pickle, in which a function is a name and its module. A worker looks in
the app's folder last, so where a package of the same name is installed (this project installs `strategies`, `clients`
and `server`), it would load that one.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Never reloaded: the worker is unpickling with it.
_KEPT = "psl_flower"


class AppFunction:
    """A function that is pickled together with the folder of its app; called, it is that function.

    The function is of a module of the app; a function that is in no module is itself pickled.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        return self.function(*arguments)

    def __reduce__(self) -> tuple[Callable[..., AppFunction], tuple[Any, ...]]:
        """Return the pickle's constructor and arguments."""
        module = sys.modules.get(getattr(self.function, "__module__", ""))
        name = getattr(self.function, "__qualname__", "")
        file = getattr(module, "__file__", None)
        if module is None or file is None or module.__name__ == "__main__" or getattr(module, name, None) is None:
            return AppFunction, (self.function,)
        depth = module.__name__.count(".") + Path(file).name.startswith("__init__.")
        return _found, (str(Path(file).absolute().parents[depth]), module.__name__, name)


def _found(root: str, module: str, name: str) -> AppFunction:
    """Return a function of an app's module, even if another package of that name is installed."""
    if sys.path[:1] != [root]:
        sys.path.insert(0, root)
    own = {path.stem for path in Path(root).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    for loaded, found in list(sys.modules.items()):
        top, file = loaded.partition(".")[0], getattr(found, "__file__", None)
        if top in own and top != _KEPT and file is not None and not Path(file).is_relative_to(root):
            del sys.modules[loaded]
    importlib.invalidate_caches()
    return AppFunction(getattr(importlib.import_module(module), name))
