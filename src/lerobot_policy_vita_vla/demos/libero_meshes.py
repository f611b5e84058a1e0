"""Thinner visual meshes in a compiled MuJoCo model, for software rendering.

A LIBERO scene has 200 000 to 270 000 triangles, most of them the robot's, and software renderers pay for
each. Only meshes without any part in physics are touched, inside the compiled model, before anything is
drawn; what the simulator computes stays bit by bit the same (a test compares).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import mujoco
import numpy as np

KEPT_FACES = 1500
"""Our choice: a mesh is not thinned below this many faces; smaller ones are left alone."""

CREASE = 0.7
"""Our choice: corners whose face turns away from the mean normal by more than 45 degrees keep their edge."""

VERSION = 1
"""Part of the cache's key: raise it when thinning gives something else."""


class Mesh(NamedTuple):
    """Faces index vertices, normals and texture coordinates separately, as MuJoCo does."""

    vertices: np.ndarray
    """(V, 3)"""
    faces: np.ndarray
    """(F, 3)"""
    normals: np.ndarray
    """(N, 3)"""
    face_normals: np.ndarray
    """(F, 3)"""
    texture: np.ndarray | None
    """(V, 2), indexed by ``faces``; None without texture coordinates."""


def visual_meshes(model: mujoco.MjModel) -> list[int]:
    """Meshes that are only looked at: no geom that uses them collides or has mass."""
    seen: dict[int, bool] = {}
    for geom in range(model.ngeom):
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
            collides = model.geom_contype[geom] or model.geom_conaffinity[geom] or model.geom_group[geom] == 0
            mesh = int(model.geom_dataid[geom])
            seen[mesh] = seen.get(mesh, True) and not collides
    return [mesh for mesh, only_seen in seen.items() if only_seen]


def thin_visual_meshes(model: mujoco.MjModel, keep: float, cache: Path | None = None) -> tuple[int, int]:
    """Thin every visual mesh of a model in place.

    Args:
        model: Changed; drawing contexts that exist already do not notice.
        keep: Fraction of faces to keep, 0..1.
        cache: Folder in which results are kept between processes.

    Returns:
        Faces of visual meshes before and after.
    """
    before = after = 0
    for mesh in visual_meshes(model):
        count = int(model.mesh_facenum[mesh])
        before += count
        if count > KEPT_FACES / keep and (thin := _cached(model, mesh, keep, cache)) is not None:
            _put(model, mesh, thin)
        after += int(model.mesh_facenum[mesh])
    return before, after


