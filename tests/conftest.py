"""What all tests share: float64, shape checks by beartype, the folder of recordings."""

import os
import socket
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest

jax.config.update("jax_enable_x64", True)
# For fixtures of modules, too; `compiler_effort` says why.
jax.config.update("jax_disable_most_optimizations", True)

ROOT = Path(__file__).parents[1]
# `import track_oracle`, or a benchmark, in any test: import mode "importlib" leaves the path alone.
sys.path.extend(str(ROOT / folder) for folder in ("tests/inference", "benchmarks"))


@pytest.fixture(scope="module", autouse=True)
def compiled_programs():
    """Forget compiled programs after each file.

    Each holds memory maps, of which a process may have 65,530 (`vm.max_map_count` of Linux): a
    process that compiles one more dies inside XLA. Files share few programs, so that little is
    compiled again.
    """
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def compiler_effort(request):
    """Compile with little optimisation: most tests compile for seconds and run for milliseconds.

    Slow tests run for long and get what users get.
    """
    is_slow = any(request.node.get_closest_marker(name) for name in ("slow", "long"))
    jax.config.update("jax_disable_most_optimizations", not is_slow)


@pytest.fixture(scope="session")
def data_dir():
    folder = Path(os.environ.get("BAYES_ESI_DATA", ROOT / "../shared/data"))
    if not (folder / "sample").is_dir():
        pytest.skip("the recordings are absent: set BAYES_ESI_DATA")
    return folder


@pytest.fixture(scope="session")
def head(tmp_path_factory):
    """Build the average head once for all workers of a run, without network or older cache."""
    from bayes_esi.io.template_files import template_head

    def refuse(*args, **kwargs):
        raise OSError("the average head needs no network")

    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BAYES_ESI_CACHE", str(shared / "template"))
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        return template_head()
