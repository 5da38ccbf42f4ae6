"""Personal data: what is found and what is left, placeholders and pseudonyms, the step in a job."""

from __future__ import annotations

import gzip
import ipaddress
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from test_prepare import documents, job, run

from raylm.config.job import Job
from raylm.config.load import load_job
from raylm.config.prepare.steps import OperatorSettings
from raylm.errors import ConfigError, DataError
from raylm.prep.operators import OperatorRecord, applied, operator_of
from raylm.prep.operators.personal.numbers import luhn
from raylm.prep.operators.personal.operator import PersonalData, find, replaced
from raylm.prep.operators.personal.span import Span, Spans
from raylm.records import Document
from raylm.storage import Connection, StoragePath
from raylm.testing.external import external_data, needs_data

ROOT = Path(__file__).parents[1]
GOLD = external_data("pii")
ALL = PersonalData(kinds=["email", "phone", "ip", "card", "iban", "national_id", "url"])
PSEUDONYMS = PersonalData(replace_by="pseudonym", seed=7)


def found(text: str, settings: PersonalData = ALL) -> list[tuple[str, str]]:
    return [(span.kind, text[span.start : span.stop]) for span in find(text, settings)]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("email", "ann.o'hara+news@mail.some-host.co.uk"),
        ("email", "jo@example.com"),
        ("email", "müller@größe.de"),
        ("email", "ann (at) host [dot] org"),
        ("ip", "81.2.69.142"),
        ("ip", "2a02:8108:8ac0:1b7:f0e1:22ff:fe33:4455"),
        ("ip", "2a02:8108::22ff"),
        ("card", "4929 1234 5678 9015"),
        ("card", "4929123456789015"),
        ("card", "3714-496353-98431"),
        ("card", "371449635398431"),
        ("iban", "DE89 3704 0044 0532 0130 00"),
        ("iban", "GB29NWBK60161331926819"),
        ("iban", "mt84malt011000012345mtlcast001s"),
        ("national_id", "536-90-4399"),
        ("national_id", "390.533.447-05"),
        ("national_id", "2 95 10 99 126 111 93"),
        ("national_id", "RCCMNL83S18D969H"),
        ("national_id", "X-2482300W"),
        ("national_id", "AB 12 34 56 C"),
        ("phone", "+44 20 7183 8750"),
        ("phone", "+41 (0)44 668 18 00"),
        ("phone", "+44(0)115 4960914"),
        ("phone", "(415) 886-1234"),
        ("phone", "415-886-1234 ext. 12"),
        ("phone", "001-212-736-5000"),
        ("phone", "020 7183 8750"),
        ("url", "https://host.org/a_(b)?q=1"),
        ("url", "www.host.org/people/ann"),
    ],
)
def test_it_is_found_alone_and_in_a_sentence(kind: str, value: str) -> None:
    for text in (value, f"So: {value}.", f"({value})", f"first\n{value}\nlast", f"a {value}, then 12 more in 2019"):
        assert found(text) == [(kind, value)]


@pytest.mark.parametrize(
    ("with_word", "without"),
    [
        ("Phone: 467 3395", "Plate 467 3395"),
        ("Fax 01.84.17.61.18", "Row 01.84.17.61.18"),
        ("call me on 9472 7916 tonight", "paid 9472 7916 tonight"),
        ("Tel. 69 0423-0411", "Lab. 69 0423-0411"),
        ("Fax No 883 374 068", "Bus No 883 374 068"),
        ("M: 07 88 35 33 74 | E: -", "X: 07 88 35 33 74 | E: -"),
        ("72 128 827 (mobile)", "72 128 827 (tonnes)"),
        ("my SSN is 536904399", "lot 536904399"),
        ("his SIN: 123 456 782", "sums 123 456 782"),
        ("card number 4222222222222", "article 4222222222222"),
        ("PESEL 44051401359", "batch 44051401359"),
    ],
)
def test_weak_numbers_count_only_beside_a_word(with_word: str, without: str) -> None:
    assert len(found(with_word)) == 1
    assert found(without) == []


