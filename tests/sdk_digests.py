"""Notes the functions of the installed SDK as known ones: adds their digests to ``_telemetry/direct/digests.json``."""

import json
import sys
from pathlib import Path

from aioredis_monitored._telemetry.direct import sdk

PATH = Path(sdk.__file__).with_name("digests.json")


def main():
    everything = json.loads(PATH.read_text("utf-8")) if PATH.exists() else {}
    known = everything.setdefault("{}.{}".format(*sys.version_info), {})
    found = sdk.digests()
    missing = [name for name, digest in found.items() if not digest]
    if missing:
        sys.exit(f"not in this SDK: {', '.join(missing)}")
    # What is relied on no longer needs no digest.
    for name in known.keys() - found.keys():
        del known[name]
    for name, digest in found.items():
        known[name] = sorted({*known.get(name, ()), digest})
    PATH.write_text(json.dumps(everything, indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
