"""Whether this machine has been measured."""

from hybrid.doctor.findings import Finding, note, ok
from hybrid.machine.profiles import CALIBRATE, busy_warning, calibration, calibration_file, machine_name
from hybrid.shown import show


def examine_calibration(threads: int) -> Finding:
    """Whether runs with `threads` threads have measured rates to plan with."""
    path = calibration_file(machine_name())
    found = calibration(threads)
    if found.profile is not None and (warnings := busy_warning(found.profile)):
        return note(warnings[0], CALIBRATE)
    if found.profile is not None:
        return ok(f"plans use the rates that were measured on this machine: {show(path)}")
    why_not = f": {found.why_not}" if path.exists() else ""
    return note(f"predicted speeds rest on estimates until this machine is measured, in 30 s{why_not}", CALIBRATE)
