"""The lock holds every pin once, by hash, and names no place to fetch from."""

from __future__ import annotations

import re
import runpy

from doc_pages import ROOT

PIN = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[\w.+]+)", re.MULTILINE)


def pins(name: str) -> dict[str, str]:
    return dict(PIN.findall((ROOT / "requirements" / name).read_text(encoding="utf-8")))


def test_every_pin_is_locked_and_nothing_else() -> None:
    assert pins("dev.lock") == {**pins("base.txt"), **pins("dev.txt")}
    assert len(pins("dev.lock")) > 50


def test_every_package_has_hashes() -> None:
    text = (ROOT / "requirements" / "dev.lock").read_text(encoding="utf-8")
    for entry in re.split(r"\n(?=\S)", text.strip()):
        head, *hashes = (line.strip(" \\") for line in entry.splitlines())
        assert PIN.fullmatch(head), head
        assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes), head


def test_a_lock_is_made_of_what_pip_reports() -> None:
    def package(name: str, version: str, digest: str) -> dict[str, object]:
        info = {"url": "https://host.example/x.whl", "archive_info": {"hashes": {"sha256": digest}}}
        return {"metadata": {"name": name, "version": version}, "download_info": info}

    report = {"install": [package("Torch", "2.0+cpu", "b" * 64), package("attrs", "1.0", "a" * 64)]}
    text = runpy.run_path(str(ROOT / "tools" / "lock.py"))["make_lock"](report)
    assert text == f"attrs==1.0 \\\n    --hash=sha256:{'a' * 64}\ntorch==2.0 \\\n    --hash=sha256:{'b' * 64}\n"


def test_what_fetches_packages_in_the_locked_set_up_asks_for_hashes() -> None:
    assert "FROM_LOCK := --no-deps --require-hashes -r requirements/dev.lock" in (ROOT / "Makefile").read_text()
    assert "make LOCKED=1 .venv/.dev" in (ROOT / ".ci" / "run").read_text()
