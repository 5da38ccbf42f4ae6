"""Languages other than English: where words, addresses and numbers end, and which rules are for whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raylm.cli.preview import prepare_rows
from raylm.config.job import Job
from raylm.prep.operators.build import language_notes
from raylm.prep.operators.dedup.minhash import word_hashes
from raylm.prep.operators.language import CODES, identifier
from raylm.prep.operators.personal.internet import emails, ips, urls
from raylm.prep.operators.personal.numbers import cards, ibans
from raylm.prep.operators.personal.phones import phones
from raylm.prep.operators.spacy_words import tokenizer_of
from raylm.prep.readers.base import language_tag
from raylm.records import Document
from raylm.testing.operators import run_operator


def found(text: str, spans: object) -> list[str]:
    return [text[start:stop] for start, stop in spans]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("如果您有任何问题请发送邮件到nobody@example.com我们会尽快回复您", "nobody@example.com"),
        ("お問い合わせはnobody@example.jpまでご連絡ください", "nobody@example.jp"),
        ("ติดต่อnobody@example.co.thได้", "nobody@example.co.th"),
        ("문의는nobody@example.co.kr로 주세요", "nobody@example.co.kr"),
        ("пишите на иван@пример.рф сегодня", "иван@пример.рф"),
        ("联系 张三@例子.中国 谢谢", "张三@例子.中国"),
        ("mail josé@müller.de!", "josé@müller.de"),
        ("see https://example.org/?to=nobody@example.org&x=1", "nobody@example.org"),
        ("A name [at] example [dot] org, please", "name [at] example [dot] org"),
    ],
)
def test_a_mail_address_ends_where_its_script_does(text: str, address: str) -> None:
    assert found(text, emails(text)) == [address]


@pytest.mark.parametrize("text", ["git clone git@example.org:team/repo.git", "scp a@example.org:~/x .", "x@y", "写@信"])
def test_what_names_a_file_on_another_machine_is_no_mail_address(text: str) -> None:
    assert found(text, emails(text)) == []


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("访问https://example.com了解更多", "https://example.com"),
        ("看https://example.com/a/b。然后", "https://example.com/a/b"),
        ("https://zh.wikipedia.org/wiki/中国 好", "https://zh.wikipedia.org/wiki/中国"),
        ("「https://example.jp/x」です", "https://example.jp/x"),
        ("https://пример.рф/путь да", "https://пример.рф/путь"),
    ],
)
def test_a_web_address_ends_before_the_sentence_goes_on(text: str, address: str) -> None:
    assert found(text, urls(text)) == [address]


def test_a_version_behind_a_programs_name_is_no_machine() -> None:
    text = "nginx/1.18.0.22 on kernel 5.15.0.91"
    assert found(text, ips(text)) == []
    assert found("see http://8.8.8.8/x", ips("see http://8.8.8.8/x")) == ["8.8.8.8"]


@pytest.mark.parametrize("gap", [" ", "\u00a0", "\u202f", "-", ""])
def test_an_account_number_is_found_whatever_parts_its_groups(gap: str) -> None:
    text = f"Konto: {gap.join(['GB82', 'WEST', '1234', '5698', '7654', '32'])}."
    assert len(found(text, ibans(text, (0, len(text))))) == 1


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("手机：13900000000", "13900000000"),
        ("電話03-0000-1234まで", "03-0000-1234"),
        ("联系电话：010-12345678", "010-12345678"),
        ("전화 02-123-4567로", "02-123-4567"),
        ("тел. 8 (495) 123-45-67", "8 (495) 123-45-67"),
        ("телефона: 123-45-67", "123-45-67"),
        ("โทร 02-123-4567", "02-123-4567"),
        ("هاتف: 011 234 5678", "011 234 5678"),
    ],
)
def test_a_number_beside_a_word_for_phones_is_one_in_any_language(text: str, number: str) -> None:
    assert found(text, phones(text, (0, len(text)), [])) == [number]


@pytest.mark.parametrize(
    ("region", "text", "number"),
    [("CN", "我的号码是13912345678谢谢", "13912345678"), ("JP", "番号は090-1234-5678です", "090-1234-5678")],
)
def test_a_number_of_a_named_region_is_found_without_a_word(region: str, text: str, number: str) -> None:
    assert found(text, phones(text, (0, len(text)), [region])) == [number]
    assert found(text, phones(text, (0, len(text)), ["US"])) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("委员会开会，决定春天开始施工！旧桥无法保留。", "委员会开会,决定春天开始施工!旧桥无法保留."),
        ("（新しい橋）は「来年」から：建設？", "(新しい橋)は来年から:建設?"),
        ("اجتمعت اللجنة، وقررت؛ متى؟", "اجتمعت اللجنة, وقررت; متى?"),
        ("समिति मिली। पुल बनेगा॥", "समिति मिली. पुल बनेगा."),
        ("کمیٹی ملی۔ پل بنے گا۔", "کمیٹی ملی پل بنے گا"),
        ("Բարև՝ աշխարհ։ Ինչպե՞ս", "Բարև, աշխարհ. Ինչպե ս"),
        ("ሰላም፡ዓለም።", "ሰላም ዓለም"),
        ("བཀྲ་ཤིས་བདེ་ལེགས།", "བཀྲ ཤིས བདེ ལེགས"),
        ("សួស្តី។ ពិភពលោក៕", "សួស្តី ពិភពលោក"),
        ("မင်္ဂလာပါ။ ကမ္ဘာ", "မင်္ဂလာပါ ကမ္ဘာ"),
        ("ジョン・スミスの橋", "ジョン スミスの橋"),
        ("Τι είναι;· ναι", "Τι είναι ναι"),
    ],
    ids=[
        "Chinese",
        "Japanese",
        "Arabic",
        "Hindi",
        *("Urdu", "Armenian", "Amharic", "Tibetan", "Khmer", "Burmese"),
        "dot",
        "Greek",
    ],
)
def test_marks_of_any_script_are_no_letters_where_near_duplicates_are_sought(one: str, other: str) -> None:
    words, counts = word_hashes([one, other])
    assert counts[0] == counts[1]
    assert words[: counts[0]].tolist() == words[counts[0] :].tolist()


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("DER AUSSCHUSS TRAF SICH AM DIENSTAG, UM ÜBER DIE NEUE BRÜCKE ZU BERATEN.", "de"),
        ("THE COMMITTEE MET ON TUESDAY TO DISCUSS THE PLANS FOR THE BRIDGE.", "en"),
        ("КОМИТЕТ СОБРАЛСЯ ВО ВТОРНИК, ЧТОБЫ ОБСУДИТЬ ПЛАНЫ НОВОГО МОСТА.", "ru"),
        ("Der Ausschuss traf sich am Dienstag in der NATO und der EU.", "de"),
    ],
)
def test_a_text_in_capitals_has_the_language_that_it_is_written_in(text: str, language: str) -> None:
    found, score = identifier()(text)
    assert found == language
    assert score > 0.8


def judged(text: str, language: str) -> str | None:
    """What C4's rules on lines leave of a text."""
    pytest.importorskip("datatrove", reason="datatrove is not installed")
    rules = {"min_num_sentences": 0, "min_words_per_line": -1}
    documents, _ = run_operator({"quality": {"rules": ["c4"], "c4": rules, "language": language}}, [text])
    return documents[0].text if documents else None


