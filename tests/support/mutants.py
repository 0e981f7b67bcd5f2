"""Puts faults into what hands points and spans to the SDK; ``conform`` must find each of them.

Usage: python -m support.mutants [COMBINATIONS] [--seed SEED]

Each fault is compared in up to that many combinations; most are found in the first few.
"""

import argparse
import contextlib
import os
import random
import sys
import types
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

from support.conform import DIRECT, combinations, compare

# Each is a fault of one line in a module of the direct way: the module, the line's text, and the faulty text.
MUTANTS = (
    ("points", "counts[bisect_left(boundaries, value)] += 1", "counts[bisect_right(boundaries, value)] += 1"),
    ("points", "aggregation._min = min(aggregation._min, *values)", "aggregation._min = min(values)"),
    ("points", "aggregation._max = max(aggregation._max, *values)", "pass"),
    ("points", "            total = aggregation._sum\n", "            total = 0.0\n"),
    ("points", "if aggregation._record_min_max:", "if True:"),
    ("points", "and kept is None and aggregation is not None", "and aggregation is not None"),
    ("points", "and kept is None and aggregation is not None", "and kept is None"),
    (
        "points",
        "None if match._reset_on_collect else match._attributes_aggregation.get(key)",
        "match._attributes_aggregation.get(key)",
    ),
    ("points", "if kept is None or name in kept", "if True"),
    ("points", "if not self._offers_all and len(measured) > 1:", "if len(measured) > 1:"),
    ("points", "{bisect_left(boundaries, each[0]): each for each in measured}", "{0: each for each in measured}"),
    ("points", "or self._consumer._reader_storages is not self._storages\n            or not series", "or not series"),
    (
        "points",
        "            or not 0.0 <= value < inf\n        ):\n            super()",
        "        ):\n            super()",
    ),
    (
        "points",
        "aggregation = match._get_or_create_aggregation(",
        "continue\n                    aggregation = match._get_or_create_aggregation(",
    ),
    ("points", "if is_enabled:", "if True:"),
    ("points", "elif self._instrument._is_enabled():", "else:"),
    ("points", "and bool(current.get_span_context().trace_flags & _SAMPLED)", ""),
    ("points", "if self._offers_all:\n            return True", "if False: return True"),
    ("points", "exemplar_filter is AlwaysOffExemplarFilter", "False"),
    ("points", "return Context({**here, _SPAN_KEY: ", "return Context({_SPAN_KEY + 'x': "),
    ("points", "other.is_batched = is_batched = False", "pass"),
    ("points", "dict(target.attributes)", "dict(series.attributes)"),
    ("points", "if matches is None:", "if matches is None: continue\n            if False:"),
    ("sampling", "chosen = local_sampled if parent.trace_flags & 1", "chosen = local_sampled if True"),
    ("sampling", "if parent.is_remote:", "if False:"),
    ("sampling", "trace_id & limit < bound", "trace_id & limit <= bound << 1"),
    ("sampling", "return root(trace_id, None)", "return local_sampled(trace_id, None)"),
    ("spans", "parent, trace_id, trace_state = None, ids", "trace_id, trace_state = ids"),
    (
        "spans",
        "trace_id, trace_state = parent.trace_id, parent.trace_state",
        "trace_id, trace_state = parent.trace_id, DEFAULT_TRACE_STATE",
    ),
    ("spans", "flags |= _RANDOM", "pass"),
    ("spans", "if parent is None else parent.trace_flags & _RANDOM", ""),
    ("spans", "if limit is not None and len(attributes) > limit:", "if False:"),
    ("spans", "bounded._immutable = True", "bounded._immutable = False"),
    ("spans", "_ERROR if is_error else _UNSET", "_UNSET"),
    ("spans", "            or links\n", ""),
    ("spans", "or not tracer._tracer_config.is_enabled", ""),
    ("spans", "return made if flags & _SAMPLED else None", "return made"),
    (
        "spans",
        "        span_id = ids.generate_span_id()\n        if decision is _DROP:\n            return None\n",
        "        if decision is _DROP:\n            return None\n        span_id = ids.generate_span_id()\n",
    ),
    ("spans", "DEFAULT_TRACE_STATE if result.trace_state is None else result.trace_state", "trace_state"),
    (
        "spans",
        "            bounded = BoundedAttributes(limit, attributes)",
        "            bounded = _bounded(make_attributes(elapsed), limit)",
    ),
    ("spans", 'or getattr(multi, "_span_processors", ()) is not self._processors', ""),
    ("spans", "or tracer.sampler is not self._sampler", ""),
    ("spans", "type(tracer._tracer_metrics) is not NoOpTracerMetrics", "False"),
    ("spans", "if _sees_unfinished_spans(processor):", "if False:"),
    ("spans", "            tracer.resource,\n", "            Resource({}),\n"),
)