@pytest.mark.parametrize(
    "text",
    [
        "In 1914–1918, and again 1939-1945, about 17,000,000 of 70 000 000 people; 3.141592653589793 is pi.",
        "ISBN 978-0-306-40615-7, ISBN 0-306-40615-2, ISBN-10: 0306406152, ISSN 2049-3630",
        "doi:10.1016/j.cell.2008.10.016",
        "On 2024-05-06 12:30:45, 06/05/2024 or 06.05.2024 at 10:15; 20240506123045 and 1714991445123 as a stamp.",
        "Version 1.2.3.4 and v10.0.19041.1 of Windows, chapter 1.2.3.4, Python 3.11.7, numpy==1.26.4, 2.7.2.2",
        "It cost $1,299.99, €12 345 678 or £1.234.567,89; a loan of 1000000000 dollars at 4.125 %.",
        "127.0.0.1, 192.168.1.1, 10.0.0.5, 0.0.0.0",
        "203.0.113.9, ::1, fe80::1ff:fe23:4567:890a, 2001:db8::1, 300.1.1.256",
        "std::vector<int>::iterator a::b; John 3:16, at 12:34:56, 00:1a:2b:3c:4d:5e, 1::2, dead::beef, abc::def::ab",
        "logo@2x.png, @handle, user@localhost, lodash@4.17.21, a @ b, decorator @property.setter",
        "Order #123-4567890, invoice 20191234567, part no. 555 123 4567, pp. 721–742. 2018, case 12-34567-89",
        "4929123456789016 has a wrong digit, as have DE88370400440532013000, 457-00-5462 and 123.456.789-00.",
        "sha1 da39a3ee5e6b4b0d3255bfef95601890afd80709, uuid 123e4567-e89b-12d3-a456-426614174000, 0x7fff5fbff8c8",
        "https://host.org/4929123456789015/photo?id=4155552671&p=020-7183-8750 /home/4929123456789015/a",
        "51.5074° N, 0.1278° W; 40.712776, -74.005974; 1920x1080; 16:9; 5-4-3-2-1",
        "0800-1700; 1/2/3/4; 100 0111 101 0001",
        "Call of Duty 4 sold 15,700,000 copies. The office opened in 1998 2004 and 2010. Text 12 of 2000. Direct 1 2 3",
        "The score was 6-4 6-3 7-6 (7-5), 2016–17 season: 38 12 9 17 45 61 -16 45, population 1 234 567 (2011).",
    ],
)
def test_ordinary_prose_stays_as_it_is(text: str) -> None:
    left = PersonalData()
    assert found(text, left) == []


# Made by each number's own rule; no person's.
IDS = {
    "br_cpf": "123.456.789-09",
    "ca_sin": "SIN 123 456 782",
    "ch_ahv": "756.1234.5678.97",
    "de_idnr": "IdNr 36 574 261 809",
    "es_dni": "DNI 12345678Z",
    "es_nie": "X1234567L",
    "fi_hetu": "131052-308T",
    "fr_nir": "2 95 10 99 126 111 93",
    "gb_nhs": "NHS 943-476-5870",
    "gb_nino": "AB 12 34 56 C",
    "in_aadhaar": "Aadhaar 2341 2341 2346",
    "it_codice_fiscale": "RCCMNL83S18D969H",
    "mx_curp": "BOXW310820HNERXN09",
    "nl_bsn": "BSN 1112.22.333",
    "no_fodselsnummer": "fnr 151086 95088",
    "pl_pesel": "PESEL 44051401359",
    "se_personnummer": "880320-0016",
    "us_ssn": "536-90-4399",
    "za_id": "ID 7503305044089",
}


def test_every_country_s_number_has_an_example() -> None:
    assert set(PersonalData().national_ids) == set(IDS)


@pytest.mark.parametrize("name", IDS)
def test_each_country_s_number_is_found_and_a_wrong_digit_is_not(name: str) -> None:
    only = PersonalData(kinds=["national_id"], national_ids=[name])
    written = IDS[name]
    assert [span.form for span in find(f"Here: {written}, or so", only)] == [name]
    assert len(find(written, PersonalData())) == 1
    made_up = replaced(written, find(written, only), only.model_copy(update={"replace_by": "pseudonym"}))
    assert made_up != written
    if name != "gb_nino":  # has no check digit
        place = max(index for index, letter in enumerate(written) if letter.isdigit())
        wrong = written[:place] + str((int(written[place]) + 1) % 10) + written[place + 1 :]
        assert find(wrong, only) == [] or name == "us_ssn"  # of which only areas and groups can be checked