@pytest.mark.parametrize(
    ("language", "line"),
    [
        ("en", "She said that the bridge was \u201cas good as new.\u201d"),
        ("de", "Sie sagte: \u201eDie Brücke ist so gut wie neu.\u201c"),
        ("fr", "Elle a dit : «\u00a0Le pont est comme neuf.\u00a0»"),
        ("ar", "متى ينتهي العمل على الجسر الجديد؟"),
        ("am", "ኮሚቴው ማክሰኞ ዕለት ስለ አዲሱ ድልድይ ዕቅድ ተወያየ።"),
    ],
)
def test_a_line_ends_with_the_marks_of_its_own_language(language: str, line: str) -> None:
    assert judged(f"{line}\n{line}", language) == f"{line}\n{line}"
    open_ended = line.rstrip(".።؟\u201c\u201d» \u00a0")
    assert judged(f"{line}\n{open_ended}", language) == line, "and one without is cut"


@pytest.mark.parametrize(
    ("language", "line"),
    [
        ("th", "คณะกรรมการประชุมเมื่อวันอังคารเพื่อหารือเกี่ยวกับแผนสะพานใหม่"),
        *((code, "委员会星期二开会讨论了新桥的计划，大家都同意了。") for code in ("zh", "zho", "chi", "cmn")),
        ("ja", "委員会は火曜日に新しい橋の計画について話し合いました。"),
    ],
)
def test_a_language_that_the_rules_cannot_judge_is_left_alone(language: str, line: str) -> None:
    text = f"{line}\n{line}"
    kept, _ = run_operator({"quality": {"language": language, "without_words": "keep"}}, [text * 8])
    found = tokenizer_of(language)
    assert [document.text for document in kept] == [text * 8] or found is not None
    assert found is None or max(map(len, found.word_tokenize(line))) < 10, "a sentence is no word"


