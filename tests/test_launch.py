"""What `lerobot-train` says when it is started by a verb."""

import sys

import pytest
from lerobot.utils.import_utils import get_safe_default_video_backend

from lerobot_policy_vita_vla.training.launch import default_decoder_unmentioned


@pytest.mark.parametrize("arguments", [["--dataset.video_backend=pyav"], ["--steps=1"]])
def test_a_default_decoder_that_nobody_uses_is_not_reported(monkeypatch, caplog, arguments):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with default_decoder_unmentioned(arguments):
        assert get_safe_default_video_backend() == "pyav"
    reported = "torchcodec" in caplog.text
    assert reported == ("video_backend" not in arguments[0])
    get_safe_default_video_backend()
    assert "torchcodec" in caplog.text
