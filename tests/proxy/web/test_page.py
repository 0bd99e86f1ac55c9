"""The page's files: who may have them, and what a browser may do with them."""

import re

import pytest

from handlers.request.samplers import NAMES
from proxy.web.page import FOLDER, TYPES
from tests.support.torchserve import RESULT, client, serving

pytestmark = pytest.mark.anyio

DOCUMENTS = {"/": "index.html", "/docs": "docs.html"}
FILES = [file for file in FOLDER.iterdir() if file.suffix in TYPES]


async def test_the_page_opens_without_the_key_and_under_it() -> None:
    async with client(serving(RESULT), api_key="secret") as http:
        for prefix in ("", "/k/secret", "/k/wrong"):
            for path, file in DOCUMENTS.items():
                answer = await http.get(prefix + path)
                assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
                assert answer.text == (FOLDER / file).read_text(encoding="utf-8")
        assert (await http.get("/models")).status_code == 401
        # where the page's relative addresses would lead astray
        answer = await http.get("/k/a%3Ab")
        assert (answer.status_code, answer.headers["location"]) == (307, "a%3Ab/")


async def test_the_page_consists_of_its_own_files_alone() -> None:
    async with client(serving(RESULT)) as http:
        for file in FILES:
            answer = await http.get(f"/static/{file.name}")
            assert answer.status_code == 200 and answer.content == file.read_bytes()
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
            assert "unsafe" not in policy and answer.headers["x-content-type-options"] == "nosniff"
        for name in ("page.py", "__init__.py", "..%2fapp.py", "%2e%2e%2fapp.py", "none.js", "..%5capp.py", "%00"):
            answer = await http.get(f"/static/{name}")
            assert answer.status_code == 404 and answer.json()["status"] == "failure"


@pytest.mark.parametrize("file", sorted(DOCUMENTS.values()))
def test_a_document_has_no_script_or_style_inside_and_relative_addresses(file: str) -> None:
    text = (FOLDER / file).read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:", text)
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert addresses and not [address for address in addresses if address.startswith(("/", "http"))]


def test_it_is_small() -> None:
    # the API's description is /docs' alone
    assert sum(file.stat().st_size for file in FILES if file.name != "openapi.json") < 80_000


def test_the_page_reads_the_samplers_that_the_files_name() -> None:
    script = (FOLDER / "parameters.js").read_text(encoding="utf-8")
    table = script[script.index("SAMPLERS = {") : script.index("};")]
    read = {name.strip('"'): scheduler for name, scheduler in re.findall(r'("[^"]+"|\w+): "(\w+)"', table)}
    assert read == {name: NAMES[name].kind for name in read}