def test_the_surer_kind_has_the_letters() -> None:
    text = "write to 4155552671@host.org or pay to DE89370400440532013000"
    assert found(text) == [("email", "4155552671@host.org"), ("iban", "DE89370400440532013000")]
    spans = Spans()
    spans.claim([Span(5, 9, "a"), Span(0, 3, "a")])
    spans.claim([Span(8, 12, "b"), Span(3, 5, "b"), Span(4, 6, "b"), Span(2, 20, "b"), Span(9, 10, "b")])
    assert [(span.start, span.stop, span.kind) for span in spans.held()] == [
        *((0, 3, "a"), (3, 5, "b"), (5, 9, "a"), (9, 10, "b"))
    ]


def test_kinds_regions_and_ids_are_a_choice() -> None:
    text = "ann@host.org 030 90269 4444 536-90-4399"
    assert found(text, PersonalData(kinds=["email"])) == [("email", "ann@host.org")]
    assert ("phone", "030 90269 4444") not in found(text, PersonalData(regions=["US"]))
    assert ("phone", "030 90269 4444") in found(text, PersonalData(regions=["DE"]))
    assert found(text, PersonalData(kinds=["national_id"], national_ids=["fr_nir"])) == []


def test_placeholders_take_the_place_of_spans() -> None:
    text = "Ann <ann@host.org>, +44 20 7183 8750."
    assert replaced(text, find(text, ALL), ALL) == "Ann <[EMAIL]>, [PHONE]."
    other = PersonalData(placeholder="<{kind}/>")
    assert replaced(text, find(text, other), other) == "Ann <<EMAIL/>>, <PHONE/>."


VALUES = {
    "email": "Ann@host.org",
    "phone": "+44 20 7183 8750",
    "ip": "81.2.69.142",
    "card": "4929 1234 5678 9015",
    "iban": "GB29 NWBK 6016 1331 9268 19",
    "national_id": "536-90-4399",
}


def instead(value: str, settings: PersonalData = PSEUDONYMS) -> str:
    assert len(find(value, settings)) == 1
    return replaced(value, find(value, settings), settings)


@pytest.mark.parametrize("kind", VALUES)
def test_a_pseudonym_is_the_same_for_a_seed_and_another_for_another(kind: str) -> None:
    value = VALUES[kind]
    assert instead(value) == instead(value) != value
    assert len({instead(value, PersonalData(replace_by="pseudonym", seed=seed)) for seed in range(5)}) > 1


def test_another_way_of_writing_it_is_the_same_value() -> None:
    assert instead("ANN@host.org") == instead("ann@HOST.org")
    assert instead("4929-1234-5678-9015").replace("-", "") == instead("4929123456789015")
    assert instead("GB29NWBK60161331926819") == instead("GB29 NWBK 6016 1331 9268 19").replace(" ", "")
    assert instead("+1 415-886-1234")[-12:] == instead("415-886-1234")


def test_pseudonyms_are_plausible_and_from_ranges_kept_free() -> None:
    from stdnum import iban, us

    assert instead(VALUES["email"]).endswith("@example.com")
    card = instead(VALUES["card"])
    assert card.startswith("4242 42")
    assert luhn(card.replace(" ", ""))
    account = instead(VALUES["iban"])
    assert iban.is_valid(account, check_country=False)
    assert account[:2] + account[5:9] == "GBTEST"
    assert ipaddress.ip_address(instead(VALUES["ip"])).is_private
    assert ipaddress.ip_address(instead("2a02:8108::22ff")) in ipaddress.ip_network("2001:db8::/32")
    assert instead("(415) 886-1234")[6:12] == "555-01"
    assert instead("020 7183 8750").replace(" ", "").startswith("07700900")
    assert instead("+33 1 84 17 61 18").startswith("+33 1 99 00")
    number = instead(VALUES["national_id"])
    assert [*map(number.find, "-"), number.rfind("-"), len(number)] == [3, 6, 11]
    assert not us.ssn.is_valid(number)


