"""What `opbench list` prints: operators, providers, shape lists and devices; whether they work here only where asked.

Lines, not tables: the texts are longer than any terminal's columns.
"""

import textwrap
from collections.abc import Iterable, Iterator

from opbench.workload.operator import Operator, Provider, Setting

__all__ = ["devices", "entry", "operators", "providers", "shapes"]

Described = Iterable[tuple[str, str]]
"""Labels, and what they say."""
NARROWEST_TEXT = 20


def operators(width: int, *, check: bool = False) -> Iterator[str]:
    """Operators with their settings and what lies inside the timing.

    Args:
        width: columns of a line.
        check: also which provider a sweep would take here; imports torch.
    """
    from opbench.registry import registry

    device_type = _device_type() if check else ""
    for operator in registry.registered().values():
        settings = ", ".join(f"{name}={_default(setting)}" for name, setting in operator.settings.items())
        described = [
            ("what", operator.summary),
            ("inside the timing", operator.timed),
            ("family", operator.family or "none"),
            ("levels", ", ".join(operator.levels) if len(operator.levels) > 1 else f"one, called {operator.levels[0]}"),
            ("settings", settings or "none"),
        ]
        if check:
            described.append((f"here ({device_type})", _usable(operator, device_type)))
        yield from entry(operator.name, described, width)


def _default(setting: Setting) -> str:
    """A setting's default, and the other words that it may be."""
    others = [word for word in setting.allowed if word != setting.default] if isinstance(setting.allowed, tuple) else []
    return f"{setting.default} (or {', '.join(others)})" if others else str(setting.default)


def providers(width: int, *, check: bool = False) -> Iterator[str]:
    """Providers of every operator, in the order in which a sweep prefers them, and what each needs.

    Args:
        width: columns of a line.
        check: also why one does not work here; imports torch.
    """
    from opbench.registry import registry

    device_type = _device_type() if check else ""
    for operator in registry.registered().values():
        described = []
        for provider in operator.providers:
            described += [(provider.name, provider.summary), ("", f"needs: {_needs(provider)}")]
            if check:
                reason = provider.unavailable(device_type)
                described.append(("", f"here ({device_type}): " + (f"no: {reason}" if reason else "available")))
        yield from entry(operator.name, described, width)


def shapes(width: int, *, check: bool = False) -> Iterator[str]:
    """Shape lists that ship with opbench."""
    from opbench.workload.shapes import builtin_shape_lists, load_shape_list

    for name in builtin_shape_lists():
        shape_list = load_shape_list(name)
        sizes = f"{' '.join(map(str, shape_list.shapes))} (batch x height x width x channels)"
        yield from entry(name, [("what", shape_list.description), ("shapes", sizes)], width)


def devices(width: int, *, check: bool = False) -> Iterator[str]:
    """Devices that torch sees, and why CUDA is missing where it is."""
    import torch

    from opbench.device.environment import collect_environment
    from opbench.device.resolve import resolve_device
    from opbench.errors import UsageError

    yield from entry("cpu", [("name", collect_environment("cpu")["device_name"]), ("available", "yes")], width)
    for index in range(torch.cuda.device_count()):
        yield from entry(f"cuda:{index}", [("name", torch.cuda.get_device_name(index)), ("available", "yes")], width)
    if not torch.cuda.device_count():
        try:
            resolve_device("cuda")
        except UsageError as error:
            yield from entry("cuda", [("available", f"no: {error}")], width)


def entry(heading: str, described: Described, width: int) -> Iterator[str]:
    """A heading, and below it each label with its text beside it, wrapped between words."""
    described = list(described)
    yield heading
    indent = 4 + max(len(label) for label, _ in described)
    for label, text in described:
        lines = textwrap.wrap(text, max(NARROWEST_TEXT, width - indent), break_long_words=False, break_on_hyphens=False)
        for number, line in enumerate(lines):
            yield f"  {'' if number else label}".ljust(indent) + line


def _device_type() -> str:
    from opbench.device.resolve import resolve_device

    return resolve_device("auto").partition(":")[0]


def _usable(operator: Operator, device_type: str) -> str:
    reasons = {provider.name: provider.unavailable(device_type) for provider in operator.providers}
    usable = [name for name, reason in reasons.items() if reason is None]
    return f"by {usable[0]}" if usable else "no: " + "; ".join(filter(None, reasons.values()))


def _needs(provider: Provider) -> str:
    if provider.needs:
        return provider.needs
    return "not said, --check asks it" if provider.has_limits else "PyTorch alone"
