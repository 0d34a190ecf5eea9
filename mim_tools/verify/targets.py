"""Which classes and functions a configuration may name.

A name is looked up in the installed packages, and the place of its definition counts: `os.system` is found as
`monai.data.utils.os.system`, below `monai.data`, but is not defined there. Nothing is looked up in the bundle.
"""

from __future__ import annotations

import inspect
import sys
from functools import cache
from pydoc import ErrorDuringImport, locate
from typing import Any

from monai.bundle import ComponentLocator
from monai.transforms.io.array import SUPPORTED_READERS

# where accepted components are defined
ALLOWED = (
    "ignite.handlers",
    "ignite.metrics",
    "mim_components",
    "mim_tools.synthetic",
    "monai.data",
    "monai.engines",
    "monai.handlers",
    "monai.inferers",
    "monai.losses",
    "monai.metrics",
    "monai.networks.blocks",
    "monai.networks.layers",
    "monai.networks.nets",
    "monai.networks.schedulers",
    "monai.optimizers",
    "monai.transforms",
    "torch.nn.modules",
    "torch.nn.parallel.distributed",
    "torch.optim",
    "torch.utils.data.dataloader",
    "torch.utils.data.dataset",
    "torch.utils.data.distributed",
    "torch.utils.data.sampler",
)
# exceptions below those: what loads code or pickles, uses the network, or writes wherever its arguments say
DENIED = (
    "ignite.handlers.clearml_logger",
    "ignite.handlers.mlflow_logger",
    "ignite.handlers.neptune_logger",
    "ignite.handlers.polyaxon_logger",
    "ignite.handlers.visdom_logger",
    "ignite.handlers.wandb_logger",
    "ignite.metrics.gan",
    "mim_components.run.checkpoints",
    "mim_components.utils.tensor_files",
    "mim_components.utils.files",
    "monai.data.torchscript_utils",
    "monai.data.utils",
    "monai.handlers.clearml_handlers",
    "monai.handlers.mlflow_handler",
    "monai.handlers.trt_handler",
    "monai.losses.perceptual",
    "monai.networks.nets.torchvision_fc",
    "monai.networks.nets.transchex",
    "monai.transforms.utils_create_transform_ims",
)
# single names elsewhere
NAMES = frozenset(
    """
    mim_components.transforms.regions.label_conversion
    monai.data.utils.decollate_batch monai.data.utils.list_data_collate monai.data.utils.no_collation
    monai.data.utils.pad_list_data_collate monai.data.utils.partition_dataset monai.data.utils.worker_init_fn
    monai.networks.utils.copy_model_state monai.utils.misc.set_determinism
    """.split()
)
# what a name may begin with; the place of its definition is checked afterwards
_WRITTEN = (*ALLOWED, *NAMES, "monai.utils.set_determinism", "torch.nn", "torch.utils.data")
TORCH_FUNCTIONS = frozenset("torch.argmax torch.device torch.eq torch.ge torch.gt torch.ne torch.sigmoid".split())


def why_not(target: object) -> str:
    """Why a `_target_` is not accepted; "" if it is."""
    if not isinstance(target, str):
        return f"is a {type(target).__name__}, expected the name of a class or function"
    parts = target.split(".")
    if not all(part.isascii() and part.isidentifier() for part in parts):
        return "is not a plain dotted name; what it becomes is known only when it runs"
    if any(part.startswith("_") for part in parts):
        return "names something private"
    if target in TORCH_FUNCTIONS:
        return ""
    if len(parts) == 1:
        return _why_not_bare(target)
    return _why_not_dotted(target)


def downloads(component: dict[str, object]) -> bool:
    """Whether a component of MONAI downloads weights unless it is told not to, and is not told."""
    name = component.get("_target_")
    if not isinstance(name, str) or "pretrained" in component or name.startswith("mim_components.") or why_not(name):
        return False
    module = "" if "." in name else _locator().get_component_module_name(name)
    thing = _located(f"{module}.{name}" if isinstance(module, str) and module else name)
    try:
        found = inspect.signature(thing).parameters.get("pretrained")
    except (TypeError, ValueError):
        return False
    return found is not None and found.default is True


def why_not_by_name(name: object) -> str:
    """Why the `reader`, `writer` or `merger_cls` of a MONAI component is not accepted.

    MONAI imports and calls whatever a string there names.
    """
    for each in name if isinstance(name, list) else [name]:
        if each is None or each in SUPPORTED_READERS:
            continue
        if isinstance(each, str) and each.isidentifier() and not each.startswith("_"):
            why = _why_not_dotted(f"monai.{'inferers' if each.endswith('Merger') else 'data'}.{each}")
        else:
            why = why_not(each)
        if why:
            return f"{each!r} {why}"
    return ""


@cache
def _locator() -> ComponentLocator:
    return ComponentLocator()


def _why_not_bare(name: str) -> str:
    found = _locator().get_component_module_name(name)
    if not found:
        return "is no component of MONAI"  # MONAI would then try Python's own names, such as eval
    modules = [found] if isinstance(found, str) else found
    return next((why for module in modules if (why := _why_not_dotted(f"{module}.{name}"))), "")


def _why_not_dotted(name: str) -> str:
    if not any(_below(name, prefix) for prefix in _WRITTEN):
        return "is not on the list of accepted components"
    if not (thing := _located(name)):
        return "is not found in the packages that are installed"
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return f"is a {type(thing).__name__}, expected a class or function"
    home = f"{thing.__module__}.{thing.__qualname__}"
    if getattr(sys.modules.get(thing.__module__), thing.__qualname__, None) is not thing:
        return f"is {home}, which is defined inside of something"
    if home.startswith("mim_components.") and inspect.isfunction(thing) and not _is_exported(name, home):
        return f"is the function {home}, which is for the package itself"
    return _why_not_home(home, inspect.isclass(thing))


def _is_exported(name: str, home: str) -> bool:
    """Whether a function of ours is meant for configurations: exported by a package, or in a module beside them."""
    module, _, last = name.rpartition(".")
    exported = getattr(sys.modules.get(module), "__all__", None)
    return home in NAMES or (module.count(".") == 1 if exported is None else last in exported)


def _why_not_home(home: str, is_class: bool) -> str:
    if home in NAMES:
        return ""
    if home.startswith("torch.") and not is_class:
        return f"is the function {home}; of torch only classes are accepted"
    if any(_below(home, prefix) for prefix in DENIED):
        return f"is {home}, which can run code, use the network, or write where it is told to"
    return "" if any(_below(home, prefix) for prefix in ALLOWED) else f"is {home}, which is not accepted"


def _located(name: str) -> Any:
    try:
        return locate(name)
    except (ErrorDuringImport, ImportError):
        return None


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")
