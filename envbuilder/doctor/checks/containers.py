"""Container engines, NVIDIA's part of them, and being inside of one."""

from __future__ import annotations

import re

from envbuilder.doctor.checks.common import driver_in_use, gpus_on_bus, numbers, on_spark, variable, wants_gpu
from envbuilder.doctor.commands import quoted
from envbuilder.doctor.model import Severity, fail, info, ok, skip, unknown, warn
from envbuilder.doctor.registry import check, only_in_logs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from envbuilder.doctor.model import Verdict
    from envbuilder.facts.model import Containers, Snapshot

_SOCKET = "/var/run/docker.sock"
_NGC = ("NVIDIA_VLLM_VERSION", "NVIDIA_PYTORCH_VERSION", "NVIDIA_TRITON_SERVER_VERSION", "NVIDIA_TENSORRT_LLM_VERSION")


def _engines(s: Snapshot) -> Containers:
    assert s.containers is not None  # noqa: S101 - every check that calls this needs "containers"
    return s.containers


def _inside(s: Snapshot) -> str:
    return s.host.container if s.host else ""


def _on_host_with_gpu(s: Snapshot) -> bool:
    return not _inside(s) and bool(gpus_on_bus(s)) and _engines(s).docker


@check("EB-CTR-001", "docker-sock-permission", Severity.INFO, needs=("containers", "host"))
def socket_permission(s: Snapshot) -> Verdict:
    if _engines(s).socket == "denied" and not _inside(s):
        return info((_SOCKET, "not writable by you"), expected="your user in the group docker", note="It matters once you use Docker.")
    return ok((_SOCKET, _engines(s).socket))


@check("EB-CTR-002", "docker-swarm-crash", Severity.BLOCKS, needs=("containers",))
def swarm_crash(s: Snapshot) -> Verdict:
    engines = _engines(s)
    if engines.socket == "refused" and engines.swarm:
        return fail((_SOCKET, "nobody listens"), ("/var/lib/docker/swarm", "there"), expected="a running daemon")
    return ok((_SOCKET, engines.socket))


@check("EB-CTR-003", "docker-snap", Severity.BLOCKS, needs=("containers", "pci"))
def docker_snap(s: Snapshot) -> Verdict:
    if not gpus_on_bus(s):
        return skip("no NVIDIA GPU on the PCI bus")
    return fail(("/snap/docker", "there"), expected="Docker from packages") if _engines(s).snap else ok("Docker is no snap")


@check("EB-CTR-004", "container-runtime-missing", Severity.BLOCKS, needs=("containers", "pci", "host"), after=("EB-CTR-007", "EB-CTR-008"))
def runtime_missing(s: Snapshot) -> Verdict:
    engines = _engines(s)
    if not _on_host_with_gpu(s) or not engines.toolkit:
        return skip("no Docker with NVIDIA's toolkit beside a GPU")
    seen = (
        ("/etc/docker/daemon.json", f"runtimes: {', '.join(engines.runtimes) or 'none'}"),
        ("/etc/cdi, /var/run/cdi", ", ".join(engines.cdi_specs) or "no spec for nvidia.com/gpu"),
    )
    if "nvidia" in engines.runtimes or engines.cdi_specs:
        return ok(*seen)
    return warn(*seen, expected="the runtime nvidia, or a CDI spec")


@check("EB-CTR-005", "cdi-spec-stale", Severity.BLOCKS, needs=("containers", "driver"), after=("EB-DRV-006",))
def cdi_stale(s: Snapshot) -> Verdict:
    engines, loaded = _engines(s), driver_in_use(s)
    if not engines.cdi_driver_versions or not loaded or _inside(s):
        return skip("no CDI spec that names a driver's libraries")
    seen = ((", ".join(engines.cdi_specs), f"driver {', '.join(engines.cdi_driver_versions)}"), ("/sys/module/nvidia/version", loaded))
    if loaded in engines.cdi_driver_versions:
        return ok(*seen)
    # Written anew where it lies: of two places the other one's would go on to be used.
    commands = tuple(f"sudo nvidia-ctk cdi generate --output={quoted(spec)}" for spec in engines.cdi_specs)
    return warn(*seen, expected="one version", commands=commands)


@check("EB-CTR-006", "container-toolkit-1.19.1", Severity.BLOCKS, needs=("containers",))
def toolkit_regression(s: Snapshot) -> Verdict:
    version = _engines(s).toolkit
    if not version:
        return skip("NVIDIA's container toolkit is not installed")
    seen = ("dpkg", f"nvidia-container-toolkit {version}")
    if version == "1.19.1" and on_spark(s):
        return warn(seen, expected="1.19.0, which DGX OS ships")
    return info(seen, note="CUDA in containers failed with it on single machines.") if version in {"1.19.1", "1.20.0"} else ok(seen)


@check("EB-CTR-007", "container-toolkit-missing", Severity.INFO, needs=("containers", "pci", "packages", "host"))
def toolkit_missing(s: Snapshot) -> Verdict:
    if not _on_host_with_gpu(s) or not s.packages:
        return skip("no Docker beside a GPU on a Debian system")
    if _engines(s).toolkit or "nvidia" in _engines(s).runtimes:
        return ok(("dpkg", f"nvidia-container-toolkit {_engines(s).toolkit or 'by other ways'}"))
    return info(("dpkg", "no nvidia-container-toolkit"), note="It matters once a container needs the GPU.")


@check("EB-CTR-008", "daemon-json-broken", Severity.BLOCKS, needs=("containers",))
def daemon_json(s: Snapshot) -> Verdict:
    error = _engines(s).daemon_json_error
    return fail(("/etc/docker/daemon.json", error), expected="JSON") if error else ok(("/etc/docker/daemon.json", "readable, or not there"))


