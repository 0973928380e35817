"""What is exported, of what was sampled and what was not."""

from collections.abc import Sequence

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import StatusCode

from woodfrog.rpc import propagation
from woodfrog.telemetry import export, keep
from woodfrog.telemetry.export import Provider
from woodfrog.telemetry.spans import Tracer


class Kept(SpanExporter):
    def __init__(self, result: SpanExportResult = SpanExportResult.SUCCESS) -> None:
        self.spans: list[ReadableSpan] = []
        self._result = result

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return self._result


def exported(ratio: float, what: object, exporter: Kept | None = None) -> list[ReadableSpan]:
    exporter = exporter or Kept()
    provider = Provider(Resource.create({}), ratio, exporter)
    what(provider.get_tracer())  # type: ignore[operator]
    provider.shutdown()
    return exporter.spans


def served(tracer: trace.Tracer) -> None:
    with tracer.start_as_current_span("request"), tracer.start_as_current_span("part"):
        pass


def test_sampled_spans_have_one_trace_and_their_parents() -> None:
    part, request = exported(1.0, served)
    assert (part.name, request.name) == ("part", "request")
    assert part.parent is not None
    assert request.context is not None
    assert part.parent.span_id == request.context.span_id
    assert part.context is not None
    assert part.context.trace_id == request.context.trace_id
    assert request.parent is None
    assert (request.end_time or 0) >= (request.start_time or 0) > 0


def test_nothing_of_an_unsampled_request_that_is_served_warm() -> None:
    assert exported(0.0, served) == []


def test_an_unsampled_request_that_is_kept_is_there_whole_and_what_it_calls_is_sampled() -> None:
    carriers = []

    def climbs(tracer: trace.Tracer) -> None:
        with tracer.start_as_current_span("request"):
            with tracer.start_as_current_span("before"):
                carriers.append(propagation.traceparent(trace.get_current_span()))
            with tracer.start_as_current_span("climb") as span:
                keep(span)
                carriers.append(propagation.traceparent(trace.get_current_span()))

    assert [span.name for span in exported(0.0, climbs)] == ["before", "climb", "request"]
    assert [carrier[-2:] for carrier in carriers] == ["00", "01"]


def test_an_unsampled_request_that_fails_is_there_with_its_error() -> None:
    def fails(tracer: trace.Tracer) -> None:
        with (
            pytest.raises(ValueError, match="broken"),
            tracer.start_as_current_span("request"),
            tracer.start_as_current_span("part"),
        ):
            raise ValueError("broken")

    part, request = exported(0.0, fails)
    assert part.status.status_code is request.status.status_code is StatusCode.ERROR
    assert (part.events[0].attributes or {})["exception.message"] == "broken"


@pytest.mark.parametrize("flag", ["00", "01"])
def test_the_flag_of_who_calls_decides(flag: str) -> None:
    def called(tracer: trace.Tracer) -> None:
        above = propagation.extract({"traceparent": f"00-{'a' * 32}-{'b' * 16}-{flag}"})
        tracer.start_span("server", above).end()

    for ratio in (0.0, 1.0):
        assert len(exported(ratio, called)) == int(flag)


@pytest.mark.parametrize(("ratio", "most"), [(1.0, 500), (0.01, 100), (0.0, 100)])
def test_callers_from_outside_may_force_a_few_traces(ratio: float, most: int) -> None:
    """Their ids are chosen too, so that any ratio would take them."""

    def flood(tracer: Tracer) -> None:
        for number in range(500):
            sent = propagation.extract(
                {"traceparent": f"00-{'b' * 16}{number + 1:016x}-{'b' * 16}-01"}
            )
            tracer.start_span("server", tracer.outside(sent)).end()
        sent = propagation.extract({"traceparent": f"00-{'c' * 32}-{'b' * 16}-01"})
        failed = tracer.start_span("failed", tracer.outside(sent))
        failed.set_status(StatusCode.ERROR)
        failed.end()

    spans = exported(ratio, flood)
    assert 0 < len(spans) - 1 <= most
    assert spans[-1].name == "failed", "what fails is there all the same"
    assert spans[-1].context is not None
    assert spans[-1].context.trace_id == int("c" * 32, 16)


def test_trace_ids_decide_so_that_the_ratio_is_met() -> None:
    def many(tracer: trace.Tracer) -> None:
        for _ in range(4000):
            tracer.start_span("request").end()

    assert 800 < len(exported(0.25, many)) < 1200  # 7 standard deviations


def test_spans_that_found_no_room_and_those_that_were_not_taken_are_counted() -> None:
    exporter = Kept(SpanExportResult.FAILURE)
    provider = Provider(Resource.create({}), 1.0, exporter, queue_spans_max=5)
    for _ in range(8):
        provider.get_tracer().start_span("one").end()
    provider.shutdown()
    assert provider.sent is not None
    assert (provider.dropped, provider.sent.failed, provider.sent.exported) == (3, 5, 0)


@pytest.mark.parametrize(
    ("sampler", "argument", "ratio"),
    [
        (None, None, 1.0),
        ("parentbased_traceidratio", "0.01", 0.01),
        ("traceidratio", None, 1.0),
        ("parentbased_always_off", None, 0.0),
        ("traceidratio", "2", None),
        ("traceidratio", "much", None),
        ("jaeger_remote", None, None),
    ],
)
def test_what_the_standard_variables_say(
    monkeypatch: pytest.MonkeyPatch, sampler: str | None, argument: str | None, ratio: float | None
) -> None:
    for name, value in (("", sampler), ("_ARG", argument)):
        monkeypatch.delenv(f"OTEL_TRACES_SAMPLER{name}", raising=False)
        if value is not None:
            monkeypatch.setenv(f"OTEL_TRACES_SAMPLER{name}", value)
    if ratio is None:
        with pytest.raises(ValueError, match="say "):
            export.ratio()
    else:
        assert export.ratio() == ratio
