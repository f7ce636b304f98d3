from __future__ import annotations

import unicodedata
from typing import Any

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddet_yolo.imaging.privacy import identity_words, public_name, redact


def header(**values: Any) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"OtherPatientIDs": "ALIAS-0815"}, {"alias-0815"}),
        ({"OtherPatientIDs": ["ALIAS-0815", "ALIAS-4711"]}, {"alias-0815", "alias-4711"}),
        ({"OtherPatientNames": ["Doe^Jane", "Roe^Joan"]}, {"doe", "jane", "roe", "joan"}),
        (
            {"OtherPatientIDsSequence": [header(PatientID="ALIAS-0815"), header(PatientID="B-99 1")]},
            {"alias-0815", "b-99 1"},
        ),
        ({"PatientName": "Leutheusser-Doe^Anna Maria"}, {"leutheusser", "doe", "anna", "maria"}),
        ({"ResponsiblePerson": "Doe^Mother"}, {"doe", "mother"}),
        ({"PatientBirthDate": "20010203"}, {"20010203"}),
        ({"PatientName": "", "PatientID": "12"}, set()),
        ({}, set()),
    ],
)
def test_every_attribute_that_names_the_patient_gives_its_words(values: dict[str, Any], words: set[str]) -> None:
    assert identity_words(header(**values)) == words


@pytest.mark.parametrize("written", ["2001.02.03", "2001-02-03", "03.02.2001", "03022001"])
def test_a_birth_date_that_is_oddly_written_is_the_same_day(written: str) -> None:
    assert identity_words({"PatientBirthDate": written}) == {"20010203"}


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("müller", "MÜLLER_t2.dcm"),
        ("müller", "Mueller_t2.dcm"),
        ("müller", "Muller_t2.dcm"),
        ("mueller", "Müller_t2.dcm"),
        ("mueller", "Muller_t2.dcm"),
        ("muller", "Mueller_t2.dcm"),
        ("strauß", "STRAUSS_t2.dcm"),
        ("strauss", "Strauß_t2.dcm"),
        ("søren", "Soeren_t2.dcm"),
        ("sørensen", "SORENSEN_t2.dcm"),
        ("håkon", "Haakon_t2.dcm"),
        ("łukasz", "Lukasz_t2.dcm"),
        ("garcía", "garcia_t2.dcm"),
        ("o'brien", "OBrien_t2.dcm"),
        ("obrien", "O'Brien_t2.dcm"),
        ("ﾔﾏﾀﾞ", "ヤマダ_t2.dcm"),
        ("4711-a", "4711A_t2.dcm"),
        ("a/4711", "a_4711_t2.dcm"),
        ("李", "李小明_t2.dcm"),
    ],
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_is_masked_however_it_is_written(word: str, text: str, form: Any) -> None:
    for one in (word, unicodedata.normalize("NFD", word)):
        shown = redact(unicodedata.normalize(form, text), [one])
        assert shown in {"***_t2.dcm", unicodedata.normalize(form, "***小明_t2.dcm")}


@pytest.mark.parametrize(
    "day",
    [
        *("20010203", "2001-02-03", "2001_02_03", "2001.2.3", "2001/02/03", "010203", "01-02-03"),
        *("03022001", "03.02.2001", "3.2.2001", "03-02-2001", "030201", "03.02.01", "3.2.01"),
        *("02032001", "02/03/2001"),
    ],
)
def test_a_birth_date_is_masked_in_any_order(day: str) -> None:
    words = identity_words({"PatientBirthDate": "20010203"})
    assert redact(f"t2 {day} IM1.dcm", words) == "t2 *** IM1.dcm"
    assert redact(f"t2_{day}_IM1.dcm", words) == "t2_***_IM1.dcm"


@pytest.mark.parametrize("text", ["20010204", "2001-03-04", "1.2.840.2001.2.31.4", "10302019", "IM0203", "IM201.dcm"])
def test_other_numbers_are_no_birth_date(text: str) -> None:
    assert redact(text, ["20010203"]) == text


@pytest.mark.parametrize(("word", "text"), [("doe", "dose do.dcm"), ("li", "line.dcm"), ("muster", "master.dcm")])
def test_what_is_no_name_is_kept(word: str, text: str) -> None:
    assert redact(text, [word]) == text


def test_names_that_overlap_leave_nothing() -> None:
    assert redact("annaeva.dcm", ["anna", "eva"]) in {"***.dcm", "******.dcm"}
    assert redact("ÄÖ — ünknown ﬁle", ["nobody"]) == "ÄÖ — ünknown ﬁle"  # what is not masked is kept to the letter


@given(
    st.text("abcdeghkmnorstuäöüßéøåłñç", min_size=4, max_size=9),
    st.text("xyz_0 .é", max_size=6),
    st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]),
    st.booleans(),
)
def test_any_name_is_masked_in_any_encoding(name: str, around: str, form: Any, upper: bool) -> None:
    words = identity_words({"PatientName": name})
    written = unicodedata.normalize(form, name.upper() if upper else name)
    left, right = f"{around}-", f"-{around}"
    assert redact(f"{left}{written}{right}", words) == f"{left}***{right}"
    assert public_name(f"{left}{written}{right}", words).startswith("image-")
