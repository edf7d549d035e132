"""The chat page is whole, loads nothing from elsewhere, and never turns text into markup."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

FILES = {"/": "text/html", "/page/chat.css": "text/css", "/page/chat.js": "text/javascript"}


@pytest.fixture(scope="module")
def page(service):
    with service.http as http:
        answers = {path: http.get(path) for path in FILES}
    assert all(answer.status_code == 200 for answer in answers.values())
    return answers


def test_files_and_headers(page):
    for path, kind in FILES.items():
        assert page[path].headers["content-type"].startswith(kind)
        assert page[path].headers["x-content-type-options"] == "nosniff"
    policy = page["/"].headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy


def test_what_the_page_names_is_there(page, service):
    names = re.findall(r'(?:src|href)="(?!data:)([^"]+)"', page["/"].text)
    assert set(names) == {"page/chat.css", "page/chat.js"}
    script = page["/page/chat.js"].text
    ids = set(re.findall(r'id="([\w-]+)"', page["/"].text))
    assert set(re.findall(r'\$\("([\w-]+)"\)', script)) <= ids
    with service.http as http:
        for path in re.findall(r'fetch\("([^"]+)"', script):
            assert http.get("/" + path).status_code in (200, 405)


def test_nothing_inline_and_nothing_from_elsewhere(page):
    html, script, style = (page[path].text for path in ("/", "/page/chat.js", "/page/chat.css"))
    # The policy would block these; a page that needs them would be broken.
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on\w+=", html)
    assert not re.search(r"https?://", (html + script + style).replace("xmlns='http://www.w3.org/2000/svg'", ""))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)


def test_both_languages_say_everything(page):
    script, html = page["/page/chat.js"].text, page["/"].text
    spoken = {}
    for language in ("en", "zh"):
        block = re.search(rf"^  {language}: \{{\n(.*?)^  \}},", script, re.M | re.S).group(1)
        spoken[language] = set(re.findall(r"(?:^\s+|, )(\w+): ", block, re.M))
    assert spoken["en"] == spoken["zh"]
    used = set(re.findall(r"words\.(\w+)", script)) | set(re.findall(r'data-(?:text|placeholder)="(\w+)"', html))
    assert used == spoken["en"]


def test_script_is_javascript(page, tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    file = tmp_path / "chat.mjs"
    file.write_text(page["/page/chat.js"].text, encoding="utf-8")
    done = subprocess.run([node, "--check", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", ["/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page/", "/page/x"])
def test_no_other_file_is_served(service, path):
    with service.http as http:
        assert http.get(path).status_code == 404
