"""Run in a child process: ask NVML what it knows and print it as JSON.

    python -I -S nvml_probe.py FOLDER     # FOLDER holds nvidia-ml-py's pynvml.py

A question that this GPU does not support (GB10: its memory, its fan) has the answer null.
"""

from __future__ import annotations

import json
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    import pynvml  # noqa: PLC0415 - it lies where the argument says

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        _print({"status": "error", "error": str(error)})
        return
    try:
        cuda = _ask(pynvml.nvmlSystemGetCudaDriverVersion_v2) or 0
        count = pynvml.nvmlDeviceGetCount()
        gpus = [_gpu(pynvml, index) for index in range(count)]
        _print(
            {
                "status": "ok",
                "driver": _ask(pynvml.nvmlSystemGetDriverVersion) or "",
                "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else "",
                "gpus": gpus,
            }
        )
    except pynvml.NVMLError as error:
        _print({"status": "error", "error": str(error)})


def _print(value: dict[str, Any]) -> None:
    print(json.dumps(value))  # noqa: T201 - this is the answer to the parent


def _ask(function: Any, *arguments: Any) -> Any:  # noqa: ANN401 - NVML's many types
    """Return an answer, or None where this GPU, driver or library does not know the question."""
    try:
        return function(*arguments)
    except Exception:  # noqa: BLE001 - NVMLError in all its kinds, and AttributeError of an older library
        return None


def _gpu(nvml: Any, index: int) -> dict[str, Any]:  # noqa: ANN401 - the module
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    capability = _ask(nvml.nvmlDeviceGetCudaComputeCapability, handle)
    memory = _ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    utilization = _ask(nvml.nvmlDeviceGetUtilizationRates, handle)
    milliwatts = _ask(nvml.nvmlDeviceGetPowerUsage, handle)
    mig = _ask(nvml.nvmlDeviceGetMigMode, handle)
    return {
        "name": _ask(nvml.nvmlDeviceGetName, handle) or "",
        "compute_capability": f"{capability[0]}.{capability[1]}" if capability else "",
        "memory_total": memory.total if memory else None,
        "memory_free": memory.free if memory else None,
        "utilization": utilization.gpu if utilization else None,
        "sm_clock_mhz": _ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
        "max_sm_clock_mhz": _ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
        "power_w": milliwatts / 1000 if milliwatts is not None else None,
        "temperature_c": _ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        "throttle_reasons": _ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle),
        "ecc_uncorrected": _ask(nvml.nvmlDeviceGetTotalEccErrors, handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC),
        "compute_mode": _ask(nvml.nvmlDeviceGetComputeMode, handle),
        "mig": mig[0] if mig else None,
        "processes": [
            {"pid": process.pid, "memory_bytes": process.usedGpuMemory, "name": _comm(process.pid)}
            for process in _ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
        ],
    }


def _comm(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:  # noqa: PTH123 - pathlib is not worth its import here
            return file.read().strip()
    except OSError:
        return ""


if __name__ == "__main__":
    main()
