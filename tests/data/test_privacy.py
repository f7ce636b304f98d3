from __future__ import annotations

from typing import Any

import pydicom
import pytest

from meddet_yolo.data.privacy import identity_words


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
        ({"PatientName": "", "PatientID": "12"}, set()),
        ({}, set()),
    ],
)
def test_every_attribute_that_names_the_patient_gives_its_words(values: dict[str, Any], words: set[str]) -> None:
    assert identity_words(header(**values)) == words