# --- which rules are for whom ------------------------------------------------------------------------------------


def notes(*steps: Any, **source: Any) -> list[str]:
    given = {"sources": [{"name": "a", "kind": "jsonl", "glob": "a.jsonl", **source}], "steps": list(steps)}
    settings = Job.model_validate({"name": "x", "prepare": given}).prepare
    return language_notes(settings.steps, settings.sources)


def test_languages_that_a_step_drops_are_told_before_it_begins() -> None:
    assert notes({"language": {"keep": ["en", "de"], "min_score": 0}}) == [
        "step 1, language, drops documents in all languages but en, de"
    ]


@pytest.mark.parametrize(("action", "words"), [("keep", "leaves documents alone in"), ("drop", "drops documents in")])
def test_languages_whose_words_no_library_tells_apart_are_told_before_quality_begins(action: str, words: str) -> None:
    told = notes({"language": {"keep": ["en", "bo", "qu"]}}, {"quality": {"without_words": action}})
    assert [note for note in told if "quality" in note] == [
        f"step 2, quality, {words} bo, whose words no installed library tells apart"
    ]


def test_all_languages_without_words_are_told_where_any_may_come() -> None:
    (told,) = (note for note in notes("language", "quality") if "quality" in note)
    listed = told.removeprefix("step 2, quality, leaves documents alone in ").partition(", whose")[0].split(", ")
    assert set(listed) <= CODES
    assert {"bo"} <= set(listed)
    assert set(listed).isdisjoint({"en", "de", "fr", "ru", "ar", "fa"})
    sampled = sorted(CODES)[::20]
    assert [code for code in sampled if tokenizer_of(code) is None] == [code for code in sampled if code in listed]


def test_a_source_that_says_no_language_is_told_before_quality_takes_it_for_english() -> None:
    (told, *_) = notes("quality")
    assert told.startswith(
        "step 1, quality, judges documents of 'a' by the rules for 'en', as nothing says their language"
    )
    assert not any("by the rules" in note for note in notes("quality", meta=["language"]))
    assert not any("by the rules" in note for note in notes("language", "quality"))
    assert not any("by the rules" in note for note in notes("quality", kind="wikipedia"))


@pytest.mark.parametrize("step", ["toxicity", "fairness", "counterfactual"])
def test_lists_of_english_words_are_told_to_be_for_english(step: str) -> None:
    (told,) = notes(step)
    assert told.startswith(f"step 1, {step}, ")
    assert "English documents only" in told


def test_english_words_judge_no_other_language() -> None:
    rude = "fuck this fucking shit"
    assert not run_operator("toxicity", [rude])[0]
    kept, record = run_operator("toxicity", [Document("0", rude, "texts", {"language": "de"})])
    assert [document.text for document in kept] == [rude]
    assert record.tallies["not judged, for want of words"] == {"de": 1}


def test_a_dry_run_tells_of_languages_before_anything_is_spent(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "The cat sat on the mat."}\n')
    source = {"kind": "jsonl", "glob": str(tmp_path / "a.jsonl")}
    job = Job.model_validate({"name": "x", "prepare": {"sources": [source], "steps": [{"language": {"keep": ["en"]}}]}})
    (row,) = (words for name, words in prepare_rows(job) if name == "languages")
    assert row.startswith("step 1, language, drops documents in all languages but en, and documents whose language")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("联系我：zhang@例え.jpです", "zhang@例え.jp"),
        ("ईमेल: राम@डाटामेल.भारत है", "राम@डाटामेल.भारत"),
        ("foo＠example.com", "foo＠example.com"),
        ("bob@example.com:hunter2", "bob@example.com"),
        ("bob@example.com:12345", "bob@example.com"),
        ("write to bob@example.com:he answers", "bob@example.com"),
    ],
)
def test_a_mail_address_is_found_in_other_signs_and_before_a_password(text: str, address: str) -> None:
    assert [text[start:stop] for start, stop in emails(text)] == [address]