@check("EB-CTR-009", "container-without-gpu", Severity.BLOCKS, needs=("host", "pci", "driver"))
def container_without_gpu(s: Snapshot) -> Verdict:
    if not _inside(s) or not (gpus_on_bus(s) or on_spark(s)) or not wants_gpu(s):
        return skip("not in a container that wants the NVIDIA GPU of its machine")
    nodes = [node for node in (s.driver.nodes if s.driver else ()) if re.fullmatch(r"/dev/nvidia\d+|/dev/dxg", node)]
    visible = variable(s, "NVIDIA_VISIBLE_DEVICES")
    seen = (("/dev", ", ".join(nodes) or "no nvidia0"), ("NVIDIA_VISIBLE_DEVICES", visible or "not set"))
    if nodes:
        return ok(*seen)
    return fail(*seen, expected="/dev/nvidia0 and the driver's libraries")


@check("EB-CTR-010", "container-nvml-unknown", Severity.BLOCKS, needs=("host", "nvml"), after=("EB-CTR-009",))
def nvml_unknown(s: Snapshot) -> Verdict:
    if not _inside(s) or s.nvml is None:
        return skip("not in a container")
    if s.nvml.status == "error" and "unknown error" in s.nvml.error.lower():
        return fail(("NVML", s.nvml.error), expected="an answer, as when the container started")
    return ok(("NVML", s.nvml.status))


@check("EB-CTR-011", "ngc-image-too-old", Severity.BLOCKS, needs=("variables",))
def ngc_too_old(s: Snapshot) -> Verdict:
    if not on_spark(s):
        return skip("not a GB10 machine")
    for name in _NGC:
        release = re.match(r"(\d\d)\.(\d\d)", variable(s, name))
        if release:
            seen = (name, variable(s, name))
            return ok(seen) if (int(release[1]), int(release[2])) >= (25, 10) else fail(seen, expected="25.10 or newer")
    return skip("not an image from NGC")


@check("EB-CTR-012", "ngc-no-gemma4", Severity.BLOCKS, needs=("variables",), after=("EB-CTR-011",))
def ngc_without_gemma4(s: Snapshot) -> Verdict:
    release = re.match(r"(\d\d)\.(\d\d)", variable(s, "NVIDIA_VLLM_VERSION"))
    if not release:
        return skip("not NGC's vLLM image")
    seen = ("NVIDIA_VLLM_VERSION", variable(s, "NVIDIA_VLLM_VERSION"))
    if (int(release[1]), int(release[2])) > (25, 11):
        return ok(seen)
    wanted = any(model.model_type.startswith("gemma4") for model in s.checkpoints or ())
    return (fail if wanted else info)(seen, expected="an image of 2026 for Gemma 4")


@check("EB-CTR-013", "docker-daemon-down", Severity.INFO, needs=("containers",), after=("EB-CTR-002", "EB-CTR-008"))
def daemon_down(s: Snapshot) -> Verdict:
    if _engines(s).socket == "refused":
        return info((_SOCKET, "nobody listens"), note="It matters once you use Docker.")
    return ok((_SOCKET, _engines(s).socket))


@check("EB-CTR-014", "container-small-shm", Severity.INFO, needs=("containers", "host"))
def small_shm(s: Snapshot) -> Verdict:
    size = _engines(s).shm_bytes
    if not _inside(s) or size is None:
        return skip("not in a container")
    seen = ("/dev/shm", f"{size / 2**20:.0f} MiB")  # noqa: S108 - a name in a text
    return info(seen, expected="1 GiB or more for several GPUs or workers") if size <= 64 << 20 else ok(seen)


@check("EB-CTR-015", "driver-capabilities", Severity.BLOCKS, needs=("variables", "host"))
def driver_capabilities(s: Snapshot) -> Verdict:
    value = variable(s, "NVIDIA_DRIVER_CAPABILITIES")
    if not _inside(s) or not value:
        return skip("not in a container that asks for capabilities")
    if {"compute", "all"} & set(value.split(",")):
        return ok(("NVIDIA_DRIVER_CAPABILITIES", value))
    return fail(("NVIDIA_DRIVER_CAPABILITIES", value), expected="compute,utility")


@check("EB-CTR-016", "container-toolkit-old", Severity.BLOCKS, needs=("containers",))
def toolkit_old(s: Snapshot) -> Verdict:
    version = _engines(s).toolkit
    if not version or not on_spark(s):
        return skip("not a GB10 machine with NVIDIA's container toolkit")
    seen = ("dpkg", f"nvidia-container-toolkit {version}")
    return warn(seen, expected="1.17 or newer") if numbers(version) < (1, 17) else ok(seen)


@check("EB-CTR-018", "k8s-device-plugin-old", Severity.BLOCKS, needs=("containers",))
def device_plugin_old(s: Snapshot) -> Verdict:
    plugin = _engines(s).device_plugin
    if plugin is None or not on_spark(s):
        return skip("no device plugin for Kubernetes beside a GB10")
    if not plugin.readable:
        return unknown(f"{plugin.log} may be read by root alone; does it say `error getting device memory: Not Supported`?")
    seen = (plugin.log, plugin.line or "nothing about memory")
    if "error getting device memory" in plugin.line and "gnoring" not in plugin.line:
        return fail(seen, expected="0.17.4 or newer: `Ignoring error getting device memory`")
    return ok(seen)


only_in_logs("EB-CTR-017", "image-wrong-machine", Severity.BLOCKS)