@contextlib.contextmanager
def mutated(module, text, faulty):
    """Have the direct way contain a fault in the block."""
    sources = {
        name: Path(import_module(f"{DIRECT}.{name}").__file__).read_text() for name in ("sampling", "points", "spans")
    }
    if sources[module].count(text) != 1:
        raise LookupError(f"{text!r} is there {sources[module].count(text)} times in {module}.py")
    sources[module] = sources[module].replace(text, faulty)
    # Names that only mutants use.
    sources["points"] = sources["points"].replace("import bisect_left", "import bisect_left, bisect_right")
    sources["spans"] = sources["spans"].replace("import ReadableSpan", "import Resource, ReadableSpan")
    before = {f"{DIRECT}.{name}": sys.modules[f"{DIRECT}.{name}"] for name in sources}
    try:
        for name, source in sources.items():
            mutant = types.ModuleType(f"{DIRECT}.{name}")
            mutant.__dict__["__package__"] = DIRECT
            exec(compile(source, f"<mutant of {name}>", "exec"), mutant.__dict__)  # noqa: S102 - this package's own source
            sys.modules[f"{DIRECT}.{name}"] = mutant
        yield
    finally:
        sys.modules.update(before)


def combinations_until_found(number, limit, seed):
    """Return how many combinations it took to find a mutant; ``None`` if the limit was not enough."""
    chosen = combinations(seed)
    if MUTANTS[number][0] == "points":
        # The other processors keep points from being added up together, where most of these faults are.
        chosen = [each for each in chosen if each.processors.startswith("batch")]
    with mutated(*MUTANTS[number]):
        for count, combination in enumerate(chosen[:limit], 1):
            try:
                if compare(combination, count):
                    return count
            except Exception:  # noqa: BLE001 - a fault that raises is found
                return count
    return None


def counts_of_mutants(limit, seed):
    """Return how many combinations each mutant took; ``None`` for those that the limit was not enough for."""
    numbers = range(len(MUTANTS))
    with ProcessPoolExecutor(os.cpu_count() or 1, mp_context=get_context("spawn")) as executor:
        return list(executor.map(combinations_until_found, numbers, repeat(limit), repeat(seed)))


def main(words=None):
    """Print how many combinations it took to find each mutant, and return an exit code."""
    parser = argparse.ArgumentParser(prog="nox -s mutants --", description=__doc__.splitlines()[0])
    parser.add_argument("combinations", nargs="?", type=int, default=2_400, help="how many are compared for each")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="which ones")
    asked = parser.parse_args(words)
    counts = counts_of_mutants(asked.combinations, asked.seed)
    for (module, text, faulty), count in zip(MUTANTS, counts, strict=True):
        print(f"{count or 'NOT FOUND':>9}  {module}: {text.strip()!r} -> {faulty.strip()!r}")
    print(f"seed {asked.seed}: {sum(map(bool, counts))} of {len(counts)} mutants found")
    return int(not all(counts))


if __name__ == "__main__":
    sys.exit(main())