@settings(max_examples=60, deadline=None)
@given(
    some.lists(some.sampled_from(sorted(set(VALUES) - {"national_id"})), min_size=1, max_size=6), some.integers(0, 99)
)
def test_nothing_is_found_in_what_was_replaced(kinds: list[str], seed: int) -> None:
    text = " and then ".join(VALUES[kind] for kind in kinds)
    for way in ("placeholder", "pseudonym"):
        wanted = PersonalData(replace_by=way, seed=seed)
        assert [span.kind for span in find(text, wanted)] == kinds
        assert find(replaced(text, find(text, wanted), wanted), wanted) == []


@settings(max_examples=100, deadline=None)
@given(some.text(some.sampled_from("0123456789 .-+()/@:aAxé\n#[]"), max_size=120))
def test_spans_are_in_order_apart_and_inside(text: str) -> None:
    spans = find(text, ALL)
    edges = [edge for span in spans for edge in (span.start, span.stop)]
    assert edges == sorted(edges)
    assert all(span.start < span.stop <= len(text) for span in spans)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "part", ["1", "1 ", "1-", "(1", "a@", "a.", ":1", "1.", "AB12", "[at]", "+1 ", "www.", "x@a.", "é"]
)
def test_hostile_text_takes_no_longer_than_its_length(part: str) -> None:
    find(part * (200_000 // len(part)), ALL)


def stepped(folder: Path, step: Any, texts: list[str], output: str = "data", **more: Any) -> Job:
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    source = {"name": "a", "kind": "jsonl", "glob": f"{folder}/a.jsonl"}
    return job(folder / output, [source], steps=[step], held_out=0.0, **more)


def test_the_step_counts_what_it_replaced(tmp_path: Path) -> None:
    texts = ["ann@host.org and bob@host.org", "call +44 20 7183 8750 or ann@host.org", "nothing in here"]
    manifest = run(stepped(tmp_path, "personal_data", texts)).manifest
    assert documents(StoragePath(str(tmp_path / "data"))) == [
        "[EMAIL] and [EMAIL]",
        "call [PHONE] or [EMAIL]",
        "nothing in here",
    ]
    step, _ = manifest.steps
    assert (step["documents"], step["kept"], step["dropped"]) == (3, 3, {})
    assert step["changed"] == {"email": 3, "phone": 1}
    assert step["tallies"] == {"personal_data": {"email": 2, "phone": 1}}


def test_pseudonyms_do_not_depend_on_the_process() -> None:
    code = (
        "from raylm.prep.operators.personal.operator import PersonalData, find, replaced\n"
        "settings = PersonalData(replace_by='pseudonym', seed=7)\n"
        f"text = {' '.join(VALUES.values())!r}\n"
        "print(replaced(text, find(text, settings), settings))"
    )
    said = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
        for env in ({"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)} for seed in ("0", "1"))
    }
    assert said == {replaced(" ".join(VALUES.values()), find(" ".join(VALUES.values()), PSEUDONYMS), PSEUDONYMS) + "\n"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{kinds: [mail]}", "prepare.steps.0.personal_data.kinds.0"),
        ("{kinds: []}", "there is nothing to find: name kinds, or a model"),
        ("{regions: [Germany]}", "prepare.steps.0.personal_data.regions.0"),
        ("{placeholder: '[{type}]'}", "only {kind} may stand in braces, got '[{type}]'"),
        ("{national_ids: [us_sns]}", "prepare.steps.0.personal_data.national_ids.0"),
        ("{kind: [email]}", "unknown key 'prepare.steps.0.personal_data.kind'"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "job.yaml").write_text(f"name: x\nprepare:\n  steps:\n    - personal_data: {line}\n")
    with pytest.raises(ConfigError) as caught:
        load_job(str(tmp_path / "job.yaml"))
    assert message in str(caught.value)


def test_a_region_that_there_is_not_is_named() -> None:
    with pytest.raises(ConfigError, match="knows no region 'XX'"):
        build(regions=["US", "XX"])


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "phonenumbers", None)
    with pytest.raises(DataError, match="personal_data needs phonenumbers, which is not installed"):
        build()


def build(**given: Any) -> Any:
    return operator_of(OperatorSettings.model_validate({"personal_data": given}), Connection())


def pipeline(folder: Path) -> str:
    """A pipeline that knows two people, a company, a street and a town by rule."""
    spacy = pytest.importorskip("spacy", reason="spaCy is not installed")
    blank = spacy.blank("en")
    ruler = blank.add_pipe("entity_ruler")
    named = [("PERSON", "Ann Hill"), ("PER", "Bob"), ("ORG", "Acme Works"), ("FAC", "3 High Street"), ("GPE", "Ulm")]
    ruler.add_patterns([{"label": label, "pattern": text} for label, text in named])
    blank.to_disk(folder / "pipeline")
    return str(folder / "pipeline")


def test_a_model_finds_names(tmp_path: Path) -> None:
    model = pipeline(tmp_path)
    text = "Ann Hill <Bob@host.org> of Acme Works met Bob at 3 High Street, Ulm."
    record = OperatorRecord("personal_data")
    (document,) = build(model=model)([Document("a", text, "s")], record)
    assert document.text == "[NAME] <[EMAIL]> of [ORGANIZATION] met [NAME] at [ADDRESS], Ulm."
    assert record.changed == {"name": 2, "email": 1, "organization": 1, "address": 1}
    assert found(text, PersonalData(kinds=[], model=model, model_kinds=["place"])) == [("place", "Ulm")]
    pseudonymous = PersonalData(model=model, replace_by="pseudonym")
    first = replaced("Ann Hill", find("Ann Hill", pseudonymous), pseudonymous)
    assert first == replaced("Ann Hill", find("Ann Hill", pseudonymous), pseudonymous)
    assert first not in ("Ann Hill", "[NAME]")


def test_texts_that_a_model_reads_together_are_cleaned_as_alone(tmp_path: Path) -> None:
    model = pipeline(tmp_path)
    chance = random.Random(5)
    words = ["Ann Hill", "Bob", "Acme Works", "someone@host.org", "went", "to", "Ulm", "\n", "long " * 9000]
    texts = [" ".join(chance.choices(words, k=chance.randint(0, 12))) for _ in range(100)]
    documents = [Document(str(number), text, "s") for number, text in enumerate(texts)]
    together, alone = OperatorRecord("personal_data"), OperatorRecord("personal_data")
    cleaned = list(applied(build(model=model), documents, together))
    assert cleaned == [one for document in documents for one in applied(build(model=model), [document], alone)]
    assert replace(together, seconds=0) == replace(alone, seconds=0)
    assert together.changed["name"] > 50


def test_a_model_reads_long_texts_in_pieces(tmp_path: Path) -> None:
    settings = PersonalData(kinds=[], model=pipeline(tmp_path))
    text = "word " * 30_000 + "Ann Hill\n" + "word " * 30_000 + "Bob"
    assert found(text, settings) == [("name", "Ann Hill"), ("name", "Bob")]


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    spacy = pytest.importorskip("spacy", reason="spaCy is not installed")
    with pytest.raises(ConfigError, match="spaCy has no model 'en_core_web_huge'"):
        build(model="en_core_web_huge")
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(ConfigError, match="recognizes no entities; it has: nothing"):
        build(model=str(tmp_path / "blank"))


def test_a_model_without_spacy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(DataError, match="needs spacy, which is not installed") as caught:
        build(model="any_model")
    assert caught.value.hint == "pip install 'raylm[prepare-models]'"


@needs_data("pii")
def test_most_of_the_gold_spans_are_found() -> None:
    kinds = {"EMAIL_ADDRESS": "email", "CREDIT_CARD": "card", "IBAN_CODE": "iban", "IP_ADDRESS": "ip"}
    kinds |= {"PHONE_NUMBER": "phone", "US_SSN": "national_id"}
    counts = {kind: [0, 0, 0] for kind in kinds.values()}
    (file,) = GOLD.glob("*.jsonl.gz")
    for line in gzip.decompress(file.read_bytes()).decode().splitlines():
        row = json.loads(line)
        wanted = {
            (span["start_position"], span["end_position"], kinds[span["entity_type"]])
            for span in row["spans"]
            if span["entity_type"] in kinds
        }
        guessed = {(span.start, span.stop, span.kind) for span in find(row["full_text"], PersonalData())}
        for column, spans in enumerate((wanted & guessed, wanted, guessed)):
            for span in spans:
                counts[span[2]][column] += 1
    for kind, (right, gold, guesses) in counts.items():
        assert gold > 10
        assert 2 * right / (gold + guesses) >= 0.95, kind
