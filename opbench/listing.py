"""What `opbench list` prints: operators, providers, shape lists and devices, with availability here."""

from rich.table import Table

from opbench import registry
from opbench.environment import resolve_device
from opbench.errors import UsageError
from opbench.shapes import builtin_shape_lists, load_shape_list

__all__ = ["devices", "operators", "providers", "shapes"]


def operators() -> Table:
    """Operators with their settings, what lies inside the timing, and the provider that a sweep would take here."""
    device_type = resolve_device("auto").partition(":")[0]
    table = Table("operator", "what", "inside the timing", "settings (default)", f"here ({device_type})")
    for operator in registry.registered().values():
        settings = ", ".join(f"{name}={setting.default}" for name, setting in operator.settings.items())
        reasons = {provider.name: provider.unavailable(device_type) for provider in operator.providers}
        usable = [name for name, reason in reasons.items() if reason is None]
        here = f"by {usable[0]}" if usable else "no: " + "; ".join(filter(None, reasons.values()))
        table.add_row(operator.name, operator.summary, operator.timed, settings or "none", here)
    return table


def providers() -> Table:
    """Providers of every operator, and why one is not available here."""
    device_type = resolve_device("auto").partition(":")[0]
    table = Table("operator", "provider", "what", f"here ({device_type})")
    for operator in registry.registered().values():
        for provider in operator.providers:
            reason = provider.unavailable(device_type)
            table.add_row(operator.name, provider.name, provider.summary, f"no: {reason}" if reason else "available")
    return table


def shapes() -> Table:
    """Shape lists that ship with opbench."""
    table = Table("list", "batch x height x width x channels", "what")
    for name in builtin_shape_lists():
        shape_list = load_shape_list(name)
        table.add_row(name, "\n".join(map(str, shape_list.shapes)), shape_list.description)
    return table


def devices() -> Table:
    """Devices that torch sees, and why CUDA is missing where it is."""
    import torch

    from opbench.environment import collect_environment

    table = Table("device", "name", "available")
    table.add_row("cpu", collect_environment("cpu")["device_name"], "yes")
    for index in range(torch.cuda.device_count()):
        table.add_row(f"cuda:{index}", torch.cuda.get_device_name(index), "yes")
    if not torch.cuda.device_count():
        try:
            resolve_device("cuda")
        except UsageError as error:
            table.add_row("cuda", "", f"no: {error}")
    return table
