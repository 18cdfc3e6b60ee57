"""What a chat remembers, and its files."""

from __future__ import annotations

import json

import pytest

from fastchat_serve.commands.chat.conversation import Conversation, ConversationError, Exchange, load

TALK = Conversation("Be brief.", [Exchange("Hi", "Yo"), Exchange("你好?", "Half an ans", stopped=True)])
FASTCHAT = {
    "template_name": "vicuna_v1.1",
    "system_message": "A chat.",
    "roles": ["USER", "ASSISTANT"],
    "messages": [["USER", "example"], ["ASSISTANT", "given"], ["USER", "Hi"], ["ASSISTANT", "Yo"]],
    "offset": 2,
}


def test_a_question_is_sent_with_all_that_went_before():
    messages = TALK.ask("And now?", TALK.exchanges)
    assert [(message.role, message.content) for message in messages] == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Yo"),
        ("user", "你好?"),
        ("assistant", "Half an ans"),
        ("user", "And now?"),
    ]


def test_a_saved_conversation_is_the_same_when_loaded(tmp_path):
    file = tmp_path / "talk.json"
    TALK.save(file, "demo")
    assert load(file) == TALK
    Conversation().save(file, "demo")  # saving again replaces it
    assert load(file) == Conversation()


def test_a_file_that_is_something_else_is_not_overwritten(tmp_path):
    file = tmp_path / "precious.json"
    file.write_text('{"name": "precious"}')
    with pytest.raises(ConversationError, match="is no saved conversation"):
        TALK.save(file, "demo")
    assert file.read_text() == '{"name": "precious"}'


def test_a_file_in_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConversationError, match="No such file or directory"):
        TALK.save(tmp_path / "nowhere" / "talk.json", "demo")


def test_files_of_fastchat_are_understood_without_their_examples(tmp_path):
    file = tmp_path / "old.json"
    file.write_text(json.dumps(FASTCHAT))
    assert load(file) == Conversation("A chat.", [Exchange("Hi", "Yo")])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "\udcff",
        '{"model": "x", "messages": [{"role": "user", "content": "unanswered"}]}',
        '{"model": "x", "messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}',
        '{"model": "x", "messages": [{"role": "tool", "content": "a"}]}',
        '{"model": "x", "messages": [{"role": "user", "content": null}, {"role": "assistant", "content": "b"}]}',
        '{"roles": ["USER"], "messages": []}',
        "[" * 100_000,
    ],
)
def test_what_is_no_conversation_is_refused(tmp_path, text):
    file = tmp_path / "talk.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConversationError, match="is no saved conversation"):
        load(file)