@pytest.mark.parametrize("text", ["git clone git@a.org:foo", "scp x bob@a.example.org:backup", "bob@a.org:src/x.c"])
def test_a_place_on_another_machine_is_no_mail_address(text: str) -> None:
    assert not list(emails(text))


@pytest.mark.parametrize("text", ["IP地址93.184.216.34在", "サーバー93.184.216.34です"])
def test_a_machine_is_found_beside_letters_without_spaces(text: str) -> None:
    assert [text[start:stop] for start, stop in ips(text)] == ["93.184.216.34"]


@pytest.mark.parametrize("text", ["版本8.12.22.33", "版本号：12.22.33.44", "バージョン8.12.22.33", "версия 8.12.22.33"])
def test_a_version_is_no_machine_in_any_language(text: str) -> None:
    assert not list(ips(text))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("座机010-62345678", "010-62345678"),
        ("电话（010）62345678", "（010）62345678"),
        ("ＴＥＬ：０３－１２３４－５６７８", "０３－１２３４－５６７８"),
        ("フリーダイヤル0120-123-456", "0120-123-456"),
        ("फ़ोन ९८७६५४३२१०", "९८७६५४३२१०"),
        ("هاتف: ٠١٠١٢٣٤٥٦٧٨", "٠١٠١٢٣٤٥٦٧٨"),
        ("تلفن: ۰۲۱-۱۲۳۴۵۶۷۸", "۰۲۱-۱۲۳۴۵۶۷۸"),
        ("โทร. 081-234-5678", "081-234-5678"),
        ("טל: 052-1234567", "052-1234567"),
        ("ফোন: 01712-345678", "01712-345678"),
        ("kom. 601 234 567", "601 234 567"),
        ("HP: 0812-3456-7890", "0812-3456-7890"),
        ("ĐT: 0912.345.678", "0912.345.678"),
        ("appelez le 06.12.34.56.78", "06.12.34.56.78"),
        ("Rufnummer: 030 1234567", "030 1234567"),
    ],
)
def test_a_number_in_any_digits_beside_more_words_for_phones(text: str, number: str) -> None:
    assert number in {text[start:stop] for start, stop in phones(text, (0, len(text)), [])}


@pytest.mark.parametrize(
    "text", ["טלוויזיה 1234567", "The HP 12345678 printer", "GSM 1800 1900", "２０２３－１２－２４"]
)
def test_what_only_looks_like_a_word_for_phones_is_none(text: str) -> None:
    assert not list(phones(text, (0, len(text)), []))


@pytest.mark.parametrize(
    ("given", "language"),
    [
        *(
            ("English (US)", "en"),
            ("en;q=0.9", "en"),
            ("pt_BR.UTF-8", "pt"),
            ("['en']", "en"),
            ("jp", "ja"),
            ("cz", "cs"),
        ),
        *(("gr", "el"), ("ua", "uk"), ("cmn", "zh"), ("cmn_Hans", "zh"), ("arb_Arab", "ar"), ("日本語", "ja")),
        *(("Deutsch", "de"), ("Chinese (Simplified)", "zh"), ("yue", "yue"), ("sr-Latn", "sr"), ("en/de", "en")),
        *(("None", None), ("und", None), ("xx", None), ("mul", None), ("code", None)),
    ],
)
def test_a_language_is_known_however_a_table_spells_it(given: str, language: str | None) -> None:
    assert language_tag(given) == language


@pytest.mark.parametrize("gap", ["\u2009", "\u2007", "\u2010", "\u2011", "\u2013", ""])
def test_account_and_card_numbers_are_found_between_letters_and_with_any_gap(gap: str) -> None:
    account, card = gap.join(["DE89", "3704", "0044", "0532", "0130", "00"]), gap.join(["4111", "1111", "1111", "1111"])
    text = f"账号{account}谢谢，卡号{card}。"
    assert found(text, ibans(text, (0, len(text)))) == [account]
    assert found(text, cards(text, (0, len(text)))) == [card]
