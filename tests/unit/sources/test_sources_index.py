"""What pip's settings, an index's pages and version numbers mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oprel.errors import SourceError
from oprel.sources.pip_settings import DEFAULT_INDEX, PipSettings, parse_pip_config, read_pip_settings
from oprel.sources.simple_index import WheelFile, choose_wheel, parse_page
from oprel.sources.versions import is_prerelease, version_key

BASE = "https://index.example/simple/my-model/"
NAME = "my_model-1.0-py3-none-any.whl"


def test_without_settings_there_is_the_public_index() -> None:
    assert parse_pip_config("") == PipSettings(indexes=(DEFAULT_INDEX,))


def test_all_that_pip_tells_is_understood() -> None:
    settings = parse_pip_config(
        "\n".join(
            [
                ":env:.disable-pip-version-check='1'",
                "global.cert='~/ca.pem'",
                "global.extra-index-url='https://me:s%40cret@b.example/simple\\nfile:///opt/simple'",
                "global.find-links='/opt/wheels https://c.example/links.html'",
                "global.index-url='https://a.example/simple'",
                "install.index-url='https://a2.example:8443/simple'",
                ":env:.proxy='http://proxy.example:3128'",
                "wheel.index-url='https://never.example'",
                "rubbish",
                "global.broken='",
            ]
        )
    )
    assert settings.indexes == (
        "https://a2.example:8443/simple",
        "https://b.example/simple",
        "file:///opt/simple",
    )
    assert settings.find_links == ("/opt/wheels", "https://c.example/links.html")
    assert settings.ca_file == Path("~/ca.pem").expanduser()
    assert settings.proxy == "http://proxy.example:3128"
    assert settings.credentials("https://b.example:443", "b.example") == ("me", "s@cret")
    assert settings.credentials("https://b.example:444", "b.example") is None
    assert settings.credentials("http://b.example:80", "b.example") is None
    assert settings.trusted_origins == {
        "https://a2.example:8443",
        "https://b.example:443",
        "https://c.example:443",
    }
    assert "cret" not in repr((settings.indexes, settings.find_links))


def test_the_environment_beats_the_files_and_no_index_means_none() -> None:
    settings = parse_pip_config(":env:.index-url='https://e.example'\nglobal.index-url='https://g.example'")
    assert settings.indexes == ("https://e.example",)
    assert parse_pip_config(":env:.no-index='true'\nglobal.find-links='/w'").indexes == ()


def test_an_index_that_is_no_url_is_told_without_its_password() -> None:
    with pytest.raises(SourceError) as failure:
        parse_pip_config("global.index-url='https://me:secret@h:port/simple'")
    assert "secret" not in failure.value.message


def test_netrc_is_asked_for_its_hosts_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "netrc"
    path.write_text("machine a.example login me password pw\ndefault login all password pw\n")
    path.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    path.rename(tmp_path / ".netrc")
    settings = PipSettings(indexes=("http://a.example/simple",))
    assert settings.credentials("https://a.example:443", "a.example") == ("me", "pw")
    assert settings.credentials("http://a.example:80", "a.example") == ("me", "pw")  # the user configured it so
    assert settings.credentials("http://a.example:81", "a.example") is None
    assert settings.credentials("https://b.example:443", "b.example") is None


def test_an_environment_without_pip_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.setattr("oprel.sources.pip_settings.importlib.util.find_spec", lambda name: None)
    with pytest.raises(SourceError, match="ensurepip"):
        asyncio.run(read_pip_settings())


@pytest.mark.parametrize(
    "versions",
    [
        [
            "1.0.dev1",
            "1.0a1.dev2",
            "1.0a1",
            "1.0a2",
            "1.0b1",
            "1.0rc1",
            "1.0",
            "1.0.post1",
            "1.1",
            "1.10",
            "2",
            "1!0.1",
        ],
        ["0.9", "1.0", "1.0+local", "1.0-1", "1.0.post2"],
    ],
)
def test_versions_sort_as_they_are_meant(versions: list[str]) -> None:
    keys = [version_key(version) for version in versions]
    assert None not in keys
    assert keys == sorted(keys, key=lambda key: key or ())
    assert len(set(keys)) == len(keys)


def test_equal_versions_are_equal() -> None:
    assert version_key("v1.0") == version_key("1.0.0") == version_key(" 1 ")
    assert version_key("1.0-alpha.1") == version_key("1.0a1")
    assert version_key("not a version") is None
    assert version_key("1." * 5000 + "1") is None


@given(st.text(max_size=60))
def test_any_text_is_a_version_or_not(text: str) -> None:
    key = version_key(text)
    if key is not None:
        is_prerelease(key)
        assert key == version_key(text.upper())


def file(version: str, **more: object) -> WheelFile:
    return WheelFile(filename=f"x-{version}", version=version, **more)  # type: ignore[arg-type]


def test_the_wheel_that_is_chosen() -> None:
    files = [file("1.0"), file("2.0", is_yanked=True), file("3.0rc1"), file("1.5", is_universal=True), file("1.5")]
    assert choose_wheel(files, version=None) == file("1.5", is_universal=True)
    assert choose_wheel(files, version="2.0") == file("2.0", is_yanked=True)
    assert choose_wheel(files, version="3.0.0rc1") == file("3.0rc1")
    assert choose_wheel(files, version="4") is None
    assert choose_wheel([file("3.0rc1")], version=None) == file("3.0rc1")
    assert choose_wheel([file("1.0", is_yanked=True)], version=None) is None
    assert choose_wheel([], version=None) is None


def page_of(**entry: object) -> bytes:
    return json.dumps({"files": [{"filename": NAME, "url": "a/b.whl", **entry}]}).encode()


def test_a_json_page() -> None:
    (wheel,) = parse_page(page_of(hashes={"sha256": "a" * 64}, size=5, yanked="why"), BASE, "my-model")
    assert wheel == WheelFile(
        filename=NAME,
        version="1.0",
        url=BASE + "a/b.whl",
        sha256="a" * 64,
        size_bytes=5,
        is_yanked=True,
        is_universal=True,
    )


@pytest.mark.parametrize(
    "entry",
    [{"hashes": {"sha256": "A" * 64}}, {"hashes": {"sha256": 7}}, {"hashes": 3}, {"hashes": {"md5": "x"}}, {}],
)
def test_hashes_that_are_none(entry: dict[str, object]) -> None:
    (wheel,) = parse_page(page_of(**entry), BASE, "my-model")
    assert wheel.sha256 is None


@pytest.mark.parametrize("size", [-1, True, "5", 1.5, None])
def test_sizes_that_are_none(size: object) -> None:
    (wheel,) = parse_page(page_of(size=size), BASE, "my-model")
    assert wheel.size_bytes is None


def test_an_html_page() -> None:
    page = f"""<!DOCTYPE html><html><head><base href="ignored"></head><body>
    <a href="../../f/{NAME}#sha256={"b" * 64}" data-yanked="">{NAME}</a>
    <a href="https://cdn.example/my_model-2.0%2Bcu1-py3-none-any.whl#md5=1">x</a>
    <a href="my-model-1.0.tar.gz">no wheel</a>
    <a href="other-1.0-py3-none-any.whl">another package</a>
    <a href="file:///etc/my_model-3.0-py3-none-any.whl">of this machine</a>
    <a name="x">no link</a>"""
    first, second = parse_page(page.encode(), BASE, "my-model")
    assert (first.url, first.sha256, first.is_yanked) == (f"https://index.example/f/{NAME}", "b" * 64, True)
    assert (second.version, second.sha256, second.is_yanked) == ("2.0+cu1", None, False)


@pytest.mark.parametrize(
    "page",
    [b"{", b"{}", b'{"files": 3}', b'{"files": [1, {}, {"filename": 4}]}', b"", b"\xff\xfe", b"{" + b"[" * 100_000],
)
def test_a_page_of_rubbish_has_no_wheels(page: bytes) -> None:
    try:
        assert parse_page(page, BASE, "my-model") == []
    except SourceError as failure:
        assert "can't be read" in failure.message


@given(st.binary(max_size=300))
def test_any_page_is_read_or_refused(page: bytes) -> None:
    for data in (page, b"{" + page, b"<a href='" + page + b"'>"):
        try:
            parse_page(data, BASE, "my-model")
        except SourceError:
            continue
