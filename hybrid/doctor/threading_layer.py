"""Which library wakes the threads of our CPU kernels: OpenMP, TBB, or numba's own work queue."""

import importlib
from collections.abc import Callable, Mapping

from hybrid.doctor.findings import Finding, note, ok, problem

# In the order that `offload.kernels.host` prefers. Importing one loads its library and starts no thread.
LAYERS = {
    "omp": "numba.np.ufunc.omppool",
    "tbb": "numba.np.ufunc.tbbpool",
    "workqueue": "numba.np.ufunc.workqueue",
}
_INSTALL_OPENMP = "sudo apt-get install -y libgomp1"


def import_error(module: str) -> str:
    """Why a module cannot be imported; empty when it can."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a library that is half installed may raise anything
        return str(error) or type(error).__name__
    return ""


def examine_threading_layer(
    environment: Mapping[str, str], why_not: Callable[[str], str] = import_error
) -> list[Finding]:
    """Findings about numba's threading layers; `why_not` gives a module's import error, or nothing."""
    if reason := why_not("numba"):
        return [problem(f"numba cannot be imported: {reason}", "pip install --force-reinstall numba")]
    missing = {layer: reason for layer, module in LAYERS.items() if (reason := why_not(module))}
    asked = environment.get("NUMBA_THREADING_LAYER", "")
    if asked in missing:
        return [
            problem(
                f"NUMBA_THREADING_LAYER asks for {asked}, which cannot be loaded: {missing[asked]}",
                "unset NUMBA_THREADING_LAYER",
            )
        ]
    chosen = asked if asked in LAYERS else next((layer for layer in LAYERS if layer not in missing), "")
    if chosen == "omp":
        return [ok("CPU kernels run on OpenMP (libgomp)")]
    because = "NUMBA_THREADING_LAYER says so" if asked == chosen else f"no OpenMP: {missing.get('omp', '')}"
    mend = "unset NUMBA_THREADING_LAYER" if asked == chosen else _INSTALL_OPENMP
    if chosen == "tbb":
        return [note(f"CPU kernels run on TBB; {because}", mend)]
    if chosen == "workqueue":
        # A launch was measured at 55 µs, 2 µs with OpenMP; a model has about 90 a token.
        return [problem(f"CPU kernels run on numba's work queue, which is slow to start; {because}", mend)]
    return [problem(f"numba has no threading layer; {because}", "pip install --force-reinstall numba")]
