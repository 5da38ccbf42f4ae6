"""presidio-analyzer over given texts, in an environment of its own; one line of JSON: spans a text, and CPU seconds."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

ENTITIES = {
    "EMAIL_ADDRESS": "email",
    "PHONE_NUMBER": "phone",
    "IP_ADDRESS": "ip",
    "CREDIT_CARD": "card",
    "IBAN_CODE": "iban",
    "US_SSN": "national_id",
    "URL": "url",
}


def analyzer(model: str | None) -> Any:
    """Presidio as its documentation sets it up; on a blank pipeline when there is no model."""
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NerModelConfiguration, NlpEngineProvider, SpacyNlpEngine

    if model is not None:
        settings = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": model}]}
        return AnalyzerEngine(nlp_engine=NlpEngineProvider(nlp_configuration=settings).create_engine())
    import spacy

    engine = SpacyNlpEngine(ner_model_configuration=NerModelConfiguration())
    engine.nlp = {"en": spacy.blank("en")}
    return AnalyzerEngine(nlp_engine=engine)


def main() -> None:
    """Read the request, print the answer."""
    request = json.loads(Path(sys.argv[1]).read_text())
    engine = analyzer(request["model"])
    kinds = ENTITIES | ({"PERSON": "name"} if request["model"] else {})
    engine.analyze("Warm up at once: 212-555-0123", language="en", entities=list(kinds))
    began = time.process_time()
    found = [engine.analyze(text, language="en", entities=list(kinds)) for text in request["texts"]]
    seconds = time.process_time() - began
    spans = [[[one.start, one.end, kinds[one.entity_type], one.score] for one in results] for results in found]
    print(json.dumps({"seconds": seconds, "spans": spans}))


if __name__ == "__main__":
    main()
