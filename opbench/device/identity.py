"""What must be equal for two results to be comparable. Pure."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

__all__ = [
    "GPU_UUID",
    "HOST",
    "PARTS",
    "VERSIONS",
    "Identity",
    "device_slug",
    "gpu_uuid",
    "host_of",
    "measured_revision",
    "plain_key",
    "value_text",
]

GPU_UUID = "gpu uuid"
REVISIONS = "operators' revisions"
DRIVER, THREADS = "driver", "torch threads"
VERSIONS = ("torch", "triton", "cuda", DRIVER)
"""Parts that change with the software of a device."""
HOST = "host"
"""No part of an identity, because a container has another name each time; where machines are told apart it is one."""
PARTS = ("device", "torch", "triton", "cuda", THREADS, DRIVER, GPU_UUID, "opbench", "git revision", REVISIONS)
"""Every part that the identity of an environment can have."""
RECORDED_LATER = (GPU_UUID, REVISIONS)
"""Parts that results of older versions lack; the UUID also where NVML is silent."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What must be equal for two results to be comparable.

    Attributes:
        parts: values by name: `device`, `torch`, `triton`, `cuda`; on the CPU `torch threads`, on a GPU `driver` and
            `gpu uuid`; of one cell also `timer` and `cache`.
    """

    parts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, environment: Mapping[str, Any], *, code: bool = False) -> Self:
        """The identity of what is measured in an environment, as collect_environment gives it.

        Args:
            environment: which; one of an older opbench may lack parts.
            code: the revisions of opbench and of the operators count too, as where a run goes on.
        """
        packages = environment.get("packages") or {}
        parts = {
            "device": environment.get("device_name"),
            "torch": packages.get("torch"),
            "triton": packages.get("triton"),
            "cuda": environment.get("cuda_version"),
        }
        if environment.get("device") == "cpu":
            parts[THREADS] = (environment.get("cpu") or {}).get("torch_threads")
        else:
            parts[DRIVER] = environment.get("driver_version")
            if uuid := gpu_uuid(environment):
                parts[GPU_UUID] = uuid
        if code:
            parts["opbench"] = environment.get("opbench_version")
            parts["git revision"] = environment.get("git_revision")
            if "operator_revisions" in environment:
                own = (f"{name} {value_text(revision)}" for name, revision in _elsewhere(environment).items())
                parts[REVISIONS] = ", ".join(own) or "opbench's"
        return cls({name: value_text(value) for name, value in parts.items()})

    def differences(
        self, other: Self, words: tuple[str, str] = ("there", "here"), allowed: Collection[str] = ()
    ) -> dict[str, str]:
        """By its name one line for each part that differs: `torch: 2.11.0 there, 2.15.0 here`.

        A part that only one of them has differs from `none`, but for those of RECORDED_LATER: what is unknown is not
        different. Results from before the GPU's UUID was recorded so compare with each other and with those of any card
        of the model.

        Args:
            other: the other identity.
            words: what the lines call this one and the other.
            allowed: names of parts that may differ; `-` and `_` stand for blanks.
        """
        tolerated = set(map(plain_key, allowed))
        found = {}
        for name in dict.fromkeys([*self.parts, *other.parts]):
            own, others = self.parts.get(name, "none"), other.parts.get(name, "none")
            unknown = name in RECORDED_LATER and not (name in self.parts and name in other.parts)
            if own != others and not unknown and plain_key(name) not in tolerated:
                found[name] = f"{name}: {own} {words[0]}, {others} {words[1]}"
        return found

    def having(self, parts: Mapping[str, str]) -> Self:
        """This one with more parts."""
        return type(self)({**self.parts, **parts})

    def without(self, *names: str) -> Self:
        """This one without some parts."""
        return type(self)({name: value for name, value in self.parts.items() if name not in names})


def plain_key(name: str) -> str:
    """The name of a part as it is compared with the names that `--allow` gives."""
    return name.replace("-", " ").replace("_", " ").lower()


def device_slug(device_name: str, device_type: str) -> str:
    """A short name of the device for a folder: `cpu`, `h200`, `a100-sxm4-80gb`; only a-z, 0-9 and dashes."""
    if device_type == "cpu":
        return "cpu"
    name = re.sub(r"\((r|tm|c)\)", " ", device_name.lower())
    slug = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    return re.sub(r"^(nvidia|amd|intel)-", "", slug) or "gpu"


def measured_revision(environment: Mapping[str, Any]) -> str:
    """Revision of what a run measured: of the repository that its operators come from, several with commas.

    Opbench's own counts where all operators are opbench's, and in runs from before operators had theirs; empty where
    there is no checkout.
    """
    revisions = _elsewhere(environment) or {"": environment.get("git_revision")}
    return ", ".join(dict.fromkeys(str(revision) for revision in revisions.values() if revision))


def gpu_uuid(environment: Mapping[str, Any]) -> str:
    """Of the environment's card; empty on a CPU, and where NVML is silent."""
    return str((environment.get("gpu") or {}).get("uuid") or "")


def host_of(environment: Mapping[str, Any]) -> str:
    """What tells the machine from others (opbench.host.label.host_label); empty in runs from before it was kept."""
    return str(environment.get("host") or "")


def _elsewhere(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Operators whose files are tracked by another checkout than opbench's, or by none, with their revisions."""
    revisions, own = environment.get("operator_revisions"), environment.get("git_revision")
    given = revisions if isinstance(revisions, Mapping) else {}
    return {name: revision for name, revision in given.items() if revision != own}


def value_text(value: object) -> str:
    """A value of an environment as text: `none`, `on` and `off` for None and the truth values."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)
