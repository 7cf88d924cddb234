"""What is written as text is read by protobuf as the same values."""

import pytest
from google.protobuf import descriptor_pb2, struct_pb2, text_format
from hypothesis import given
from hypothesis import strategies as st

from deploy.exports.prototext import Word, render_message


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives(text: str) -> None:
    written = render_message({"string_value": text})
    assert text_format.Parse(written, struct_pb2.Value()).string_value == text
    assert written.count("\n") == 1


def test_messages_lists_words_and_booleans_are_told_apart() -> None:
    written = render_message(
        {
            "name": "x",
            "field": [
                {"name": "a", "number": 1, "label": Word("LABEL_REPEATED")},
                {"name": "b", "options": {"deprecated": True}},
            ],
            "reserved_name": ["p", "q"],
        }
    )
    message = text_format.Parse(written, descriptor_pb2.DescriptorProto())
    assert [field.name for field in message.field] == ["a", "b"]
    assert message.field[0].label == descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    assert message.field[1].options.deprecated
    assert list(message.reserved_name) == ["p", "q"]


@pytest.mark.parametrize("empty", [[], {}])
def test_an_empty_list_leaves_no_trace_and_an_empty_message_does(empty: object) -> None:
    written = render_message({"options": empty})
    message = text_format.Parse(written, descriptor_pb2.DescriptorProto())
    assert message.HasField("options") == (empty == {})
