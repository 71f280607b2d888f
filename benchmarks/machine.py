"""What a benchmark says of the machine it ran on."""

import os
import platform
import resource
import sys

__all__ = ["describe_machine", "peak_memory_mib"]


def describe_machine():
    """Device, processor, cores and versions, as a dict for JSON."""
    import jax

    device = jax.devices()[0]
    return {
        "device": f"{device.platform}: {device.device_kind}",
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def peak_memory_mib():
    """Largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, else KiB
