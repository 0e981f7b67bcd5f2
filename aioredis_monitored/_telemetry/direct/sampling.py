"""The SDK's own samplers as functions of the trace id and the parent, which is all that they look at."""

from collections.abc import Callable

from opentelemetry.sdk.trace import sampling
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, StaticSampler, TraceIdRatioBased
from opentelemetry.trace import SpanContext

Decide = Callable[[int, SpanContext | None], Decision]

_PARENT_BASED = (ParentBased, getattr(sampling, "ParentBasedTraceIdRatio", ParentBased))


def decision_of(sampler: Sampler) -> Decide | None:
    """Return what decides as a sampler does, for a trace id and a valid parent or ``None``.

    Returns:
        ``None`` for any other sampler than the SDK's own that look at nothing else: it is asked, with everything.
    """
    # Exactly these classes: another one may look at more.
    kind = type(sampler)
    if "should_sample" in getattr(sampler, "__dict__", ()):
        return None
    if isinstance(sampler, StaticSampler) and kind is StaticSampler:
        decision = sampler._decision
        return lambda _, __: decision
    if isinstance(sampler, TraceIdRatioBased) and kind is TraceIdRatioBased:
        bound, limit = sampler.bound, sampler.TRACE_ID_LIMIT
        return lambda trace_id, _: Decision.RECORD_AND_SAMPLE if trace_id & limit < bound else Decision.DROP
    return _by_parent(sampler) if isinstance(sampler, ParentBased) and kind in _PARENT_BASED else None


def _by_parent(sampler: ParentBased) -> Decide | None:
    root = decision_of(sampler._root)
    remote_sampled = decision_of(sampler._remote_parent_sampled)
    remote_unsampled = decision_of(sampler._remote_parent_not_sampled)
    local_sampled = decision_of(sampler._local_parent_sampled)
    local_unsampled = decision_of(sampler._local_parent_not_sampled)
    if not (root and remote_sampled and remote_unsampled and local_sampled and local_unsampled):
        return None

    def decide(trace_id: int, parent: SpanContext | None) -> Decision:
        if parent is None:
            return root(trace_id, None)
        if parent.is_remote:
            chosen = remote_sampled if parent.trace_flags & 1 else remote_unsampled
        else:
            chosen = local_sampled if parent.trace_flags & 1 else local_unsampled
        return chosen(trace_id, parent)

    return decide
