"""schemathesis on the server's own OpenAPI document: what it says of itself is what it does. Slow: on request.

Needs the extra `fuzz`.
"""

from contextlib import suppress

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="pip install 'fewstep[fuzz]'")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis.errors import Unsatisfiable  # noqa: E402
from schemathesis import checks  # noqa: E402

from fewstep.serve.app import application  # noqa: E402
from fewstep.serve.jobs import Studio  # noqa: E402
from fewstep.serve.limits import Limits  # noqa: E402
from fewstep.serve.security import Door  # noqa: E402
from tests.serve.null import NullPipeline  # noqa: E402

LEFT_OUT = [
    checks.not_a_server_error,  # 501 is an answer here; 500 is looked for below
    checks.positive_data_acceptance,  # a value of the right type may still be out of range
    checks.negative_data_rejection,  # A1111's bodies are taken leniently
]


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_the_document_is_true(tmp_path, mode):
    studio = Studio(NullPipeline(tmp_path), limits=Limits(steps=8, count=3, pixels=3 * 128 * 128))
    door = Door(application(studio), hosts=["testserver"])
    schema = schemathesis.openapi.from_asgi("/openapi.json", door)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 30
    for operation in operations:

        @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(operation.as_strategy(generation_mode=mode))
        def run(case):
            answer = case.call()
            assert answer.status_code < 500 or answer.status_code == 501, answer.text
            case.validate_response(answer, excluded_checks=LEFT_OUT)

        with suppress(Unsatisfiable):  # what takes nothing cannot be asked wrongly
            run()
    studio.close()
