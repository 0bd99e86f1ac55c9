import subprocess
import sys

import pytest

from proxy.settings import Settings, SettingsError
from tests.support.paths import HOME


def test_settings_come_from_the_environment() -> None:
    settings = Settings.from_environment(
        {"SD_PORT": "80", "SD_FAILURES_AS_200": "yes", "SD_DEADLINE_S": "1.5", "PATH": "x"}
    )
    assert (settings.port, settings.failures_as_200, settings.deadline_s) == (80, True, 1.5)
    assert settings.archive_of_task() == {"txt2img": "txt2img", "img2img": "img2img", "masking": "masking"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SD_PORT", "http"),
        ("SD_FAILURES_AS_200", "maybe"),
        ("SD_LOG_LEVEL", "loud"),
        ("SD_DEADLINE_S", "nan"),
        ("SD_PORT", "-1"),
        ("SD_ARCHIVES", "txt2img"),
        ("SD_ARCHIVES", "txt2img=a,img2img=b"),
        ("SD_NODE", "node_1"),
    ],
)
def test_a_setting_of_the_wrong_form_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings.from_environment({name: value})


def test_the_proxy_imports_no_torch_and_of_the_handlers_what_both_read() -> None:
    script = "import sys, proxy.app, proxy.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=HOME, check=True)
    modules = set(done.stdout.split())
    assert not modules & {"torch", "diffusers", "transformers", "numpy", "PIL"}
    assert {name for name in modules if name.startswith("handlers.")} == {
        "handlers.wire", "handlers.errors", "handlers.catalogue",
    }  # fmt: skip
