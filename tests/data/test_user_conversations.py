from __future__ import annotations

import json
from pathlib import Path

import pytest

from etymon.data import ConversationFiles, Counts, read_conversations
from etymon.errors import DataError

USER, REPLY = {"role": "user", "content": "你好"}, {"role": "assistant", "content": "Hello 👋"}
SYSTEM = {"role": "system", "content": "s"}
SHAREGPT = [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "Hello 👋"}]


def write(path: Path, rows: list[object]) -> Path:
    lines = json.dumps(rows) if path.suffix == ".json" else "\n".join(json.dumps(row) for row in rows)
    path.write_text(lines, encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [USER, REPLY]}, [USER, REPLY]),
        ({"messages": [SYSTEM, USER, REPLY], "x": 1}, [SYSTEM, USER, REPLY]),
        ({"conversations": SHAREGPT}, [USER, REPLY]),
        ({"conversations": SHAREGPT, "system": "s"}, [SYSTEM, USER, REPLY]),
        ({"conversations": [USER, REPLY]}, [USER, REPLY]),
        ({"instruction": "你好", "input": "", "output": "Hello 👋"}, [USER, REPLY]),
        ({"instruction": "你好", "output": "Hello 👋"}, [USER, REPLY]),
        (
            {"instruction": "a", "input": "b", "output": "c"},
            [{"role": "user", "content": "a\n\nb"}, {"role": "assistant", "content": "c"}],
        ),
        (
            {"instruction": "again", "output": "yes", "history": [["你好", "Hello 👋"]]},
            [USER, REPLY, {"role": "user", "content": "again"}, {"role": "assistant", "content": "yes"}],
        ),
    ],
)
def test_forms(tmp_path: Path, row: dict, expected: list, suffix: str) -> None:
    (conversation,) = read_conversations([ConversationFiles(path=str(write(tmp_path / f"a.{suffix}", [row])))])
    assert conversation.messages == expected
    assert conversation.prompt == expected[:-1]
    assert (conversation.kind, conversation.answer) == ("user", None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "is not a list of messages"),
        ({"messages": "hello"}, "is not a list of messages"),
        ({"messages": [USER]}, "ends with the user's message"),
        ({"messages": [USER, {"role": "assistant"}]}, r"messages\[1\] lacks `role` or `content`"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, r"messages\[1\]\.content is a NoneType"),
        ({"messages": [{"role": "narrator", "content": ""}, REPLY]}, "has the role 'narrator'; expected one of"),
        ({"messages": [{"role": ["user"], "content": ""}, REPLY]}, "has the role"),
        ({"messages": [USER, {"role": "assistant", "content": "\ud800"}]}, "half of a surrogate pair"),
        ({"messages": [USER, {**REPLY, "tool_calls": [{}]}]}, r"messages\[1\] has `tool_calls`"),
        ({"conversations": [{"from": "human", "value": 3}]}, r"conversations\[0\]\.value is a int"),
        ({"instruction": "a", "output": 3}, "output is a int"),
        ({"instruction": "a", "output": "b", "history": ["x"]}, "`history` is not a list of"),
        ({"prompt": "a"}, "is no conversation: its fields are 'prompt'"),
        (["a"], "is a JSON list"),
    ],
)
def test_bad_rows_are_named_or_counted(tmp_path: Path, row: object, message: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"messages": [USER, REPLY]}, row])
    with pytest.raises(DataError, match=message) as caught:
        list(read_conversations([path]))
    assert f"{path}:2" in str(caught.value)
    counts = Counts()
    assert len(list(read_conversations([ConversationFiles(path=str(path), errors="skip")], counts))) == 1
    assert counts.examples["not_a_conversation"] == [f"{path}:2"]


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"a": 1}])
    with pytest.raises(DataError, match=r"holds no conversations \(1 rows were skipped"):
        list(read_conversations([ConversationFiles(path=str(path), errors="skip")]))
    with pytest.raises(DataError, match="no file or folder"):
        list(read_conversations([tmp_path / "absent.jsonl"]))


def test_split_is_by_content(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": str(i)}, REPLY]} for i in range(1000)]
    splits = []
    for order in (rows, rows[::-1]):
        source = ConversationFiles(path=str(write(tmp_path / "a.jsonl", order)), held_out=0.1)
        splits.append({c.messages[0]["content"]: c.split for c in read_conversations([source])})
    assert splits[0] == splits[1]
    assert 60 < list(splits[0].values()).count("held_out") < 140
