"""Small videos of what the policy saw, playable in any browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np

VIEW_SIZE = 192
"""Pixels to which small pictures are enlarged: what the policy sees is not what a person can see."""


def write_video(path: str | Path, frames: np.ndarray, fps: float) -> Path:
    """Write an H.264 video (yuv420p, index at the front).

    Args:
        path: ``.mp4``; its folder is made.
        frames: (N, h, w, 3) uint8, RGB; enlarged by a whole factor to about `VIEW_SIZE` where smaller.
        fps: Frames per second.

    Raises:
        ValueError: For anything but a stack of RGB pictures.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"a video needs (N, h, w, 3) uint8 frames, got {frames.shape} {frames.dtype}")
    import av

    factor = max(1, round(VIEW_SIZE / frames.shape[1]))
    # The codec stores colour for blocks of 2 x 2 pixels and refuses odd sizes.
    height, width = (side * factor // 2 * 2 for side in frames.shape[1:3])
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=max(1, round(fps)))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "23", "preset": "veryfast"}
        for picture in frames:
            large = picture.repeat(factor, axis=0).repeat(factor, axis=1)[:height, :width]
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(large), format="rgb24"))
            )
        container.mux(stream.encode())
    return path
