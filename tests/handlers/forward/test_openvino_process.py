"""What OpenVINO does to the process that loads it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import HOME

TWO_CONVERTERS = """
import gc, signal, sys
from pathlib import Path
import torch
from handlers.forward.conversions import Converter
from handlers.forward.weights import Weights

runs = []
for folder in ("first", "second"):
    layer, converter = torch.nn.Linear(4, 4), Converter(1, "float32", Path(sys.argv[1], folder))
    runs.append(converter.compile(layer, Weights(layer), "", [torch.randn(1, 4)]))
del converter
while runs:
    del runs[0]
    gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
signal.raise_signal(signal.SIGUSR1)
"""


def test_it_reports_its_use_to_nobody() -> None:
    code = (
        "import sys; from pathlib import Path; from handlers.forward.conversions import Converter;"
        "Converter(1, 'auto', Path('x')); import openvino.tools.ovc as ovc; print(type(ovc.telemetry).__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "openvino.tools.ovc.telemetry_stub"


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_a_signal_is_handled_after_converters_have_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO_CONVERTERS, str(tmp_path)]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=True)
    assert done.stdout == "handled\n"