def _get(
    model: mujoco.MjModel, mesh: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    vertex, face = int(model.mesh_vertadr[mesh]), int(model.mesh_faceadr[mesh])
    faces = slice(face, face + int(model.mesh_facenum[mesh]))
    vertices = model.mesh_vert[vertex : vertex + int(model.mesh_vertnum[mesh])].copy()
    start = int(model.mesh_texcoordadr[mesh])
    if start < 0:
        return vertices, model.mesh_face[faces].copy(), None, None
    texture = model.mesh_texcoord[start : start + int(model.mesh_texcoordnum[mesh])].copy()
    return vertices, model.mesh_face[faces].copy(), texture, model.mesh_facetexcoord[faces].copy()


def _put(model: mujoco.MjModel, mesh: int, thin: Mesh) -> None:
    # Into the place of the old one, whose tail stays unused; where a part would not fit, nothing changes.
    room = (model.mesh_vertnum, model.mesh_facenum, model.mesh_normalnum)
    if any(len(new) > count[mesh] for new, count in zip(thin[:3], room, strict=True)):
        return
    if thin.texture is not None and len(thin.texture) > model.mesh_texcoordnum[mesh]:
        return
    vertex, face = int(model.mesh_vertadr[mesh]), int(model.mesh_faceadr[mesh])
    normal, texture = int(model.mesh_normaladr[mesh]), int(model.mesh_texcoordadr[mesh])
    model.mesh_vert[vertex : vertex + len(thin.vertices)] = thin.vertices
    model.mesh_normal[normal : normal + len(thin.normals)] = thin.normals
    model.mesh_face[face : face + len(thin.faces)] = thin.faces
    model.mesh_facenormal[face : face + len(thin.faces)] = thin.face_normals
    if thin.texture is not None:
        model.mesh_texcoord[texture : texture + len(thin.texture)] = thin.texture
        model.mesh_facetexcoord[face : face + len(thin.faces)] = thin.faces
    model.mesh_facenum[mesh] = len(thin.faces)


def _cached(model: mujoco.MjModel, mesh: int, keep: float, cache: Path | None) -> Mesh | None:
    parts = _get(model, mesh)
    key = hashlib.sha256(repr((VERSION, keep, KEPT_FACES, CREASE)).encode())
    for part in parts:
        key.update(b"" if part is None else part.tobytes())
    path = None if cache is None else cache / f"{key.hexdigest()[:32]}.npz"
    if path is not None and path.is_file():
        with np.load(path) as stored:
            arrays = [stored[name] if name in stored.files else None for name in Mesh._fields]
        return Mesh(*arrays) if arrays[0] is not None else None
    thin = _thin(*parts, max(keep, KEPT_FACES / len(parts[1])))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        arrays = {} if thin is None else {k: v for k, v in thin._asdict().items() if v is not None}
        try:
            with unfinished.open("wb") as file:
                np.savez(file, **arrays)
            os.replace(unfinished, path)
        except OSError:
            # A full disk or a read-only home costs time at the next start, not the scene.
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
    return thin


def _thin(vertices, faces, texture, face_texture, keep: float) -> Mesh | None:
    import fast_simplification

    # One vertex per position, and along texture seams one per position and texture coordinate: a collapse
    # that crossed a seam would smear the picture.
    corners = vertices[faces.ravel()].astype(np.float64)
    if texture is not None:
        corners = np.concatenate([corners, texture[face_texture.ravel()]], axis=1)
    unique, index = np.unique(np.round(corners, 6), axis=0, return_inverse=True)
    faces = index.reshape(-1, 3)
    proper = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 0] != faces[:, 2])
    faces = faces[proper].astype(np.int32)
    if len(faces) <= KEPT_FACES:
        return None
    points = unique[:, :3]
    middle, scale = points.mean(0), float(np.ptp(points, axis=0).max()) + 1e-12
    unit = np.ascontiguousarray((points - middle) / scale, dtype=np.float32)
    _, _, collapses = fast_simplification.simplify(unit, faces, 1 - keep, return_collapses=True)
    thin, faces, origin = fast_simplification.replay_simplification(unit, faces, collapses)
    points, coordinates = thin.astype(np.float64) * scale + middle, None
    if texture is not None:
        used = origin >= 0
        counts = np.bincount(origin[used], minlength=len(points)).clip(1)
        sums = [np.bincount(origin[used], unique[used, 3 + axis], len(points)) for axis in (0, 1)]
        coordinates = (np.stack(sums, axis=1) / counts[:, None]).astype(np.float32)
    return _with_normals(points, faces, coordinates)


def _with_normals(points: np.ndarray, faces: np.ndarray, texture: np.ndarray | None) -> Mesh:
    first, second, third = (points[faces[:, corner]] for corner in range(3))
    normals = np.cross(second - first, third - first)  # as long as twice the area: large faces count more
    area = np.linalg.norm(normals, axis=1, keepdims=True)
    whole = area[:, 0] > 1e-16
    faces, normals, flat = faces[whole], normals[whole], normals[whole] / area[whole]
    _, weld = np.unique(np.round(points, 6), axis=0, return_inverse=True)
    weld = weld.ravel()[faces]
    spread = np.repeat(normals, 3, axis=0)
    smooth = np.stack([np.bincount(weld.ravel(), spread[:, axis]) for axis in range(3)], axis=1)
    smooth /= np.linalg.norm(smooth, axis=1, keepdims=True) + 1e-30
    corner_normals = smooth[weld]
    sharp = np.einsum("fck,fk->fc", corner_normals, flat) < CREASE
    corner_normals = np.where(sharp[..., None], flat[:, None, :], corner_normals)
    unique, index = np.unique(np.round(corner_normals.reshape(-1, 3), 4), axis=0, return_inverse=True)
    return Mesh(
        points.astype(np.float32),
        faces.astype(np.int32),
        unique.astype(np.float32),
        index.reshape(-1, 3).astype(np.int32),
        texture,
    )
